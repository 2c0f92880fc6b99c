"""What `install` adds to an application's workers: supervision, events, and a look at the configuration."""

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps, signals
from celery.worker import control

from .._options import configured_url
from .._registry import backend_for
from ..errors import ConfigurationError
from ._board import Board
from ._report import log, reporter
from ._rules import PREFIX, SETTABLE, Rules, of_configuration
from ._supervisor import Supervisor
from ._supply import refuse_scope
from ._task import locks_of

SETTINGS = frozenset(PREFIX + name for name in SETTABLE | {"supervise", "done_ttl"})
"""All of ours in Celery's configuration."""


class Supervision(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """The worker's part of the locks. Its board is made before the pool forks, its thread starts afterwards."""

    name = "atomiclock"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self.supervisor: Supervisor | None = None
        self.board: Board | None = None
        conf = worker.app.conf
        self._prefork = is_prefork(worker)
        refuse(conf, self._prefork)
        reporter.worker = worker
        if self._prefork and conf.get("atomiclock_supervise", True):
            self.board = reporter.board = Board()

    def start(self, parent: Any) -> None:
        for doubt in [*doubts(parent.app), *useless(parent.app, self._prefork)]:
            log.warning("%s", doubt)
        if self.board is not None and self.supervisor is None:
            parent.atomiclock_supervisor = self.supervisor = Supervisor(self.board)
            self.supervisor.start()
            signals.worker_shutdown.connect(self._end, sender=parent, weak=False)

    def stop(self, parent: Any) -> None:
        """Nothing yet: the children still end their tasks. It ends with the worker."""

    def _end(self, **_: Any) -> None:
        if self.supervisor is not None and self.board is not None:
            self.supervisor.stop()
            reporter.board = None
            self.board.close()


def install(app: Celery) -> None:
    """Add to `app`'s workers what looks after locks; to do it twice does no harm. Call it where the app is made.

    The main process of a prefork worker then renews the lock of a task that keeps its process from doing so, and
    frees the lock of a child that was killed, as soon as it is dead. Every worker sends events of locks (with `-E`),
    answers `celery locks ls`, and checks at its start what it can of the configuration: `memory://` with prefork,
    which would exclude nobody, ends it with a `ConfigurationError`; what is only doubtful is a warning in its log.
    """
    steps: Any = app.steps
    steps["worker"].add(Supervision)


def held(worker: Any) -> list[dict[str, Any]]:
    """What the tasks of a worker hold now."""
    supervisor = getattr(worker, "atomiclock_supervisor", None)
    return supervisor.held() if supervisor is not None else list(reporter.held.values())


def _locks(state: Any) -> list[dict[str, Any]] | dict[str, str]:
    worker = state.consumer.controller
    if is_prefork(worker) and getattr(worker, "atomiclock_supervisor", None) is None:
        return {"error": "nobody knows what its children hold: it needs install(app), and atomiclock_supervise"}
    facts = held(worker)
    return [{name: each[name] for name in ("name", "task", "id", "pid")} for each in facts]


control.inspect_command(name="atomiclock_locks")(_locks)


def is_prefork(worker: Any) -> bool:
    """Whether the worker's tasks run in children of its process."""
    pool = getattr(worker, "pool_cls", None)
    name = pool if isinstance(pool, str) else f"{getattr(pool, '__module__', '')}"
    return name in ("prefork", "processes") or name.startswith("celery.concurrency.prefork")


def refuse(conf: Any, prefork: bool) -> None:
    """Raise `ConfigurationError` for what cannot work; load what the rest needs."""
    rules = Rules().with_(of_configuration(conf), "Celery's setting atomiclock_")
    url = rules.url or configured_url()
    backend, _ = backend_for(url)
    refuse_scope(backend, prefork)
    backend.channel()  # connects to nothing, and loads the driver: here, or in every child that is forked


def unknown_settings(conf: Any) -> list[str]:
    """What is spelled like a setting of ours and is none."""
    prefix = str(conf.prefix or "")
    names = {str(name).removeprefix(prefix).lower() for name in conf}
    return sorted(name for name in names if name.startswith(PREFIX) and name not in SETTINGS)


def doubts(app: Any) -> list[str]:
    """What in the configuration is likely a mistake."""
    found = []
    conf = app.conf
    rules = Rules().with_(of_configuration(conf))
    unknown = unknown_settings(conf)
    if unknown:
        found.append(f"there is no setting {', '.join(unknown)}: only {', '.join(sorted(SETTINGS))}")
    visibility = (conf.get("broker_transport_options") or {}).get("visibility_timeout")
    found += _doubts_about("atomiclock_", {"delay": rules.delay, "ttl": rules.ttl}, visibility)
    for name, task in sorted(app.tasks.items()):
        for lock in locks_of(task):
            found += _doubts_about(f"{name}'s ", lock.given, visibility)
    return found


def _doubts_about(whose: str, given: dict[str, Any], visibility: float | None) -> list[str]:
    found, ttl = [], given.get("ttl")
    delay = Rules().with_({"delay": given["delay"]}).delay[1] if "delay" in given else 0.0
    if visibility is not None and delay >= float(visibility):
        found.append(
            f"{whose}delay goes up to {delay:g} s, and the broker delivers again after {visibility} s: a call that was "
            "put back would come twice"
        )
    if ttl is not None and ttl < 1:
        found.append(f"{whose}ttl is {ttl:g} s: a pause of a third of that loses locks; take seconds")
    return found


def useless(app: Any, prefork: bool) -> list[str]:
    """The tasks whose own stores exclude nobody here. They fail when they are called; the others need not."""
    found = []
    for task in app.tasks.values():
        for url in {lock.given.get("url") for lock in locks_of(task)} - {None}:
            try:
                refuse_scope(backend_for(str(url))[0], prefork)
            except ConfigurationError as error:
                found.append(f"the task {task.name} will fail: {error}")
    return found
