"""The waiters of one process: for each lock a line, first come first served, of whom one at a time asks the store.

So what a store has to do grows with the processes that wait and not with the waiters. While the process holds a
lock, a release may also pass it on to the next in line without telling the store ("lock cohorting", Dice, Marathe
and Shavit, PPoPP 2012): for a bounded number of turns and a bounded time, so that other processes are not starved.

No I/O, and the policy does not know of it: a manager enters the line before the plan `acquire` and leaves it after
the plan `release`. What passing on has to change is done in steps that can be repeated, and begins with one store
that says who gets the lock: if a signal interrupts in between, whoever comes next completes it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from . import _observe
from ._hold import HELD, RELEASED, TRYING, Hold
from ._keep import Book
from ._plans import LONGEST_PAUSE, timed_out
from .backends import Busy
from .errors import BackendUnavailable, LockError

TURNS = 100
"""How often a process passes a lock on before it gives it back."""
SPAN = 0.1
"""Seconds after its grant for which a process passes a lock on."""
FENCE_BITS = 8
"""Low bits of a fence, for the turns: the store's own number is above them."""
LOOK_AGAIN = 10.0
"""Seconds after which a waiter looks by itself whether it is its turn: a wake-up that a signal tore costs no more."""


def must_watch(front: Hold, book: Book) -> bool:
    """Whether the keeper has to be told of `front`, so that those behind hear of its end."""
    return front.state == HELD and front not in book.live


def _said(front: Hold) -> Busy | None:
    """What the store says of the lock, as far as `front` knows; `None` if it is silent."""
    had_it = front.state == HELD or front.lease is not None
    return Busy(None, front.owner) if had_it else front.refused


class Gate(Protocol):
    """Where one waiter waits. `open` may be called by any thread, any number of times."""

    def open(self) -> None: ...


G = TypeVar("G", bound=Gate)


class Ticket(Generic[G]):
    """A place in a line."""

    __slots__ = ("error", "gate", "hold")

    def __init__(self, hold: Hold, gate: G) -> None:
        self.hold = hold
        self.gate = gate
        self.error: BaseException | None = None


class Line:
    """Who is in front: it holds the lock, or asks the store for it. And who waits behind."""

    __slots__ = ("front", "passing", "rested", "waiting")

    def __init__(self, front: Hold) -> None:
        self.front = front
        self.rested: float | None = None
        self.waiting: OrderedDict[Hold, Ticket[Any]] = OrderedDict()
        self.passing: tuple[Hold, Ticket[Any]] | None = None


class Lines:
    """All lines of one store in this process (or on one event loop). `mutex` guards them.

    A hold that nobody ever waited behind stands for its line.
    """

    def __init__(self, mutex: AbstractContextManager[Any], clock: Callable[[], float]) -> None:
        self._mutex = mutex
        self._clock = clock
        self._lines: dict[str, Line | Hold] = {}

    def enter(self, hold: Hold, gate: Callable[[], G]) -> Ticket[G] | None:
        """A place in the line for the key of `hold`, or `None`: it is in front, and asks the store."""
        if self._lines.setdefault(hold.key, hold) is hold:
            return None
        with self._mutex:
            line = self._lines.setdefault(hold.key, hold)
            if line is hold:
                return None
            if not isinstance(line, Line):
                line = self._lines[hold.key] = Line(line)
            self._complete(line)
            ticket = line.waiting[hold] = Ticket(hold, gate())
            if self._gone(line.front):
                self._advance(hold.key, line)
            return ticket

    def followed(self, hold: Hold) -> bool:
        """Whether others wait behind `hold`, to which the store has granted the lock."""
        line = self._lines.get(hold.key)
        return isinstance(line, Line) and line.front is hold and bool(line.waiting)

    def stand(self, ticket: Ticket[Any], keeper: Any, begun: float, timeout: float | None) -> Iterator[float]:
        """What to do in the line until it is the turn of `ticket`, or it has the lock: wait for so many seconds at its
        gate. Raises `LockTimeout`, or `BackendUnavailable` if who is in front got no answer."""
        hold = ticket.hold
        if (front := self.front(hold.key)) is not None and must_watch(front, keeper.book):
            keeper.add(front)
        if _observe.observers:
            _observe.contended(hold, self.owner(hold.key), begun)
        deadline = math.inf if timeout is None else begun + timeout
        while not self.served(ticket, self._clock() - begun):
            left = deadline - self._clock()
            if left <= 0:
                raise self.late(hold, self._clock() - begun)
            yield min(left, LOOK_AGAIN)

    def served(self, ticket: Ticket[Any], waited: float) -> bool:
        """Whether it is the turn of `ticket` to ask the store, or it has the lock already. Raises what failed."""
        self._look(ticket.hold.key)
        if ticket.hold.state == HELD or self.front(ticket.hold.key) is ticket.hold:
            return True
        if ticket.error is not None:
            name = ticket.hold.name
            said = f"could not acquire the lock {name!r} in {waited:.3g} s: {ticket.error}"
            raise BackendUnavailable(said, name=name) from ticket.error
        return False

    def owner(self, key: str) -> str | None:
        """Who has the lock, as far as this process knows."""
        said = self._answer(key)
        return None if said is None else said.owner

    def _answer(self, key: str) -> Busy | None:
        front = self.front(key)
        return None if front is None else _said(front)

    def late(self, hold: Hold, waited: float) -> LockError:
        """The error for `hold`, whose time is over: who has the lock, or that the store tells nobody who."""
        said = self._answer(hold.key)
        if said is not None:
            return timed_out(hold, said.owner, waited)
        why = "the store has not answered who of this process asks it"
        return BackendUnavailable(f"could not acquire the lock {hold.name!r} in {waited:.3g} s: {why}", name=hold.name)

    def rest(self, hold: Hold, pause: float) -> float:
        """Seconds for which `hold` is to leave the lock to other processes: `pause`, a ninth of the time.

        A store that cannot wake waiters serves whoever asks first after a release, and we always know of ours.
        """
        line, now = self._line(hold.key), self._clock()
        if line is None:
            return 0.0
        if line.rested is None:
            line.rested = now
        if now - line.rested < 9 * pause:
            return 0.0
        line.rested = now
        return pause

    def front(self, key: str) -> Hold | None:
        line = self._lines.get(key)
        return line.front if isinstance(line, Line) else line

    def _line(self, key: str) -> Line | None:
        """The line for `key`, if anybody waited behind its first."""
        line = self._lines.get(key)
        return line if isinstance(line, Line) else None

    def pass_on(self, hold: Hold) -> bool:
        """Whether the lock that `hold` has went to the next in line, who need not ask the store."""
        line = self._line(hold.key)
        if line is None or not line.waiting:
            return False
        with self._mutex:
            self._complete(line)
            if line.front is not hold or not line.waiting:
                return False
            ticket = next(iter(line.waiting.values()))
            if not self._may_pass(hold, ticket.hold):
                return False
            line.passing = (hold, ticket)  # from here on it is the other's, whatever interrupts us
            self._complete(line)
            return True

    def _may_pass(self, hold: Hold, other: Hold) -> bool:
        now = self._clock()
        return (
            hold.turns < TURNS
            and now - hold.granted_at < SPAN
            and hold.state == HELD
            and hold.releases_unanswered == 0
            and hold.renewing is None  # else its old ttl may come after a new one
            and hold.valid_until - now > hold.ttl / 2
            and hold.passes_to(other)
        )

    def passed(self, hold: Hold) -> bool:
        """Whether the lock of `hold` went to another, if need be by completing what was interrupted."""
        line = self._line(hold.key)
        if line is not None and line.passing is not None:
            with self._mutex:
                self._complete(line)
        return hold.state == RELEASED

    def withdraw(self, hold: Hold) -> None:
        """`hold` waits no more. If it is in front by now it stays there, until it leaves."""
        line = self._line(hold.key)
        if line is not None:
            with self._mutex:
                self._complete(line)
                line.waiting.pop(hold, None)

    def leave(self, hold: Hold) -> None:
        """`hold` has nothing to do with the lock any more: the next in line asks the store."""
        key, lines = hold.key, self._lines
        with self._mutex:
            line = lines.get(key)
            if line is hold:
                lines.pop(key, None)
                return
            if not isinstance(line, Line):
                return  # another release of the same came first, and others have come since
            if line.passing is not None:
                self._complete(line)
            if line.waiting:
                line.waiting.pop(hold, None)  # also of who is in front, if a signal came between the two
            if line.front is hold:
                if line.waiting:
                    self._advance(key, line)
                else:
                    lines.pop(key, None)

    def fail(self, hold: Hold, error: BaseException, left: float = math.inf) -> None:
        """`hold` was in front and the store did not answer it: those behind have waited for the same answer.

        Not if it was its own timeout, of which `left` seconds are left, that ended it: they may have more time.
        """
        line = self._line(hold.key)
        if line is None or line.front is not hold or left <= LONGEST_PAUSE:
            return
        with self._mutex:
            waiting = list(line.waiting.values())
            for ticket in waiting:
                ticket.error = error
                ticket.gate.open()

    def _advance(self, key: str, line: Line) -> None:
        """Let the next in line be in front; without one the line is gone."""
        said = _said(line.front)
        while line.waiting:
            hold, ticket = next(iter(line.waiting.items()))
            hold.refused = said
            line.front = hold
            ticket.gate.open()
            line.waiting.pop(hold, None)
            if hold.state == TRYING:
                return
        self._lines.pop(key, None)

    def _look(self, key: str) -> None:
        """Let the next in line be in front if who is there has gone, and was interrupted before telling."""
        line = self._line(key)
        if line is not None and self._gone(line.front):
            with self._mutex:
                self._complete(line)
                if self._gone(line.front):
                    self._advance(key, line)

    def _gone(self, hold: Hold) -> bool:
        return hold.state not in (TRYING, HELD) or (hold.state == HELD and hold.over(self._clock()))

    def _complete(self, line: Line) -> None:
        """Complete what was begun to be passed on. Each step may be repeated."""
        if line.passing is None:
            return
        hold, ticket = line.passing
        ticket.hold.take_over(hold, self._clock())
        line.waiting.pop(ticket.hold, None)
        if line.front is hold:
            line.front = ticket.hold
        line.passing = None
        ticket.gate.open()
