"""Where news of locks goes: to receivers of the signals, and as events to whoever watches the workers."""

from __future__ import annotations

import threading
from typing import Any

from celery.utils.dispatch import Signal
from celery.utils.log import get_logger

from .. import _process
from . import signals
from ._board import Board

log = get_logger("atomiclock.celery")

EVENTS = {
    "lock_acquired": "task-lock-acquired",
    "lock_busy": "task-lock-busy",
    "lock_released": "task-lock-released",
    "lock_lost": "task-lock-lost",
    "lock_freed": "task-lock-freed",
    "duplicate_enqueue": "task-lock-duplicate",
    "backend_error": "task-lock-backend-error",
}


class Reporter:
    """This process's. `board` and `worker` are set by what a worker installs; without, only signals are sent."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.worker: Any = None
        self.counts: dict[str, int] = {}
        self.held: dict[str, dict[str, Any]] = {}
        """What tasks in this process hold, by token, where no supervisor keeps the list."""
        self.new_mutex()

    def new_mutex(self) -> None:
        """A thread of the parent may have had the one that a child was forked with."""
        self._mutex = threading.Lock()

    def tell(self, kind: str, task_name: str, task_id: str | None, name: str, **facts: Any) -> None:
        """Tell of one thing that happened, of `kind` as the signals are called."""
        signal: Signal = getattr(signals, kind)
        if signal.receivers:
            signal.send(sender=task_name, name=name, task_id=task_id, **facts)
        event = {"uuid": task_id, "task": task_name, "lock": name, **facts}
        board = self.board
        if board is not None and board.in_child:
            board.tell(say="event", kind=kind, event=event)
        else:
            self.emit(kind, event)

    def emit(self, kind: str, event: dict[str, Any]) -> None:
        """In a worker's main process: count it, and send the event if somebody watches."""
        with self._mutex:
            self.counts[kind] = self.counts.get(kind, 0) + 1
        consumer = getattr(self.worker, "consumer", None)
        dispatcher = getattr(consumer, "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            try:
                # An event's own `pid` is that of the worker.
                dispatcher.send(EVENTS[kind], **{("child" if name == "pid" else name): event[name] for name in event})
            except Exception as error:  # of whatever broker: an event is never worth a task
                log.warning("could not send the event %s: %s", EVENTS[kind], error)


reporter = Reporter()
_process.after_fork(reporter.new_mutex)
