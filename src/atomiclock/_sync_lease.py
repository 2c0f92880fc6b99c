"""A lease for threads."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from . import _process, _sync
from ._hints import Missing
from ._hold import HELD
from ._lease import LeaseView, must_release, note_on
from .errors import LockError


class Lease(LeaseView):
    """One grant of a lock, to release with `release()` or by leaving `with lease:`."""

    __slots__ = ()

    def extend(self, ttl: float | None = None) -> None:
        """Let the lease live `ttl` seconds from now (default: its ttl), which later renewals then use too.

        Raises `LockLost` if it is lost, `NotHeld` if it was released, and `BackendUnavailable` if the store did
        not answer: it then lives on for as long as `remaining` says, and the call may be repeated.
        """
        self._manager._extend(self._hold, ttl)

    def release(self) -> None:
        """Give the lock back, if this lease still owns it: decided by the store, in one step.

        Raises `NotHeld` if it was released before and `LockLost` if it was lost; another holder's lock is never
        touched. Raises `BackendUnavailable` if the store did not answer: the release is repeated in the
        background until the ttl is over, and may be called again.
        """
        self._manager._release(self._hold)

    def __enter__(self) -> Lease:
        """The lease itself. Raises `NotHeld` or `LockLost` if it is not held any more."""
        hold = self._hold
        hold.entered = True  # first: who is interrupted from here on never gets to `__exit__`
        hold.require(hold.io.terms.clock())
        return self

    if not TYPE_CHECKING:  # a type checker says so itself
        __aenter__ = Missing(
            "this lease was acquired by a LockManager, which blocks the event loop: in async code write "
            "`async with acquire_lock(name, url) as lease`, or use an AsyncLockManager"
        )

    def _orphaned(self) -> None:
        if self._hold.generation == _process.generation:
            _sync.keeper.orphan(self._hold)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if must_release(self._hold):
                self.release()
        except LockError as trouble:
            if error is None:
                raise
            note_on(error, trouble)
        finally:
            if self._hold.state == HELD and self:  # interrupted before its release
                self._orphaned()
