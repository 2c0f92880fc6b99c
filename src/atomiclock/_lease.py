"""What sync and async leases show alike."""

from __future__ import annotations

import logging
import weakref
from typing import Any, NoReturn

from . import _observe
from ._hold import HELD, RELEASED, Hold
from .errors import LockError

log = logging.getLogger("atomiclock")


class LeaseView:
    """One grant of a lock. True exactly while it is held, as far as can be known without asking the store."""

    __slots__ = ("__weakref__", "_hold", "_manager")

    def __init__(self, hold: Hold, manager: Any) -> None:
        self._hold = hold
        self._manager = manager
        hold.lease = weakref.ref(self)

    @property
    def name(self) -> str:
        """The lock's name, as the application gave it."""
        return self._hold.name

    @property
    def token(self) -> str:
        """Random, new with each grant: what the store knows this holder by."""
        return self._hold.grant

    @property
    def fence(self) -> int | None:
        """A number that grows with each grant of this name, for the resource to refuse an older holder.

        `None` where the backend cannot have one; how long it grows is in the backend's traits.
        """
        return self._hold.fence

    @property
    def ttl(self) -> float:
        """Seconds that the store keeps the lock after the last renewal, but for the lock-delay."""
        return self._hold.ttl

    @property
    def owner(self) -> str:
        """The label that others are shown."""
        return self._hold.owner

    @property
    def remaining(self) -> float:
        """Seconds of validity left, never more than the store will honour; 0 if not held."""
        now = self._hold.io.terms.clock()
        return max(0.0, self._hold.valid_until - now) if self._hold.held(now) else 0.0

    @property
    def lost(self) -> bool:
        """Whether the lease ended before it was released. Local, no I/O; once true it stays true."""
        return self._hold.over(self._hold.io.terms.clock())

    @property
    def lost_reason(self) -> str | None:
        """Why it was lost; `None` if it was not."""
        return self._hold.lost_reason if self.lost else None

    def check(self) -> None:
        """Raise `LockLost` if the lease is lost, or `NotHeld` if it was released.

        Local, no I/O: call it before each step that needs the lock.
        """
        self._hold.require(self._hold.io.terms.clock())

    def __copy__(self) -> NoReturn:
        raise TypeError("a lease is one grant to one holder: pass it on instead of copying it")

    def __deepcopy__(self, _: object) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lease belongs to the process that acquired it: send its name, token and fence instead")

    def __bool__(self) -> bool:
        return self._hold.held(self._hold.io.terms.clock())

    def __repr__(self) -> str:
        hold = self._hold
        if self.lost:
            state = f"lost: {hold.lost_reason}"
        elif hold.state == HELD:
            state = f"held, {self.remaining:.3g} s left"
        else:
            state = hold.state
        return f"<{type(self).__name__} {hold.name!r} fence={hold.fence} ({state})>"

    def __del__(self) -> None:
        # Nobody can release it any more. It is not renewed either, so the ttl bounds how long it blocks others.
        hold = getattr(self, "_hold", None)
        if hold is not None and hold.state == HELD:
            hold.dropped = True
            if hold.entered:
                self._orphaned()

    def _orphaned(self) -> None:
        """An interrupt hit between `with` and the release at its end: that is made up for, where it can be."""


def must_release(hold: Hold) -> bool:
    """Whether the end of a `with` block has to release: not if the body has done it."""
    return hold.state != RELEASED


def note_on(error: BaseException, trouble: LockError) -> None:
    """Tell `trouble` with the lock in a note on the body's own error, which must not be hidden by it."""
    note = f"and its lock: {type(trouble).__name__}: {trouble}"
    add_note = getattr(error, "add_note", None)
    if add_note is not None:
        add_note(note)
    else:  # Python 3.10 shows no notes, but whoever looks finds them where PEP 678 puts them
        error.__dict__.setdefault("__notes__", []).append(note)


def warn_lost(hold: Hold) -> None:
    event = _observe.event_of("lost", hold, reason=hold.lost_reason)
    log.warning("the lock %r was lost: %s", hold.name, hold.lost_reason, extra=_observe.fields(event))
    if _observe.observers:
        _observe.ended(hold)


def warn_dropped(hold: Hold) -> None:
    log.warning(
        "a lease on %r was dropped without release: it is no longer renewed and ends with its ttl of %g s",
        hold.name,
        hold.ttl,
        extra={**_observe.fields(_observe.event_of("lost", hold)), "lock_event": "dropped"},
    )
    if _observe.observers:
        _observe.ended(hold, "its lease was dropped without release")


def warn_stuck(hold: Hold, who: str = "thread") -> None:
    log.warning(
        "this %s waits without a timeout for the lock %r, which it holds itself: a lock is not re-entrant",
        who,
        hold.name,
        extra={**_observe.fields(_observe.event_of("contended", hold)), "lock_event": "stuck"},
    )
