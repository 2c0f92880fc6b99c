"""`acquire_lock` and `try_lock`: one call for `with`, `async with` and decorators."""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from . import _options
from ._hints import name_comes_first, refuse_a_template, refuse_to_decorate, warn_if_thrown_away
from ._names import check_name
from ._options import NONE, TRUE, TTL, ZERO, OnLost, overrides
from .errors import ConfigurationError, LockTimeout, NotHeld

if TYPE_CHECKING:
    from ._async_lease import AsyncLease
    from ._async_manager import AsyncLockManager
    from ._manager import LockManager
    from ._sync_lease import Lease

F = TypeVar("F", bound=Callable[..., Any])
L = TypeVar("L")
A = TypeVar("A")
M = TypeVar("M")


def acquire_lock(
    name: str,
    url: str | None = None,
    *,
    ttl: float = TTL,
    timeout: float | None = NONE,
    renew: bool = TRUE,
    max_hold: float | None = NONE,
    namespace: str | None = NONE,
    owner: str | None = NONE,
    on_lost: OnLost = NONE,
    lock_delay: float = ZERO,
) -> Acquire[Lease, AsyncLease]:
    """A lock on `name`, for `with`, `async with` (both give the lease), or as a decorator of a function.

    - `name`: any non-empty str. `url`: the backend; `None` for what `configure()` set, else ATOMICLOCK_URL, else
      `sqlite://`.
    - `ttl`: seconds, above 0, that the store keeps the lock if this process vanishes.
    - `timeout`: seconds, 0 or more, to wait in all, also if the server hangs; `None` for ever, 0 for one attempt.
    - `renew`: extend the lease until it is released, so that `ttl` bounds only what a crash blocks.
    - `max_hold`: seconds after which it is renewed no more although the body still runs; `None` for no bound.
    - `namespace`: prefix of the key in the store, `"atomiclock"` if not said; `""` shares a lock with other software.
    - `owner`: a label for people; `host:pid:thread` if not said.
    - `on_lost`: called with the lease when it is lost; or `"cancel"`, in async code, to cancel the body.
    - `lock_delay`: seconds for which a lock that was lost, not released, is granted to nobody else.

    Entering raises `LockTimeout` when the time is over, `BackendUnavailable` when the store does not answer.
    Leaving raises `LockLost` if the lease was lost and the body did not raise. `ConfigurationError`, for bad
    arguments and URLs, is raised at once where it can be.
    """
    given = overrides(ttl, timeout, renew, max_hold, namespace, owner, on_lost, lock_delay)
    _check(name, url, "acquire_lock")
    return Acquire(name, url, _checked(name, given))


def try_lock(
    name: str,
    url: str | None = None,
    *,
    ttl: float = TTL,
    renew: bool = TRUE,
    max_hold: float | None = NONE,
    namespace: str | None = NONE,
    owner: str | None = NONE,
    on_lost: OnLost = NONE,
    lock_delay: float = ZERO,
) -> Try:
    """As `acquire_lock`, but never waits: entering gives the lease, or `None` if somebody else holds the lock.

    The block is entered in both cases. Only `as lease` and a look at it tell which it is.
    """
    given = overrides(ttl, NONE, renew, max_hold, namespace, owner, on_lost, lock_delay)
    _check(name, url, "try_lock")
    return Try(name, url, {**_checked(name, given), "timeout": 0})


def _check(name: str, url: str | None, called: str) -> None:
    """Raise `ConfigurationError` for a bad name, and for a URL that no backend takes: where it is written, not at the
    first call.

    What needs a driver or settings to be known is known when it is entered.
    """
    if type(name) is str and name and (url is None or (type(url) is str and url in _managers)):
        return
    name_comes_first(name, url, called)
    check_name(name)
    if not isinstance(url, str) or url in _managers or url in _async_managers:
        return
    from ._process import loading

    try:
        with loading:
            from ._registry import check  # loads urllib.parse: only who says a URL pays

            check(url)
    except ConfigurationError as error:
        error.name = name
        raise


def _checked(name: str, given: dict[str, Any]) -> dict[str, Any]:
    if not given:
        return given
    try:
        _options.Options().with_(given)
    except ConfigurationError as error:
        error.name = name
        raise
    return given


class Acquire(Generic[L, A]):
    """A lock that is taken when entered, by `with` or `async with`, or around each call of a decorated function."""

    _used = True  # as long as it is not even made

    def __init__(self, name: str, url: str | None, given: dict[str, Any]) -> None:
        self._name = name
        self._url = url
        self._given = given
        self._used = False
        self._entered: list[tuple[int, Any]] = []  # (thread or task, lease), innermost last

    def _none_if_busy(self) -> bool:
        return False

    if not TYPE_CHECKING:  # a type checker says so itself

        def __getattr__(self, attribute: str) -> NoReturn:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            raise AttributeError(f"there is no lease yet that has {attribute!r}: {self._enter_it()}")

        def __bool__(self) -> NoReturn:
            raise TypeError(f"nothing is acquired yet: {self._enter_it()}")

        def __await__(self) -> NoReturn:
            raise TypeError(f"this is entered, not awaited: {self._enter_it('async ')}")

    def __del__(self) -> None:
        if not self._used:
            warn_if_thrown_away(self._enter_it())

    def _enter_it(self, how: str = "") -> str:
        call = "try_lock" if self._none_if_busy() else "acquire_lock"
        manager = "AsyncLockManager" if how else "LockManager"
        return f"write `{how}with {call}({self._name!r}, ...) as lease:`; without `with`, see {manager}"

    def _manager(self, find: Callable[[str | None], M]) -> M:
        try:
            return find(self._url)
        except ConfigurationError as error:
            error.name = self._name
            raise

    def __enter__(self) -> L:
        manager = self._manager(manager_for)
        options = manager._core.options_for(self._name, self._given)
        hold = manager._attempt(self._name, options)
        hold.entered = True
        try:
            lease = manager._acquire(hold, options.timeout)
            self._enter(get_ident(), lease)
            return lease  # type: ignore[return-value]  # that is `L`
        except LockTimeout:
            if not self._none_if_busy():
                raise
            self._enter(get_ident(), None)
            return cast(L, None)
        except BaseException as error:
            manager._take_back(hold, error)  # also when interrupted on the last few steps
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            lease = self._innermost(get_ident())[1]
            if lease is not None:
                lease.__exit__(kind, error, tb)
        finally:
            lease = self._leave(get_ident()) if self._entered else None
            if lease:  # interrupted before its release
                lease._orphaned()

    async def __aenter__(self) -> A:
        manager = self._manager(async_manager_for)
        options = manager._core.options_for(self._name, self._given)
        try:
            lease = await manager._acquire(manager._attempt(self._name, options), options.timeout)
        except LockTimeout:
            if not self._none_if_busy():
                raise
            self._enter(_task(), None)
            return cast(A, None)
        lease._enter()
        self._enter(_task(), lease)
        return cast(A, lease)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        lease = self._leave(_task())
        if lease is not None:
            await lease.__aexit__(kind, error, tb)

    def _enter(self, who: int, lease: Any) -> None:
        self._used = True
        self._entered.append((who, lease))

    def _leave(self, who: int) -> Any:
        entry = self._innermost(who)
        self._entered.remove(entry)
        return entry[1]

    def _innermost(self, who: int) -> tuple[int, Any]:
        entered = self._entered
        if not entered:
            raise NotHeld(f"the lock {self._name!r} was not entered", name=self._name)
        last = entered[-1]
        if last[0] == who:
            return last
        mine = [entry for entry in entered if entry[0] == who]
        return mine[-1] if mine else last

    def __call__(self, function: F) -> F:
        """`function`, with the lock held around each call."""
        import inspect
        from functools import wraps

        self._used = True
        refuse_to_decorate(function)
        refuse_a_template(self._name, function)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004  # not whether, but what it is

            @wraps(function)
            async def locked_async(*args: Any, **kwargs: Any) -> Any:
                async with self._again():
                    return await function(*args, **kwargs)

            return cast(F, locked_async)

        @wraps(function)
        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                result = function(*args, **kwargs)
                if inspect.iscoroutine(result):
                    result.close()
                    raise ConfigurationError(
                        f"{function!r} returned a coroutine, whose body would run after the lock was released: "
                        "decorate the async def itself"
                    )
                return result

        return cast(F, locked)

    def _again(self) -> Acquire[L, A]:
        return type(self)(self._name, self._url, self._given)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}{'' if self._entered else ' (not entered)'}>"


class Try(Acquire["Lease | None", "AsyncLease | None"]):
    """As `Acquire`, but entering gives `None` if somebody else holds the lock. Not a decorator."""

    def _none_if_busy(self) -> bool:
        return True

    def __call__(self, function: F) -> F:  # noqa: ARG002
        raise ConfigurationError(
            "try_lock does not decorate: what should a call do when the lock is held? "
            "Use acquire_lock(..., timeout=0), which raises LockTimeout then"
        )


def _task() -> int:
    import asyncio

    return id(asyncio.current_task())


_managers: dict[str, LockManager] = {}
_async_managers: dict[str, AsyncLockManager] = {}


def manager_for(url: str | None) -> LockManager:
    """This process's manager for `url`, made at its first use."""
    key = _options.configured_url() if url is None else url
    manager = _managers.get(key) if isinstance(key, str) else None
    if manager is None:
        from ._process import loading

        with loading:
            from ._manager import LockManager
        manager = _managers.setdefault(key, LockManager(key))
    return manager


def async_manager_for(url: str | None) -> AsyncLockManager:
    """The same for async code: one for all event loops, each with its own connections behind it."""
    key = _options.configured_url() if url is None else url
    manager = _async_managers.get(key) if isinstance(key, str) else None
    if manager is None:
        from ._process import loading

        with loading:
            from ._async_manager import AsyncLockManager
        manager = _async_managers.setdefault(key, AsyncLockManager(key))
    return manager
