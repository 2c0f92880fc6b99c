"""Celery tasks that run one at a time: what the Celery Cookbook's recipe set out to do.

    @app.task
    @exclusive("{feed_url}", ttl=60)
    def import_feed(feed_url):
        return Feed.objects.import_feed(feed_url).url

The lock is renewed while the task runs, so `ttl` only bounds how long a dead worker blocks others; it is
released by its owner alone; a task that lost its lock in the middle fails with `LockLost` instead of reporting
success. Two tasks never share a name, since it starts with the task's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from celery import Task, current_app, current_task
from celery.utils.log import get_task_logger

from ._api import acquire_lock, manager_for, try_lock
from ._keys import Key
from ._names import presentable
from ._options import NONE, TTL, Options, overrides
from .errors import ConfigurationError, LockError

if TYPE_CHECKING:
    from ._manager import Lease

F = TypeVar("F", bound=Callable[..., Any])
OnConflict = Literal["skip", "raise"]

BUSY = "already being imported by another worker"
"""The recipe's words; `busy` changes them."""


def exclusive(
    key: str | Callable[..., str] | None = None,
    *,
    ttl: float = TTL,
    on_conflict: OnConflict = "skip",
    url: str | None = None,
    max_hold: float | None = NONE,
    skip_result: Any = None,
    busy: str = BUSY,
) -> Callable[[F], F]:
    """A decorator for a task's function, below `@app.task`: one call for each key runs at a time, on all workers.

    - `key`: a template over the function's parameters, such as "{feed_url}"; a callable that is given them by
      name; or `None` for a digest of all arguments. Defaults count, so f(1) and f(x=1) share a key.
    - `ttl`: seconds that a worker which died blocks others; 30 if neither the URL nor `configure()` say. The lock is
      renewed as long as the task runs.
    - `on_conflict`: "skip" logs at INFO that the work is `busy` and returns `skip_result`; "raise" raises
      `LockTimeout`, so the task fails.
    - `url`: the backend; `None` for Celery's setting `atomiclock_url`, else what `configure()` or ATOMICLOCK_URL say,
      else sqlite://, which serves the workers of one machine.
    - `max_hold`: seconds after which the lock is no longer renewed although the task still runs.

    Raises `ConfigurationError` when decorating for a key that names no parameter, and at a call for an argument
    without a stable form. A task fails with `BackendUnavailable` if the store does not answer: that is never
    taken for "busy", and the work is never done without the lock.
    """
    if on_conflict not in ("skip", "raise"):
        raise ConfigurationError(f'on_conflict is "skip" or "raise", not {on_conflict!r}')
    if callable(key) and inspect.isfunction(key) and not inspect.signature(key).parameters:
        raise ConfigurationError("exclusive is called before it decorates: write @exclusive() or @exclusive('{name}')")
    given = overrides(ttl=ttl, max_hold=max_hold)
    Options().with_(given)

    def decorate(function: F) -> F:
        names = _names_for(function, key)

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            task_name = _task_name(run)
            own = names(args, kwargs, _skipped(names, args))
            name, target = f"{task_name}:{own}", url or _url()
            lock: Any = try_lock if on_conflict == "skip" else partial(acquire_lock, timeout=0)
            with lock(name, target, **given) as lease:
                if lease is not None:
                    return _with_lease(lease, function, args, kwargs)
            get_task_logger(task_name).info("%s: %s (%s)", own, busy, _owner(name, target))
            return skip_result

        # Celery checks a call's arguments against this before it sends the task.
        run.__signature__ = names.signature  # type: ignore[attr-defined]  # functions take attributes
        return cast(F, run)

    return decorate


def current_lease() -> Lease | None:
    """The lease of the innermost `exclusive` task function that runs here; `None` outside of one.

    For its `fence`, and for `check()` between the steps of a long task.
    """
    return _lease.get()


_lease: ContextVar[Lease | None] = ContextVar("_lease", default=None)


def _with_lease(lease: Lease, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    before = _lease.set(lease)
    try:
        return function(*args, **kwargs)
    finally:
        _lease.reset(before)


def _names_for(function: Callable[..., Any], key: str | Callable[..., str] | None) -> Key:
    if isinstance(function, Task):
        raise ConfigurationError(f"put @exclusive below @app.task, next to the function of {function.name}")
    if not callable(function):
        raise ConfigurationError(f"exclusive decorates a task's function, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{function.__qualname__} is not a plain function, and Celery runs no others")
    return Key(function, key)


def _skipped(names: Key, args: tuple[Any, ...]) -> frozenset[str]:
    """The name of a bound task's `self`, which is no argument of the work."""
    if args and isinstance(args[0], Task):
        return frozenset({next(iter(names.signature.parameters))})
    return frozenset()


def _task_name(run: Callable[..., Any]) -> str:
    """The name of the task whose function this is: also when it is called directly, or by another task."""
    task = current_task
    if task and _runs(task, run):
        return str(task.name)
    found: str | None = getattr(run, "_atomiclock_task", None)
    if found is None:
        app: Any = current_app
        found = next((str(task.name) for task in app.tasks.values() if _runs(task, run)), None)
        if found is None:  # no task of this application: the name that Celery would give it
            return str(app.gen_task_name(run.__name__, run.__module__))
        run._atomiclock_task = found  # type: ignore[attr-defined]  # functions take attributes
    return found


def _runs(task: Any, run: Callable[..., Any]) -> bool:
    return getattr(task, "__wrapped__", None) is run or getattr(task.run, "__func__", task.run) is run


def _url() -> str | None:
    """What Celery's configuration says, with whatever namespace it is read."""
    app: Any = current_app
    url = app.conf.get("atomiclock_url")
    if url is not None and not isinstance(url, str):
        raise ConfigurationError(f"Celery's setting atomiclock_url is a URL such as 'redis://localhost', not {url!r}")
    return url or None


def _owner(name: str, url: str | None) -> str:
    """Who has the lock, for the log: by now perhaps nobody."""
    with suppress(LockError):
        holder = manager_for(url).holder(name)
        if holder is not None and holder.owner:
            return presentable(holder.owner)
    return "it has just ended, or does not say who it is"


__all__ = ["current_lease", "exclusive"]
