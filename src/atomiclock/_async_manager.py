"""The asynchronous face: `AsyncLockManager`, `AsyncLease`, and a lock with the contract of `asyncio.Lock`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from . import _async, _observe, _plans, _process
from ._core import Core, named, unavailable
from ._hints import Missing
from ._hold import HELD, Hold
from ._lease import LeaseView, must_release, note_on
from ._manager import grace_after, lock_timeout
from ._options import NONE, TRUE, TTL, ZERO, OnLost, Options, overrides
from .backends import Holder, Peek, Unknown
from .errors import BackendUnavailable, LockError, LockLost, LockTimeout, NotHeld

T = TypeVar("T")


class AsyncLease(LeaseView):
    """One grant of a lock, to release with `await lease.release()` or by leaving `async with lease:`."""

    __slots__ = ("_body", "_cancelled")

    def __init__(self, hold: Hold, manager: Any) -> None:
        super().__init__(hold, manager)
        self._body: asyncio.Task[Any] | None = None
        self._cancelled = False

    async def extend(self, ttl: float | None = None) -> None:
        """Let the lease live `ttl` seconds from now, as `Lease.extend` does, with the same errors."""
        await self._manager._extend(self._hold, ttl)

    async def release(self) -> None:
        """Give the lock back, as `Lease.release` does, with the same errors.

        If it is cancelled, the release goes on in the background, and may be awaited again.
        """
        await self._manager._release(self._hold)

    if not TYPE_CHECKING:  # a type checker says so itself
        __enter__ = Missing("an AsyncLease is released by `async with lease:` or `await lease.release()`")

    def _enter(self) -> None:
        self._body = asyncio.current_task()

    def _cancel_body(self) -> None:
        if self._body is not None and not self._body.done():
            self._cancelled = True
            self._body.cancel(f"the lock {self.name!r} was lost")

    async def __aenter__(self) -> AsyncLease:
        """The lease itself. Raises `NotHeld` or `LockLost` if it is not held any more."""
        self._hold.require(self._hold.io.terms.clock())
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._body = None
        if self._cancelled:
            await self._uncancel(error)
        if not must_release(self._hold):
            return
        try:
            await self.release()
        except LockError as trouble:
            if error is None:
                raise
            note_on(error, trouble)

    async def _uncancel(self, error: BaseException | None) -> None:
        """The cancellation was ours: say instead why the body ended, unless somebody else cancelled it as well."""
        task = asyncio.current_task()
        uncancel = getattr(task, "uncancel", None)  # from Python 3.11 on
        others = 0 if uncancel is None else uncancel()
        if error is None and not others:  # the body ended before it was cancelled, or would not be
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if isinstance(error, asyncio.CancelledError) and not others:
            try:
                self._hold.raise_lost()
            except LockLost as lost:
                raise lost from error


class Acquiring(Coroutine[Any, Any, T], Generic[T]):
    """What `acquire` returns: a coroutine for the lease that can also be entered by `async with` as it is."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._lease: T | None = None

    def send(self, value: Any) -> Any:
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._work.__await__()

    if not TYPE_CHECKING:
        __enter__ = Missing(
            "an AsyncLockManager acquires by `async with` or `await`; for a plain `with` use a LockManager"
        )

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"there is no lease yet that has {name!r}: write `lease = await locks.acquire(...)`")

        def __bool__(self) -> NoReturn:
            raise TypeError("nothing is acquired yet: write `lease = await locks.try_acquire(...)` and look at that")

    async def __aenter__(self) -> T:
        self._lease = await self._work
        if isinstance(self._lease, AsyncLease):
            self._lease._enter()
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if isinstance(self._lease, AsyncLease):
            await self._lease.__aexit__(kind, error, tb)


class AsyncLockManager:
    """Locks of one backend, for tasks. The asynchronous `LockManager`: same arguments, same errors.

    Connects when first used, and may be used from several event loops, one after another or in threads: each has
    its own connections. An existing client of redis.asyncio, pymemcache or aetcd may be given instead of a URL.
    """

    def __init__(
        self,
        url: str | object | None = None,
        *,
        client: object | None = None,
        ttl: float = TTL,
        timeout: float | None = NONE,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
        handover: bool = TRUE,
    ) -> None:
        given = overrides(ttl, timeout, renew, max_hold, namespace, owner, on_lost, lock_delay, handover)
        self._core = Core(url, client, given, "async")
        self._store: _async.AsyncStore = self._core.performer("virtual_async_store", _async.AsyncStore)

    def acquire(
        self,
        name: str,
        *,
        ttl: float = TTL,
        timeout: float | None = NONE,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
    ) -> Acquiring[AsyncLease]:
        """A lease on `name`, by `await` or, released at the end, by `async with`. Errors as `LockManager.acquire`."""
        options = self._core.options_for(
            name, overrides(ttl, timeout, renew, max_hold, namespace, owner, on_lost, lock_delay)
        )
        return Acquiring(self._acquire(self._attempt(name, options), options.timeout))

    def try_acquire(
        self,
        name: str,
        *,
        ttl: float = TTL,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
    ) -> Acquiring[AsyncLease | None]:
        """A lease on `name`, or `None` if somebody else holds it. Never waits for the lock."""
        options = self._core.options_for(
            name, overrides(ttl, NONE, renew, max_hold, namespace, owner, on_lost, lock_delay)
        )
        return Acquiring(self._try_acquire(self._attempt(name, options)))

    def lock(
        self,
        name: str,
        *,
        ttl: float = TTL,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
    ) -> ManagedAsyncLock:
        """A lock on `name` for code that takes an `asyncio.Lock`. Nothing is sent before its first use."""
        options = self._core.options_for(
            name, overrides(ttl, NONE, renew, max_hold, namespace, owner, on_lost, lock_delay)
        )
        self._core.key(name, options)
        return ManagedAsyncLock(self, name, options)

    async def holder(self, name: str, *, namespace: str | None = NONE) -> Holder | None:
        """Who holds `name`, or `None`. For people: it may have changed before you read it."""
        key = self._core.key(name, self._core.options(overrides(namespace=namespace)))
        deadline = _process.clock() + self._core.terms.bound
        try:
            return self._core.shown(await self._store.perform(Peek(key, deadline)), self._store.lines.front(key))
        except Unknown as error:
            raise unavailable(name, "look at", error) from error
        except LockError as error:
            raise named(error, name) from error.__cause__

    async def aclose(self) -> None:
        """Close this event loop's connections. Leases that are held stay held; a later call connects again."""
        self._store.close()
        await asyncio.sleep(0)

    async def __aenter__(self) -> AsyncLockManager:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    if not TYPE_CHECKING:
        __enter__ = Missing("an AsyncLockManager is for tasks: write `async with`, or in sync code use a LockManager")

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncLockManager has connections of this process: make one from its URL in each process")

    def __repr__(self) -> str:
        return f"<AsyncLockManager {self._core.backend.place}>"

    def _attempt(self, name: str, options: Options) -> Hold:
        return self._core.hold(name, options, self._store)

    async def _acquire(self, hold: Hold, timeout: float | None) -> AsyncLease:
        """The lease of `hold`. Whatever is raised meanwhile, a cancellation too, leaves nothing behind."""
        lines = self._store.lines
        try:
            followed = await self._get(hold, timeout)
            lease = AsyncLease(hold, self)
            if hold.renew or hold.on_lost is not None or followed:
                _async.keeper().add(hold)
            if _observe.observers:
                _observe.acquired(hold)
            return lease
        except BaseException as error:
            try:
                lines.withdraw(hold)
                await self._take_back(hold, error)
            finally:
                lines.leave(hold)
            named(error, hold.name)
            if _observe.observers:
                _observe.failed(hold, error)
            raise

    async def _get(self, hold: Hold, timeout: float | None) -> bool:
        """Get the lock for `hold`, from the store or from within this process. True if others wait behind."""
        core, store = self._core, self._store
        begun, token = core.terms.clock(), hold.token
        stood = core.in_line and timeout != 0 and await store.stand(hold, begun, timeout)
        # Not before: it costs a call of the system, in which other threads find us in the line and get in it, too.
        hold.grant = token or _process.new_token()
        if hold.state == HELD:
            return False
        hold.token = hold.grant
        rest = store.lines.rest(hold, core.pause) if stood and core.pause else 0.0
        try:
            await store.run(_plans.acquire(hold, timeout, core.terms, begun, rest))
        except BackendUnavailable as error:
            left = math.inf if timeout is None else begun + timeout - core.terms.clock()
            store.lines.fail(hold, error, left)
            raise
        hold.fence = core.fence(hold.fence)
        return store.lines.granted(hold)

    async def _try_acquire(self, hold: Hold) -> AsyncLease | None:
        try:
            return await self._acquire(hold, 0)
        except LockTimeout:
            return None

    async def _take_back(self, hold: Hold, error: BaseException) -> None:
        """Leave nothing of an attempt that failed or was cancelled; what takes longer, in the background."""
        if isinstance(error, GeneratorExit):
            return  # the loop is gone: nothing can be awaited any more, and the ttl ends it
        keeper = _async.keeper()
        keeper.discard(hold)
        hold.give_up()
        if not hold.lingers:
            return
        grace = grace_after(error)
        if grace:
            work = _async.background(self._abandon(hold, grace))
            await asyncio.wait({work})  # a further cancellation ends this wait, not the work
        else:
            keeper.bury(hold)

    async def _abandon(self, hold: Hold, grace: float) -> None:
        settled = False
        try:
            settled = await self._store.run(_plans.abandon(hold, self._core.terms.clock() + grace, self._core.terms))
        except LockError:
            settled = False  # it refuses us: the error under way says why
        finally:
            if not settled:
                _async.keeper().bury(hold)

    async def _release(self, hold: Hold) -> None:
        _async.keeper().discard(hold)
        lines = self._store.lines
        try:
            if lines.pass_on(hold):
                return
            await self._store.run(_plans.release(hold, self._core.terms))
            if hold.lingers:
                _async.keeper().bury(hold)
        except (LockLost, NotHeld):
            if hold.lingers and hold.generation == _process.generation:
                _async.keeper().bury(hold)
            raise
        except BaseException as error:
            await self._take_back(hold, error)
            named(error, hold.name)
            raise
        finally:
            lines.leave(hold)
            if _observe.observers:
                _observe.ended(hold)

    async def _extend(self, hold: Hold, ttl: float | None) -> None:
        seconds = self._core.ttl(ttl, hold)
        try:
            await self._store.run(_plans.extend(hold, seconds, self._core.terms))
        except LockError as error:
            named(error, hold.name)
            raise
        finally:
            if hold in _async.keeper().book.live:
                _async.keeper().add(hold)


class ManagedAsyncLock:
    """A lock with the contract of `asyncio.Lock`, held across processes and machines. See `atomiclock.AsyncLock`.

    Not re-entrant. Tasks may share it, and one may release what another acquired.
    """

    def __init__(self, manager: AsyncLockManager, name: str, options: Options) -> None:
        self._manager = manager
        self._options = options
        self._leases: dict[Any, AsyncLease] = {}  # by the task that acquired
        self.name = name

    @property
    def lease(self) -> AsyncLease | None:
        """The lease that this object holds, or `None`."""
        try:
            mine = self._leases.get(asyncio.current_task())
        except RuntimeError:  # asked outside of a loop, as isinstance() does on Python 3.10 and 3.11
            mine = None
        return mine if mine is not None else max(self._leases.values(), key=bool, default=None)

    async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Whether the lock was acquired: at once, after waiting for ever, or within `timeout` seconds."""
        try:
            await self._take(lock_timeout(blocking, timeout))
        except LockTimeout:
            return False
        return True

    async def _take(self, timeout: float | None) -> AsyncLease:
        lease = await self._manager._acquire(self._manager._attempt(self.name, self._options), timeout)
        self._leases[asyncio.current_task()] = lease
        return lease

    async def release(self) -> None:
        """Release the lock. Raises `NotHeld`, a `RuntimeError`, if this object does not hold it, else as a lease."""
        lease = self.lease
        if lease is None:
            raise NotHeld(f"Lock is not acquired: this object does not hold {self.name!r}.", name=self.name)
        await self._end(lease.release, lease)

    async def _end(self, end: Callable[[], Coroutine[Any, Any, None]], lease: AsyncLease) -> None:
        try:
            await end()
        except (LockLost, NotHeld):
            self._forget(lease)
            raise
        self._forget(lease)

    def _forget(self, lease: AsyncLease) -> None:
        self._leases = {task: mine for task, mine in self._leases.items() if mine is not lease}

    def locked(self) -> bool:
        """Whether this object holds the lock. As `asyncio.Lock.locked` it cannot wait, so it does not ask the store;
        `await manager.holder(name)` does."""
        return any(self._leases.values())

    async def __aenter__(self) -> AsyncLease:
        lease = await self._take(None)
        lease._enter()
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        lease = self.lease
        if lease is None:
            if error is None:
                raise NotHeld("Lock is not acquired.", name=self.name)
            return
        try:
            await lease.__aexit__(kind, error, tb)
        finally:
            self._forget(lease)

    if not TYPE_CHECKING:
        __enter__ = Missing(
            "an AsyncLockManager's lock is entered by `async with`: for `with` make it by a LockManager"
        )

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<atomiclock.AsyncLock {self.name!r} object at {id(self):#x} [{state}]>"
