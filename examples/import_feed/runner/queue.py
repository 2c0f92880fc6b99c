"""Publishing tasks so that all workers see a whole wave at once, and no message before it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from project.celery import app

if TYPE_CHECKING:
    from celery import Task


class Queue:
    """The workers' queue, as the one who fills it sees it.

    kombu's filesystem transport creates a message's file and writes to it afterwards, so a worker that polls in
    between reads half a message. We publish into another folder and rename from there, which is all or nothing.
    """

    def __init__(self) -> None:
        options = app.conf.broker_transport_options
        self._ready = Path(options["data_folder_in"])
        self._outbox = self._ready.parent / "outbox"
        for folder in (self._ready, self._outbox, Path(options["control_folder"]), Path(options["processed_folder"])):
            folder.mkdir(parents=True, exist_ok=True)
        self._connection = app.connection_for_write(transport_options={"data_folder_out": str(self._outbox)})
        # Two workers that both create the exchange's file may read each other's half of it; now it exists.
        with self._connection.channel() as channel:
            app.amqp.queues[app.conf.task_default_queue](channel).declare()

    def publish(self, task: Task, feeds: list[str]) -> dict[str, str]:
        """One task per element of `feeds`, all visible together; returns the feeds by task id."""
        published = {str(uuid4()): feed for feed in feeds}
        for task_id, feed in published.items():
            task.apply_async((feed,), task_id=task_id, connection=self._connection)
        for message in sorted(self._outbox.iterdir()):
            message.rename(self._ready / message.name)
        return published

    def close(self) -> None:
        """Let go of the broker."""
        self._connection.release()
