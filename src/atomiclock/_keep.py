"""The keeper's book and plan: which held leases need attention next, and what to do about them.

One keeper serves all leases of a process (or of an event loop), one request at a time. So that a store that
hangs harms only its own leases, each request may take at most a third of the time until the next lease of any
store would be lost, and a store that just failed is left alone for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from . import _observe
from ._hold import HELD, LOST, Hold
from ._plans import FIRST_PAUSE, GONE, LONGEST_PAUSE, Plan, Terms
from .backends import Extend, Remove, Unknown

EARLY = 50
"""A lease is renewed early, by up to this part of a ttl, if others at its store are renewed anyway."""
LATE_ADD_PAUSE = 0.25
"""Seconds between looks for an add that may land although its token was removed."""


class Idle(NamedTuple):
    """Go on at `until`, or when the book was told of something earlier."""

    until: float


class On(NamedTuple):
    """Put `ask` to the store of `hold`."""

    hold: Hold
    ask: Any


class OnAll(NamedTuple):
    """Put each of `asks` to the store of the hold in the same place, which is the same for all, in one go.

    The answer is a list with a fact or an `Unknown` for each.
    """

    holds: list[Hold]
    asks: list[Any]


class Tell(NamedTuple):
    """`hold` was just lost: tell whoever wanted to know."""

    hold: Hold


class Dropped(NamedTuple):
    """`hold` has no lease left that could be released: say so, it is a mistake of the application."""

    hold: Hold


Entry = tuple[float, int, Hold]


class Book:
    """The leases to keep and the attempts to bury, by when they need attention. `mutex` guards it."""

    def __init__(self, mutex: AbstractContextManager[Any]) -> None:
        self.mutex = mutex
        self.live: set[Hold] = set()
        self._new: dict[Hold, None] = {}  # since the keeper was awake; most are gone before it is again
        self._dues: list[Entry] = []
        self._ends: list[Entry] = []
        self._number = count()
        self._asleep_until = math.inf
        self._alarm = math.inf  # what it was last woken for, until then: it would be for the next again
        self._pauses: dict[Any, tuple[float, float]] = {}

    def add(self, hold: Hold) -> bool:
        """Keep `hold`, or bury it if that is its state; or note that its times have changed.

        True if the keeper must be woken for it.
        """
        with self.mutex:
            self.live.add(hold)
            self._new[hold] = None
            first = hold.due if hold.due < hold.valid_until and hold.state != LOST else needed_at(hold)
            if first >= self._asleep_until:
                return False
            # It is woken for that at the latest: who adds a later one must not put it off.
            self._asleep_until = self._alarm = first
            return True

    def discard(self, hold: Hold) -> None:
        """Keep it no longer. What it left in the heaps is thrown out when that is the larger part of them."""
        if hold not in self.live:
            return
        with self.mutex:
            self.live.discard(hold)
            if self._new.pop(hold, hold) is None and hold.due_ticket < 0:
                return  # it had no place in them yet
            if len(self._dues) + len(self._ends) > 64 + 4 * len(self.live):
                self._dues = [entry for entry in self._dues if self._is_due(entry)]
                self._ends = [entry for entry in self._ends if self._is_end(entry)]
                heapify(self._dues)
                heapify(self._ends)

    def again(self, hold: Hold, due: float) -> None:
        """Look at `hold` again at `due`."""
        with self.mutex:
            hold.due = due
            if hold in self.live:
                self._push(hold)

    def _sort_in(self) -> None:
        """Give what was added its places in the heaps."""
        for hold in self._new:
            if not hold.buried:
                hold.end_ticket = next(self._number)
                heappush(self._ends, (_end(hold), hold.end_ticket, hold))
            self._push(hold)
        self._new.clear()

    def _push(self, hold: Hold) -> None:
        hold.due_ticket = next(self._number)
        heappush(self._dues, (hold.due, hold.due_ticket, hold))

    def _is_due(self, entry: Entry) -> bool:
        return entry[2] in self.live and entry[2].due_ticket == entry[1]

    def _is_end(self, entry: Entry) -> bool:
        return entry[2] in self.live and entry[2].end_ticket == entry[1] and not entry[2].buried

    def due(self, now: float) -> Hold | None:
        """A hold that needs attention now. It stays live, but has no place in the queue until `again`."""
        with self.mutex:
            self._asleep_until = -math.inf  # awake: whoever adds now need not wake us
            if self._alarm <= now:
                self._alarm = math.inf
            self._sort_in()
            while self._dues and self._dues[0][0] <= now:
                entry = heappop(self._dues)
                if self._is_due(entry):
                    return entry[2]
            return None

    def due_with(self, hold: Hold, now: float, most: int) -> list[Hold]:
        """Up to `most` more that need attention by `now` and are at the same store, as far as they come next."""
        found: list[Hold] = []
        with self.mutex:
            while len(found) < most and self._dues and self._dues[0][0] <= now:
                other = self._dues[0][2]
                if other.io is not hold.io or other.buried:
                    break
                if self._is_due(heappop(self._dues)) and other.state == HELD:
                    found.append(other)
        return found

    def sleep(self) -> float:
        """Until when there is nothing to do. Who adds something earlier than that is told to wake us.

        An entry that went stale counts: to wake for nothing once in a while is cheaper than at every add.
        """
        with self.mutex:
            self._sort_in()
            firsts = [heap[0][0] for heap in (self._dues, self._ends) if heap]
            self._asleep_until = min([self._alarm, *firsts])
            return self._asleep_until

    def lost(self, now: float) -> Hold | None:
        """A kept hold whose lease is over by `now`; it is kept no longer."""
        with self.mutex:
            self._sort_in()
            ends = self._ends
            while ends and ends[0][0] <= now:
                _, ticket, hold = entry = heappop(ends)
                if self._is_end(entry) and hold.state == HELD and hold.valid_until > now:  # renewed meanwhile
                    heappush(ends, (hold.valid_until, ticket, hold))
                elif self._is_end(entry) and hold.state in (HELD, LOST):
                    self.live.discard(hold)
                    return hold
            return None

    def next_end(self) -> float:
        """When the first of all kept leases will be over if it is not renewed."""
        with self.mutex:
            self._sort_in()
            ends = self._ends
            while ends:
                end, ticket, hold = ends[0]
                if not self._is_end(ends[0]) or hold.state not in (HELD, LOST):
                    heappop(ends)
                elif hold.state == HELD and hold.valid_until > end:
                    heappop(ends)
                    heappush(ends, (hold.valid_until, ticket, hold))
                else:
                    return end
            return math.inf

    # A store that fails

    def failed(self, io: Any, now: float, most: float) -> float:
        """Note that the store behind `io` failed. Returns when to try it again, at most `most` seconds from now."""
        pause = min(2 * self._pauses.get(io, (0.0, FIRST_PAUSE / 2))[1], LONGEST_PAUSE)
        self._pauses[io] = (now + min(pause, most), pause)
        return now + min(pause, most)

    def works(self, io: Any) -> None:
        self._pauses.pop(io, None)

    def paused(self, io: Any, now: float) -> float | None:
        """Until when to leave the store behind `io` alone, if at all."""
        until = self._pauses.get(io, (now, 0.0))[0]
        return until if until > now else None


def _end(hold: Hold) -> float:
    return -math.inf if hold.state == LOST else hold.valid_until


def needed_at(hold: Hold) -> float:
    """When `hold` needs attention. Who wakes the keeper for it must not wake it later: `Book.add` counts on that."""
    due, end = hold.due, hold.valid_until
    return -math.inf if hold.state == LOST else due if due < end else end


def keep(book: Book, terms: Callable[[Hold], Terms], clock: Callable[[], float]) -> Plan[None]:
    """Renew what is due, tell of losses in time, bury what was given up. Never ends."""
    while True:
        now = clock()
        lost = book.lost(now)
        if lost is not None:
            yield from _tell(book, lost, now)
            continue
        hold = book.due(now)
        if hold is None:
            yield Idle(book.sleep())
        elif hold.buried:
            yield from _bury(book, hold, now, terms(hold))
        elif hold.state == HELD:
            yield from _renew(book, hold, now, terms(hold))


def _tell(book: Book, hold: Hold, now: float) -> Plan[None]:
    if hold.over(now):
        yield Tell(hold)
        if hold.lingers and hold.lost_reason != GONE:  # a renewal may have been obeyed without our hearing of it
            hold.due = hold.valid_until = now
            hold.buried = True
            book.add(hold)


def _renew(book: Book, hold: Hold, now: float, terms: Terms) -> Plan[None]:
    """Renew `hold`, and with it whatever else is due at its store, as many at a time as that takes in one go."""
    holds = []
    for one in (hold, *book.due_with(hold, now + hold.ttl / EARLY, terms.batch - 1)):
        if one.may_renew(now):
            holds.append(one)
        elif one.dropped:  # else its end is in the book
            book.discard(one)
            yield Dropped(one)
    paused = book.paused(hold.io, now)
    if paused is not None:
        for one in holds:
            book.again(one, min(paused, now + _part(one.valid_until - now, 2)))
    elif holds:
        deadline = now + min(terms.each, _part(book.next_end() - now, 3))
        asks = [_extension(one, now, deadline) for one in holds]
        try:
            answers = yield from _put(holds, asks)
        finally:
            for one in holds:
                one.renewing = None
        yield from _renewed(book, list(zip(holds, asks, answers, strict=True)), now, terms.clock())


def _extension(hold: Hold, now: float, deadline: float) -> Extend:
    hold.last_sent = now
    hold.renewing = ttl = hold.ttl
    if hold.ttl != ttl:  # changed between the two reads by an extend() that did not see us
        hold.renewing = ttl = hold.ttl
    return Extend(hold.key, hold.token, ttl + hold.delay, deadline, hold.notes)


def _put(holds: list[Hold], asks: list[Extend]) -> Plan[list[Any]]:
    """The answer to each: a fact, or `Unknown`."""
    try:
        if len(holds) == 1:
            return [(yield On(holds[0], asks[0]))]
        answers: list[Any] = yield OnAll(holds, asks)
        return answers
    except Unknown as error:
        return [error] * len(holds)


def _renewed(book: Book, answered: list[tuple[Hold, Extend, Any]], sent: float, now: float) -> Plan[None]:
    silent = [hold for hold, _, kept in answered if isinstance(kept, Unknown)]
    if silent:
        most = min(_part(hold.valid_until - now, 4) for hold in silent)
        again = book.failed(silent[0].io, now, most)
        for hold in silent:
            book.again(hold, again)
    else:
        book.works(answered[0][0].io)
    for hold, ask, kept in answered:
        if hold.state != HELD or isinstance(kept, Unknown):
            continue
        if kept:
            hold.extended(sent, min(ask.ttl - hold.delay, hold.ttl))
            book.again(hold, hold.due)
            if _observe.observers:
                _observe.renewed(hold)
        else:
            hold.lose(GONE)
            book.discard(hold)
            yield Tell(hold)


def _part(left: float, parts: int) -> float:
    """A part of the time left, but not ever smaller ones: the end must be reached."""
    return max(left / parts, 0.005)


def _bury(book: Book, hold: Hold, now: float, terms: Terms) -> Plan[None]:
    """Take back what an attempt left behind, until the store confirms it or the ttl has done it."""
    if not hold.lingers or now > hold.last_sent + hold.ttl + hold.delay + terms.bound:
        book.discard(hold)
        return
    later = book.paused(hold.io, now) or hold.removable(now)
    if later > now:
        book.again(hold, later)
        return
    deadline = now + min(terms.each, _part(book.next_end() - now, 3))
    hold.releases_unanswered += 1
    try:
        removed = yield On(hold, Remove(hold.key, hold.token, hold.may_land, deadline, hold.notes))
    except Unknown:
        then = terms.clock()
        book.again(hold, book.failed(hold.io, then, LONGEST_PAUSE))
        return
    book.works(hold.io)
    if hold.settled(removed, terms.late_adds):
        book.discard(hold)
    else:
        book.again(hold, now + LATE_ADD_PAUSE)
