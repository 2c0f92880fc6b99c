"""The policy: what to ask of a store, when, and what follows from its answers.

Each plan is a generator. It yields asks (`atomiclock.backends` has those for a store; here are `Sleep`, `Idle`,
`On` and `Tell`), is sent the answers or has `Unknown` thrown into it, and returns. It does no I/O and has no
clock but the one handed in, so it runs the same under a thread, an event loop or a test's virtual clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from . import _observe
from ._hold import Hold
from ._names import presentable
from .backends import Add, Busy, Extend, Granted, Remove, Unknown, Wait, quick
from .errors import BackendUnavailable, ConfigurationError, LockTimeout

T = TypeVar("T")
Plan = Generator[Any, Any, T]
Clock = Callable[[], float]

LONGEST_WAIT = 5.0
"""Seconds after which a waiter asks again although nobody woke it: a lost wake-up costs no more than this."""
AT_ONCE = 5
"""How often to ask again at once in one call, where that is promising."""
TOO_LATE = 0.005
"""Seconds before the end of one's time in which no try is begun: it would only hide why the others failed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between tries at a store that does not answer; doubled from one try to the next."""


def ended(plan: Plan[Any]) -> bool:
    """Whether `plan`, or a verb, has returned or raised."""
    return getattr(plan, "gi_frame", None) is None


class Sleep(NamedTuple):
    """Go on at `until`."""

    until: float


class Terms:
    """What the plans need from their surroundings: the clock, randomness in [0, 1), and for how long to wait."""

    __slots__ = ("batch", "clock", "each", "late_adds", "ours", "random", "wait_adds")

    def __init__(
        self,
        clock: Clock,
        random: Callable[[], float],
        each: float,
        late_adds: bool = False,
        batch: int = 1,
        wait_adds: bool = False,
        ours: Callable[[Hold], None] | None = None,
    ) -> None:
        self.clock = clock
        self.random = random
        self.each = each
        """Seconds for one request: half of `bound`, so that one whose answer is lost can be repeated within it."""
        self.late_adds = late_adds
        """Whether an add may take the lock although its token was removed before it arrived."""
        self.batch = batch
        """How many renewals the store takes in one go."""
        self.wait_adds = wait_adds
        """Whether a wait ends with an add, and its answer is that of the add."""
        self.ours = ours
        """Told of an attempt that begins to wait without end for a holder with its own label: perhaps for itself."""

    @property
    def bound(self) -> float:
        """Seconds that a call may take when the store does not answer and the caller sets no tighter deadline."""
        return 2 * self.each


class Patience:
    """How long to go on with a store that does not answer: at most the bound after it stopped to."""

    __slots__ = ("at_once", "end", "pause", "since", "terms", "unkept")

    def __init__(self, terms: Terms, end: float) -> None:
        self.unkept: Unknown | None = None
        self.terms = terms
        self.end = end
        self.since: float | None = None
        self.pause = FIRST_PAUSE
        self.at_once = 0

    def answered(self) -> None:
        if self.unkept is not None:
            return
        self.since = None
        self.pause = FIRST_PAUSE

    def after(self, error: Unknown, asked: float) -> float | None:
        """When to try again, or `None` to give up."""
        now = self.terms.clock()
        if not error.fresh and self.at_once < AT_ONCE:
            # A pooled connection that the server closed meanwhile says nothing about the server.
            self.at_once += 1
            return now
        if error.unkept:
            self.unkept = error
        if error.alive:
            self.since = None
        self.since = asked if self.since is None else self.since
        give_up = min(self.end, self.since + self.terms.bound)
        again = now + self.pause * (0.5 + self.terms.random() / 2)
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
        return again if again < give_up - TOO_LATE else None


def acquire(
    hold: Hold, timeout: float | None, terms: Terms, begun: float | None = None, rest: float = 0.0
) -> Plan[None]:
    """Get the lock for `hold`, or raise `LockTimeout` or `BackendUnavailable` at the deadline.

    The same token is sent again after an answer was lost: the store then says that we have it. Whatever this
    plan leaves behind when it raises is noted in `hold`, for `abandon`. The timeout counts from `begun`.
    `rest`: seconds for which the lock is first left to others, where there is time for that.
    """
    clock = terms.clock
    begun = clock() if begun is None else begun
    deadline = math.inf if timeout is None else begun + timeout
    attempt: _Attempt | None = None  # made when it is first needed: most are granted at once
    busy: Busy | None = None
    if rest and clock() + 2 * rest < deadline:
        yield Sleep(clock() + rest)
    while True:
        sent = clock()
        ask: Add | Wait
        if busy is None or attempt is None:
            ask, adds = _add(hold, timeout == 0, sent + terms.each, deadline), True
        else:
            ask, adds = (yield from attempt.wait(busy, sent)), terms.wait_adds
        if adds:
            hold.sending(sent)
        try:
            answer = yield ask
        except Unknown as error:
            hold.in_flight -= adds and not error.sent
            attempt = attempt or _Attempt(hold, timeout, terms, begun, deadline)
            yield from attempt.unanswered(error, sent if busy is None else clock())
            busy = None
            continue
        except ConfigurationError:  # the store is sure that it did nothing
            hold.in_flight -= adds
            raise
        if type(answer) is not Granted:
            hold.in_flight -= adds
            attempt = attempt or _Attempt(hold, timeout, terms, begun, deadline)
            busy = attempt.refused(busy, answer, sent)
            continue
        now, (fence, repeated) = clock(), answer
        if busy is not None and not hold.renew and now - sent > hold.ttl / 20:
            hold.claim()  # nobody will renew it, so its ttl shall count from now
        elif hold.granted(sent, now, fence, repeated):
            return
        else:
            late = (
                f"it answered after {now - sent:.3g} s, when the ttl of {hold.ttl:g} s was over: give it a longer one"
            )
            attempt = attempt or _Attempt(hold, timeout, terms, begun, deadline)
            yield from _pause(hold, attempt.patience, Unknown(late), sent, "acquire")
        busy = None


def _add(hold: Hold, once: bool, bound: float, deadline: float) -> Add:
    if bound > deadline and not once:
        bound = deadline
    delay = hold.delay
    outlives = hold.outlives or delay > 0
    return quick(Add, (hold.key, hold.token, hold.ttl + delay, hold.owner, not once, bound, hold.notes, outlives))


class _Attempt:
    """One attempt at a lock that was not granted at once: what it does then, and how long it goes on."""

    __slots__ = ("_patience", "begun", "deadline", "hold", "latency", "once", "terms")

    def __init__(self, hold: Hold, timeout: float | None, terms: Terms, begun: float, deadline: float) -> None:
        self.hold = hold
        self.terms = terms
        self.begun = begun
        self.once = timeout == 0
        self.deadline = deadline
        self.latency = 0.0  # of an add, in seconds
        self._patience: Patience | None = None

    @property
    def patience(self) -> Patience:
        """Made when it is first needed: mostly the store answers."""
        if self._patience is None:
            self._patience = Patience(self.terms, self.deadline)
        return self._patience

    def unanswered(self, error: Unknown, since: float) -> Plan[None]:
        """Wait until it may be worth to ask again. Raises when that was the last chance."""
        hold = self.hold
        if hold.refused is not None and self.terms.clock() >= self.deadline:
            raise self._timed_out(hold.refused) from error  # there was no time for more
        hold.refused = None
        yield from _pause(hold, self.patience, error, since, "acquire")

    def wait(self, busy: Busy, now: float) -> Plan[Wait]:
        hold, terms = self.hold, self.terms
        # The answer to a wait must be here before the deadline, so the store is told to end it a little before: not by
        # more than a quarter, since the first add may have had to connect.
        latest = self.deadline - min(2 * self.latency, (self.deadline - now) / 4) - 0.005
        left = LONGEST_WAIT if busy.remaining is None else min(LONGEST_WAIT, busy.remaining)
        if hold.delay and terms.wait_adds:
            left = min(left, hold.ttl / 4)  # the grant's validity counts from here, and the store knows a longer ttl
        until = min(now + left + 0.001 + 0.004 * terms.random(), latest)
        if until <= now:
            if self.deadline > now:
                yield Sleep(self.deadline)
            raise self._timed_out(busy)
        bound, ttl = min(until + terms.each, self.deadline), hold.ttl + hold.delay
        return Wait(hold.key, hold.token, self.begun, until, busy.signals, bound, hold.notes, ttl, hold.owner)

    def refused(self, busy: Busy | None, answer: Busy | None, sent: float) -> Busy | None:
        """The store answered, and not with yes: what it said now. Raises when that was the last chance."""
        self.hold.waited = self.hold.waited or not self.once  # a store with queues has us in one now
        if self._patience is not None:
            self._patience.answered()
        self.hold.refused = answer or busy
        if _observe.observers:
            _observe.contended(self.hold, self.hold.refused and self.hold.refused.owner, self.begun)
        now = self.terms.clock()
        if busy is None:
            self.latency = now - sent
            if self.deadline == math.inf and answer and answer.owner == self.hold.owner and self.terms.ours:
                self.terms.ours(self.hold)
        # Woken too late for one more request: the wake-up is passed on when the attempt is abandoned.
        if self.once or (answer is None and now >= self.deadline):
            raise self._timed_out(answer or busy)
        return answer

    def _timed_out(self, busy: Busy | None) -> LockTimeout:
        return timed_out(self.hold, busy and busy.owner, self.terms.clock() - self.begun)


def _pause(hold: Hold, patience: Patience, error: Unknown, asked: float, verb: str) -> Plan[None]:
    again = patience.after(error, asked)
    if again is None:
        before = patience.unkept
        why = error if before in (None, error) else f"{before} Then {error}"  # mostly that no time was left
        raise BackendUnavailable(f"could not {verb} the lock {hold.name!r}: {why}", name=hold.name) from error
    if again > patience.terms.clock():
        yield Sleep(again)


def timed_out(hold: Hold, owner: str | None, waited: float) -> LockTimeout:
    """The error for an attempt that ended while `owner` had the lock."""
    who = f"held by {presentable(owner)}" if owner else "held by other software"
    how_long = f"not acquired within {waited:.3g} s" if waited >= 0.001 else "not acquired"
    ours = "; that is our own label, and a lock is not re-entrant" if owner == hold.owner else ""
    return LockTimeout(f"the lock {hold.name!r} is {who}: {how_long}{ours}", name=hold.name, waited=waited, owner=owner)


def abandon(hold: Hold, end: float, terms: Terms) -> Plan[bool]:
    """Take back whatever `hold` may have left at the store. False if the store did not confirm it by `end`."""
    patience = Patience(terms, end)
    while hold.lingers:
        now = terms.clock()
        if now >= end:
            return False
        hold.releases_unanswered += 1  # for a release() that is called after it
        try:
            removed = yield Remove(hold.key, hold.token, hold.may_land, min(now + terms.each, end), hold.notes)
        except Unknown as error:
            again = patience.after(error, now)
            if again is None:
                return False
            yield Sleep(again)
        else:
            return hold.settled(removed, terms.late_adds)
    return True


def release(hold: Hold, terms: Terms, left: Callable[[], object] | None = None) -> Plan[None]:
    """Give the lock back. `LockLost` if it was not ours any more; `BackendUnavailable` if nobody knows.

    If the hold lingers afterwards, adds may still land: it is to be buried. `left`: see `Remove`.

    An unanswered release may well have happened. So when a repetition finds the lock gone, that is success.
    """
    begun = sent = terms.clock()
    hold.begin_release(begun)
    patience: Patience | None = None
    deadline = begun + terms.each
    while True:
        hold.releases_unanswered += 1
        try:
            may_land = hold.in_flight and hold.may_land
            removed = yield quick(Remove, (hold.key, hold.token, may_land, deadline, hold.notes, left))
        except Unknown as error:
            if not error.sent:
                hold.releases_unanswered -= 1
            patience = patience or Patience(terms, begun + terms.bound)
            yield from _pause(hold, patience, error, sent, "release")
            sent = terms.clock()
            deadline = min(sent + terms.each, patience.end)
            continue
        if removed or hold.releases_unanswered > 1:  # one before this, or that of the keeper meanwhile
            hold.released(removed, terms.late_adds)
            return
        hold.lose(GONE)
        hold.settled(removed, terms.late_adds)
        hold.raise_lost()


GONE = "the store no longer has it for us: it expired there, or was removed or taken by others"


def extend(hold: Hold, ttl: float | None, terms: Terms) -> Plan[None]:
    """Let the lease live `ttl` seconds from now; a new ttl is also that of later renewals."""
    begun = terms.clock()
    hold.require(begun)
    hold.ttl = seconds = hold.ttl if ttl is None else ttl
    # A renewal under way may still carry the old ttl and be obeyed last. One that starts later reads the new.
    credit = seconds if hold.renewing is None else min(seconds, hold.renewing)
    patience = Patience(terms, begun + terms.bound)
    while True:
        sent = terms.clock()
        if hold.over(sent):
            hold.raise_lost()
        until = min(sent + terms.each, patience.end, hold.valid_until)
        ask = Extend(hold.key, hold.token, seconds + hold.delay, until, hold.notes)
        hold.extending(sent, seconds)
        try:
            kept = yield ask
        except Unknown as error:
            if hold.over(terms.clock()):
                hold.raise_lost()
            yield from _pause(hold, patience, error, sent, "extend")
            continue
        if not kept:
            hold.lose(GONE)
            hold.raise_lost()
        hold.extended(sent, credit)
        if hold.over(terms.clock()):
            hold.raise_lost()
        return
