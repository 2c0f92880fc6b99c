"""Leases that a process keeps when it has done with them, for its next locks: a cycle is two requests then, not four.

Whose lease it is must never be in doubt, since a key that lands on the lease of somebody else would be a lock that
nobody knows of, and a revoke that comes late would end somebody else's. So a lease is only kept when every request
that named it was answered (`opened`, `closed`); any other is revoked, whereupon etcd refuses what is still on its way.
The ids of such leases are random, and never those that follow from a token (`lease_of`), which anybody may revoke.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import NamedTuple

from .. import _process
from . import Notes

AT_MOST = 8
"""How many are kept for each ttl, and for how many different ttls."""
LONGEST = 300
"""Seconds: a lease that would stay longer than this, if nobody uses it again, is revoked."""
NEAR_ITS_END = 0.5
"""Seconds before the end of a lease from when it is not worth to ask for it."""


_mutex = threading.RLock()


def _new_mutex() -> None:
    global _mutex
    _mutex = threading.RLock()  # a thread of the parent may have had it


_process.after_fork(_new_mutex)


class Spare(NamedTuple):
    """A lease without a key."""

    lease: int
    since: float
    """When the request was sent that last started its ttl, on the monotonic clock."""


class Spares:
    """The leases that are kept for one cluster, by the seconds that they were asked for. Without a lock: a signal
    or a finalizer may come in between anywhere, and then a lease is forgotten at worst, which ends by itself."""

    def __init__(self) -> None:
        self._kept: dict[int, deque[Spare]] = {}
        self._generation = _process.generation

    def take(self, seconds: int) -> Spare | None:
        """One that is probably alive. It belongs to the caller."""
        kept = self._mine().get(seconds)
        while kept:
            try:
                spare = kept.pop()  # the latest, so that what is not needed ends
            except IndexError:
                break
            if spare.since + seconds > _process.clock() + NEAR_ITS_END:
                return spare
        return None

    def keep(self, seconds: int, spare: Spare) -> bool:
        """False if there are enough: it is still the caller's then."""
        now = _process.clock()
        every = self._mine()
        if seconds > LONGEST or spare.since + seconds <= now + NEAR_ITS_END:
            return False
        if seconds not in every and len(every) >= AT_MOST:
            self._forget_dead(now)
        if seconds not in every and len(every) >= AT_MOST:
            return False
        kept = every.setdefault(seconds, deque())
        if len(kept) >= AT_MOST:
            return False
        kept.append(spare)
        return True

    def take_all(self) -> list[int]:
        """All leases that are probably alive."""
        found = []
        for seconds in list(self._mine()):
            while (spare := self.take(seconds)) is not None:
                found.append(spare.lease)
        return found

    def _forget_dead(self, now: float) -> None:
        for seconds, kept in list(self._kept.items()):
            if all(spare.since + seconds <= now + NEAR_ITS_END for spare in list(kept)):
                self._kept.pop(seconds, None)

    def _mine(self) -> dict[int, deque[Spare]]:
        """In a forked child none: they are its parent's."""
        if self._generation != _process.generation:
            self._kept, self._generation = {}, _process.generation
        return self._kept


def new_lease() -> int:
    """An id for a lease that nobody else will choose."""
    return int.from_bytes(os.urandom(8), "big") >> 1 or 1


def opened(notes: Notes) -> object:
    """Note that a verb for this token has begun. What it returns is for `closed`.

    It comes before the look at `notes["own"]`, and `kept` takes that away before it looks who has begun: so of a
    release and of another verb at the same time, in two threads, at least one sees the other.
    """
    mark = object()
    with _mutex:
        notes["open"] = (*notes.get("open", ()), mark)
    return mark


def closed(notes: Notes, mark: object) -> None:
    """Note that it has ended, and that all its requests were answered. Not called if it was interrupted."""
    with _mutex:
        # Its place in the notes stays: to take it away and put it back lets a dictionary grow (by 88 bytes).
        notes["open"] = tuple([one for one in notes["open"] if one is not mark])


def kept(spares: Spares, notes: Notes, mark: object) -> bool:
    """Keep the lease of a token that has no key on it any more, if nothing that names it can be on its way."""
    own = notes.pop("own", None)
    if own is None:
        return False
    since, seconds = notes.get("since"), notes.get("seconds", 0)
    if since is not None and notes["open"] == (mark,) and notes.get("lease", own) == own and not notes.get("leases"):
        for fact in FACTS:
            notes.pop(fact, None)
        if spares.keep(seconds, Spare(own, since)):
            return True
    notes["own"] = own
    return False


FACTS = ("lease", "seconds", "since", "revision", "before", "turn")
"""What is noted of a key and its lease, and is true no more when they are gone."""


def forget(notes: Notes) -> None:
    """Forget the lease of a token, and its key."""
    for fact in ("own", *FACTS):
        notes.pop(fact, None)
