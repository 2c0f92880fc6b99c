"""A lock with the contract of `threading.Lock`."""

from __future__ import annotations

import threading
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._hints import Missing
from ._hold import Hold
from ._options import Options
from ._sync_lease import Lease
from .errors import LockLost, LockTimeout, NotHeld

if TYPE_CHECKING:
    from ._manager import LockManager


class ManagedLock:
    """A lock with the contract of `threading.Lock`, held across processes and machines. See `atomiclock.Lock`.

    Not re-entrant. Threads may share it, and one may release what another acquired.
    """

    def __init__(self, manager: LockManager, name: str, options: Options) -> None:
        self._manager = manager
        self._options = options
        self._leases: dict[int, Lease] = {}  # by the thread that acquired
        self.name = name

    @property
    def lease(self) -> Lease | None:
        """The lease that this object holds, or `None`: this thread's, or else any that is not lost."""
        mine = self._leases.get(threading.get_ident())
        return mine if mine is not None else max(list(self._leases.values()), key=bool, default=None)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Whether the lock was acquired: at once, after waiting for ever, or within `timeout` seconds.

        Raises `ValueError` and `OverflowError` for the arguments that `threading.Lock` refuses, and
        `BackendUnavailable` if the store did not answer.
        """
        wait = lock_timeout(blocking, timeout)
        hold = self._manager._attempt(self.name, self._options)
        try:
            self._take(hold, wait)
            return True
        except LockTimeout:
            return False
        except BaseException as error:
            self._undo(hold, error)
            raise

    def _take(self, hold: Hold, timeout: float | None) -> Lease:
        lease = self._manager._acquire(hold, timeout)
        self._leases[threading.get_ident()] = lease
        return lease

    def _undo(self, hold: Hold, error: BaseException) -> None:
        """Leave nothing of an attempt that was interrupted on its last few steps."""
        for thread, lease in list(self._leases.items()):
            if lease._hold is hold:
                self._leases.pop(thread, None)
        self._manager._take_back(hold, error)

    def release(self) -> None:
        """Release the lock. Raises `NotHeld`, a `RuntimeError`, if it is not held here, else as `Lease.release`."""
        lease = self.lease
        if lease is None:
            raise NotHeld(f"release unlocked lock: this object does not hold {self.name!r}", name=self.name)
        try:
            lease.release()
        except (LockLost, NotHeld):
            self._forget(lease)
            raise
        self._forget(lease)

    def _forget(self, lease: Lease) -> None:
        for thread, mine in list(self._leases.items()):
            if mine is lease:
                self._leases.pop(thread, None)

    def locked(self) -> bool:
        """Whether anybody holds the lock: this object, or, by asking the store, somebody else."""
        return (
            any(list(self._leases.values()))
            or self._manager.holder(self.name, namespace=self._options.namespace) is not None
        )

    def __enter__(self) -> Lease:
        hold = self._manager._attempt(self.name, self._options)
        hold.entered = True
        try:
            return self._take(hold, None)
        except BaseException as error:
            self._undo(hold, error)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        lease = None
        try:
            lease = self.lease
            if lease is not None:
                lease.__exit__(kind, error, tb)
            elif error is None:  # released inside the block, as threading.Lock reports it
                raise NotHeld(f"release unlocked lock: {self.name!r} was released inside the block", name=self.name)
        finally:
            lease = self.lease if lease is None else lease
            if lease is not None:
                self._forget(lease)
                if lease:  # interrupted before its release
                    lease._orphaned()

    if not TYPE_CHECKING:
        __aenter__ = Missing(
            "a LockManager's lock is entered by `with`: for `async with` make it by an AsyncLockManager"
        )

    def __repr__(self) -> str:
        state = "locked" if any(list(self._leases.values())) else "unlocked"
        return f"<{state} atomiclock.Lock {self.name!r} object at {id(self):#x}>"


def lock_timeout(blocking: bool, timeout: float) -> float | None:
    """Our timeout for the two arguments of `threading.Lock.acquire`, refused in the same words."""
    timeout = _float_or_index(timeout)
    if not blocking:
        if timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        return 0
    if timeout == -1:
        return None
    if not timeout >= 0:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    return float(timeout)


def _float_or_index(number: Any) -> float:
    if isinstance(number, (int, float)):
        return number
    try:
        return index(number)  # as numpy's integers have it
    except TypeError:
        kind = type(number).__name__
        raise TypeError(f"{kind!r} object cannot be interpreted as a number of seconds") from None
