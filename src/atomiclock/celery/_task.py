"""`LockedTask`: a base class for tasks with a lock around all that Celery runs, or with one place in the queue."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Task, signals
from celery.exceptions import Ignore, Retry
from celery.utils import uuid

from .._keys import Key
from ._conflicts import Where
from ._exclusive import Exclusive, decorated_with, key_for, way_of
from ._keeping import drop_quietly
from ._names import name_of
from ._rules import HEADER, STATE
from ._unique import Unique
from ._waiting import leave


class LockMixin:
    """Put before a base class of your own. `LockedTask` has it already."""

    lock: Exclusive | None = None
    unique: Unique | None = None
    # Of the Celery task that it is mixed into:
    app: Any
    name: str
    run: Any
    acks_late: bool
    reject_on_worker_lost: bool

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        run = inspect.getattr_static(cls, "run", None)
        if run is not None and run is not inspect.getattr_static(Task, "run"):
            for option in (cls.lock, cls.unique):
                if option is not None:
                    _key(cls, option.key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The task's body, with its lock: outside autoretry, so a retry lets go of the lock and `LockBusy` is none."""
        where, request = way_of(self)
        direct = where is Where.DIRECT
        base: Any = super()

        def body() -> Any:  # Celery's own would push another request over the one from the message
            return base.__call__(*args, **kwargs) if direct else self.run(*args, **kwargs)

        if self.unique is not None and where is Where.WORKER:
            return self._leaving(self.unique, request, args, kwargs, body)
        return self._locked(args, kwargs, body)

    def _locked(self, args: tuple[Any, ...], kwargs: dict[str, Any], body: Callable[[], Any]) -> Any:
        if self.lock is None:
            return body()
        return self.lock.run(self, self.name, self._name_of(self.lock, args, kwargs), body)

    def _leaving(
        self, unique: Unique, request: Any, args: tuple[Any, ...], kwargs: dict[str, Any], body: Callable[[], Any]
    ) -> Any:
        """The same, and the call's place in the queue is given back in time; not by a message that goes on."""
        name, begun = self._name_of(unique, args, kwargs), False

        def start() -> Any:
            nonlocal begun
            begun = True
            if unique.until == "start":
                unique.leave(self, name, request.id)
            return body()

        try:
            result = self._locked(args, kwargs, start)
        except (Ignore, Retry):
            raise
        except BaseException as error:
            goes_on = self.acks_late and not isinstance(error, Exception)  # the process leaves, and gives it back
            if not goes_on and (not begun or unique.until == "done"):
                unique.leave(self, name, request.id)
            raise
        if not begun or unique.until == "done":
            unique.leave(self, name, request.id)
        return result

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, *rest: Any, **options: Any
    ) -> Any:
        """As Celery's. `lock={...}` overrides the lock's rules for this call."""
        options = _with_header(options)
        base: Any = super()
        send = base.apply_async
        if self.unique is None or self.app.conf.task_always_eager or not self.unique.enabled(self):
            return send(args, kwargs, task_id, *rest, **options)
        own = task_id or uuid()
        name = self._name_of(self.unique, tuple(args or ()), dict(kwargs or {}))
        links = dict(zip(("producer", "link", "link_error"), rest, strict=False))
        known = {**options, **links, "task_id": task_id}
        return self.unique.enqueue(self, name, own, known, lambda: send(args, kwargs, own, *rest, **options))

    def apply(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """As Celery's, with the same `lock`."""
        base: Any = super()
        return base.apply(args, kwargs, *rest, **_with_header(options))

    def _name_of(self, option: Exclusive | Unique, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        key, first = _key(type(self), option.key)
        given = args if first is None else (self, *args)
        skip: frozenset[str] = frozenset() if first is None else frozenset({first})
        return name_of(key, self.name, option.shared, given, kwargs, skip)


def _with_header(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call, with `lock` where it travels."""
    rules = options.pop("lock", None)
    return options if rules is None else {**options, "headers": {**(options.get("headers") or {}), HEADER: rules}}


def _take_along(headers: Any = None, properties: Any = None, **_: Any) -> None:
    """The same for other tasks, whose `apply_async(lock={...})` Celery would take for a property of the message."""
    rules = properties.pop("lock", None) if isinstance(properties, dict) else None
    if rules is not None and isinstance(headers, dict):
        headers[HEADER] = rules


_keys: dict[tuple[type, Any], tuple[Key, str | None]] = {}


def _key(cls: type, template: str | Callable[..., str] | None) -> tuple[Key, str | None]:
    """The names for calls of a task class, and what its body calls the task itself, if it is given it."""
    found = _keys.get((cls, template))
    if found is None:
        run = inspect.getattr_static(cls, "run")
        bound = not isinstance(run, staticmethod)
        key = key_for(run if bound else run.__func__, template)
        found = _keys[cls, template] = key, next(iter(key.signature.parameters)) if bound else None
    return found


def _base() -> Any:
    """Celery's own base class where Django is used, which has `delay_on_commit`; by the sign by which Celery goes."""
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        from celery.contrib.django.task import DjangoTask

        return DjangoTask
    return Task


class LockedTask(LockMixin, _base()):  # type: ignore[misc]  # Celery has no types, and which base is known at run time
    """A task with a `lock`, a place in the queue (`unique`), or both."""


def locks_of(task: Any) -> list[Exclusive]:
    """The locks of a task: of its class, and of its function."""
    inside = decorated_with(task)
    own = [task.lock] if isinstance(task, LockMixin) and task.lock is not None else []
    return own if inside is None else [*own, inside[0]]


def _named(task: Any, args: Any, kwargs: Any) -> list[tuple[Exclusive, str]]:
    """The locks of a call, with their names."""
    args, kwargs, found = tuple(args or ()), dict(kwargs or {}), []
    if isinstance(task, LockMixin) and task.lock is not None:
        found.append((task.lock, task._name_of(task.lock, args, kwargs)))
    inside = decorated_with(task)
    if inside is not None:
        lock, key = inside
        bound = not isinstance(inspect.getattr_static(type(task), "run"), staticmethod)
        first = frozenset({next(iter(key.signature.parameters))}) if bound else frozenset()
        found.append((lock, name_of(key, task.name, lock.shared, (task, *args) if bound else args, kwargs, first)))
    return found


def _revoked(sender: Any, request: Any, **_: Any) -> None:
    if isinstance(sender, LockMixin) and sender.unique is not None:
        _leave(sender, request.args, request.kwargs, request.id)
    state = (request.headers or {}).get(STATE) or {}
    for lock, name in _named(sender, request.args, request.kwargs) if state else []:
        rules = lock.rules(sender.app.conf, None)
        if state.get("waits"):
            leave(rules, name, request.id)
        if state.get("kept"):
            drop_quietly(rules, name, request.id, state["kept"])


def _failed(sender: Any, task_id: str, exception: Any, args: Any, kwargs: Any, **_: Any) -> None:
    """In a worker's main process, of a child that could not do it any more."""
    if isinstance(exception, TimeLimitExceeded) or (
        isinstance(exception, WorkerLostError) and not (sender.acks_late and sender.reject_on_worker_lost)
    ):
        if isinstance(sender, LockMixin) and sender.unique is not None:
            _leave(sender, args, kwargs, task_id)
        for lock, name in _named(sender, args, kwargs):
            rules = lock.rules(sender.app.conf, None)
            if rules.enabled and (rules.on_conflict == "coalesce" or callable(rules.on_conflict)):
                leave(rules, name, task_id)


def _leave(task: Any, args: Any, kwargs: Any, task_id: str) -> None:
    name = task._name_of(task.unique, tuple(args or ()), dict(kwargs or {}))
    task.unique.leave(task, name, task_id)


signals.before_task_publish.connect(_take_along, weak=False)
signals.task_revoked.connect(_revoked, weak=False)
signals.task_failure.connect(_failed, weak=False)
