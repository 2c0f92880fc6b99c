"""The asynchronous face: `AsyncLockManager`, which makes leases and locks for tasks."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from . import _async, _observe, _plans, _process
from ._async_lease import Acquiring, AsyncLease
from ._async_lock import ManagedAsyncLock
from ._core import Core, named, unavailable
from ._hints import Missing
from ._hold import HELD, Hold
from ._line import Lines
from ._manager import grace_after
from ._options import NONE, TRUE, TTL, ZERO, OnLost, Options, overrides
from .backends import Holder, Peek, Unknown
from .errors import BackendUnavailable, LockError, LockLost, LockTimeout, NotHeld


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
        self._core = Core(url, client, given, "async", _async.look_for_ourselves)
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
        if hold.generation != _process.generation:
            self._core.begin_anew(hold)
        lines = self._store.lines
        try:
            await self._get(hold, timeout, lines)
            lease = AsyncLease(hold, self)
            if hold.renew or hold.on_lost is not None or _observe.observers or lines.followed(hold):
                _async.keeper().add(hold)  # also to tell of its end, which nobody may look at
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

    async def _get(self, hold: Hold, timeout: float | None, lines: Lines) -> None:
        """Get the lock for `hold`, from the store or from within this process."""
        core, store, rest = self._core, self._store, 0.0
        terms = core.terms
        begun = terms.clock()
        if core.in_line and timeout != 0:
            ticket = lines.enter(hold, _async.TaskGate)
            if ticket is not None:
                await store.stand(lines, ticket, begun, timeout)
                if hold.state == HELD:
                    return
                rest = lines.rest(hold, core.pause) if core.pause else 0.0
        try:
            await store.run(_plans.acquire(hold, timeout, terms, begun, rest))
        except BackendUnavailable as error:
            left = math.inf if timeout is None else begun + timeout - terms.clock()
            lines.fail(hold, error, left)
            raise
        if core.fence_bits and hold.fence is not None:
            hold.fence <<= core.fence_bits  # turns in this process follow in the low bits

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
        lines, left = self._store.lines, None
        try:
            if lines.followed(hold):
                if lines.pass_on(hold):
                    return
                if not hold.waited:  # else another process may be the next
                    left = partial(lines.leave, hold)
            await self._store.run(_plans.release(hold, self._core.terms, left))
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
