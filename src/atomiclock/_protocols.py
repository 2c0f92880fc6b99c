"""The types that application code names: a lock with a standard contract, whatever is behind it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ._async_lease import AsyncLease
    from ._sync_lease import Lease


@runtime_checkable
class Lock(Protocol):
    """A lock with the contract of `threading.Lock`, held across processes and machines.

    Same arguments, same exceptions for bad arguments and for the release of an unlocked lock; threads may share
    it, one may release what another acquired, and it is not re-entrant.
    """

    name: str

    @property
    def lease(self) -> Lease | None: ...
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def __enter__(self) -> Lease: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> Any: ...


@runtime_checkable
class AsyncLock(Protocol):
    """A lock with the contract of `asyncio.Lock`, but that `release` is awaited, and `acquire` takes a timeout."""

    name: str

    @property
    def lease(self) -> AsyncLease | None: ...
    async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    async def release(self) -> None: ...
    def locked(self) -> bool: ...
    async def __aenter__(self) -> AsyncLease: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> Any: ...
