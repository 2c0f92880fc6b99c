"""A lease for tasks, and what gives it by `await` or `async with`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from ._hints import Missing
from ._hold import Hold
from ._lease import LeaseView, must_release, note_on
from .errors import LockError, LockLost

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
