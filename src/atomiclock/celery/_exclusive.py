"""`exclusive`: the lock of a task, as a decorator of its function or as an option of its base class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from celery import Task, current_app, current_task

from .._keys import Key
from .._options import NONE, TRUE, TTL, Default
from ..errors import ConfigurationError
from ._body import runs
from ._conflicts import Where
from ._names import name_of
from ._rules import HEADER, Rules, of_configuration, of_header
from ._runner import Call, run

F = TypeVar("F", bound=Callable[..., Any])

_FALSE: Any = Default(False)
_WORDS: Any = Default("skip")
_DELAY: Any = Default((1, 30))
_GIVE_UP: Any = Default(600)
_THEN: Any = Default("raise")
_NO_WAIT: Any = Default(0)
_ABORT: Any = Default("abort")
_RETRY: Any = Default("retry")
_BUSY: Any = Default("already being imported by another worker")


class Exclusive:
    """What `exclusive` returns: decorates a function, or is the `lock` of a `LockedTask`."""

    def __init__(self, key: str | Callable[..., str] | None, shared: bool, given: dict[str, Any]) -> None:
        self.key = key
        self.shared = shared
        self.given = {name: value for name, value in given.items() if type(value) is not Default}
        own = Rules().with_(self.given)
        if own.on_conflict == "wait" and not own.wait:
            raise ConfigurationError('on_conflict="wait" needs wait=SECONDS: how long a worker may stand still for it')

    def __call__(self, function: F) -> F:
        """`function`, run with its lock."""
        names = key_for(function, self.key)

        @wraps(function)
        def protected(*args: Any, **kwargs: Any) -> Any:
            task = task_of(protected)
            app: Any = current_app
            task_name = task.name if task is not None else app.gen_task_name(protected.__name__, protected.__module__)
            name = name_of(names, task_name, self.shared, args, kwargs, _self_in(names, args))
            return self.run(task, task_name, name, lambda: function(*args, **kwargs), inside=True)

        # Celery checks a call's arguments against this before it sends the task.
        protected.__signature__ = names.signature  # type: ignore[attr-defined]  # functions take attributes
        protected._atomiclock_lock = self, names  # type: ignore[attr-defined]
        return cast("F", protected)

    def __getattr__(self, name: str) -> Any:
        # What Celery asks of a function. `@exclusive` without a call takes the function for a key that is callable.
        hint = "; exclusive is called before it decorates: write @exclusive() or @exclusive('{name}')"
        raise AttributeError(f"an Exclusive has no {name!r}{hint if name == '__name__' else ''}")

    def run(self, task: Any, task_name: str, name: str, body: Callable[[], Any], inside: bool = False) -> Any:
        """What the call of `task`'s body returns, under its lock `name`. `inside`: Celery's autoretry is around it."""
        where, request = way_of(task)
        rules = self.rules((task.app if task is not None else current_app).conf, request)
        return run(Call(task, task_name, name, where, request, body, inside), rules)

    def rules(self, conf: Any, request: Any) -> Rules:
        """The header beats the decorator, and the decorator beats Celery's configuration."""
        rules = Rules().with_(of_configuration(conf), "Celery's setting atomiclock_").with_(self.given)
        header = of_header((getattr(request, "headers", None) or {}).get(HEADER))
        return rules.with_(header, "the call's header: ") if header else rules


def exclusive(
    key: str | Callable[..., str] | None = None,
    *,
    ttl: float = TTL,
    on_conflict: str | Callable[..., str] = _WORDS,
    delay: tuple[float, float] = _DELAY,
    give_up: float = _GIVE_UP,
    then: str = _THEN,
    wait: float = _NO_WAIT,
    skip_result: Any = NONE,
    busy: str = _BUSY,
    shared: bool = False,
    on_lost: str = _ABORT,
    max_hold: float | None = NONE,
    min_hold: float = _NO_WAIT,
    hold_on_retry: bool = _FALSE,
    on_backend_error: str = _RETRY,
    url: str | None = NONE,
    namespace: str | None = NONE,
    enabled: bool = TRUE,
) -> Exclusive:
    """The lock of a task: of all calls with the same key, on all workers, one runs at a time.

    A decorator below `@app.task`; or, outside Celery's autoretry, `@app.task(base=LockedTask, lock=exclusive(...))`.

    - `key`: a template over the function's parameters, such as "{feed_url}"; a callable that is given them by
      name; or `None` for a digest of all arguments. Defaults count, so f(1) and f(x=1) share a key. The task's name
      comes before it, unless it is `shared` with other tasks.
    - `ttl`: seconds that a machine which died blocks others; 30 if neither the URL nor `configure()` say. The lock is
      renewed as long as the task runs, but no longer than `max_hold` seconds.
    - `min_hold`: seconds for which the lock is held at least, counted from its start, also if the task ends sooner;
      a task whose process is killed holds it no longer. `hold_on_retry`: keep the lock from one attempt to the next,
      over `retry()` and autoretry, for the countdown and `ttl` more; other calls meet a held lock meanwhile.
    - `on_conflict`, when the lock is held. "skip": log at INFO that the work is `busy`, and return `skip_result`.
      "retry": put the same message back, after `delay` seconds (the first, doubled up to the second), until `give_up`
      seconds are over and `then` ("raise" or "skip") follows; the task's own retries are not used up. "coalesce": one
      call waits in this way, without `give_up`, and runs after the holder; further ones skip, since that run begins
      after they came. "wait": the worker stands still for up to `wait` seconds, then `then`. "raise": `LockBusy`. A
      callable is given a `Conflict` and returns one of these words.
    - `on_lost`, when the lock ends while the task runs: "abort" raises `LockLost` in it at once where that can be
      (prefork, solo), "fail" when it has ended; "warn" logs it and keeps the result.
    - `on_backend_error`, when the store does not answer: "retry" puts the message back as above, then raises
      `BackendUnavailable`; "raise" does so at once; "run" runs without the lock.
    - `url`, `namespace`: as for `acquire_lock`. `enabled`: without it the task runs as if there were no lock.

    What is not given is Celery's setting `atomiclock_ttl`, `atomiclock_on_conflict` and so on; a call may override it
    by its header, as in `apply_async(..., headers={"atomiclock": {"on_conflict": "raise"}})`.

    Called directly, or eagerly, nothing is put back: "skip" returns `skip_result`, "wait" is the same, and all
    others wait `wait` seconds and raise `LockBusy`. Raises `ConfigurationError` when decorating for a key that names no
    parameter, and at a call for an argument without a stable form.
    """
    if callable(key) and inspect.isfunction(key) and not inspect.signature(key).parameters:
        raise ConfigurationError("exclusive is called before it decorates: write @exclusive() or @exclusive('{name}')")
    given = {name: value for name, value in locals().items() if name not in ("key", "shared")}
    return Exclusive(key, shared, given)


def key_for(function: Callable[..., Any], key: str | Callable[..., str] | None) -> Key:
    """The names for calls of `function`. Refuses what Celery would not run as it looks."""
    if isinstance(function, Task):
        raise ConfigurationError(f"put @exclusive below @app.task, next to the function of {function.name}")
    if not callable(function):
        raise ConfigurationError(f"exclusive decorates a task's function, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{function.__qualname__} is not a plain function, and Celery runs no others")
    return Key(function, key)


def _self_in(names: Key, args: tuple[Any, ...]) -> frozenset[str]:
    """The name of a bound task's `self`, which is no argument of the work."""
    if args and isinstance(args[0], Task):
        return frozenset({next(iter(names.signature.parameters))})
    return frozenset()


def decorated_with(task: Any) -> tuple[Exclusive, Key] | None:
    """The lock in which the task's function is wrapped, and its names; `None` if there is none."""
    found: tuple[Exclusive, Key] | None = getattr(task.run, "_atomiclock_lock", None)
    return found


def way_of(task: Any) -> tuple[Where, Any]:
    """How the call under way came about, and its request if it has one of its own."""
    if task is None or not current_task or current_task.name != task.name:
        return Where.DIRECT, None
    request = task.request_stack.top
    if request is None or request.called_directly or request.id is None or runs(request):
        return Where.DIRECT, None
    return (Where.EAGER if request.is_eager else Where.WORKER), request


def task_of(protected: Callable[..., Any]) -> Any:
    """The task whose function this is, also when it is called directly or by another task; `None` if there is none."""
    task = current_task
    if task and _runs(task, protected):
        return task._get_current_object() if hasattr(task, "_get_current_object") else task
    app: Any = current_app
    name: str | None = getattr(protected, "_atomiclock_task", None)
    if name is None or name not in app.tasks:
        name = next((str(task.name) for task in app.tasks.values() if _runs(task, protected)), None)
        protected._atomiclock_task = name  # type: ignore[attr-defined]  # functions take attributes
    return None if name is None else app.tasks[name]


def _runs(task: Any, protected: Callable[..., Any]) -> bool:
    return getattr(task, "__wrapped__", None) is protected or getattr(task.run, "__func__", task.run) is protected
