"""A lock with the contract of `asyncio.Lock`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._async_lease import AsyncLease
from ._hints import Missing
from ._options import Options
from ._sync_lock import lock_timeout
from .errors import LockLost, LockTimeout, NotHeld

if TYPE_CHECKING:
    from ._async_manager import AsyncLockManager


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
