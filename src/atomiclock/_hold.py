"""What one attempt at a lock, and the lease that comes of it, knows about itself. No I/O, no clock of its own."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from . import _process
from ._options import Options
from .errors import LockLost, NotHeld

TRYING, HELD, RELEASING, RELEASED, LOST = "trying", "held", "releasing", "released", "lost"
NEVER, EVER = -math.inf, math.inf

RENEWALS_PER_TTL = 3
"""A renewal is due after a third of the ttl, so that two may fail before the lease is in danger."""


def margin(ttl: float) -> float:
    """Seconds by which a lease ends earlier for its holder than at the store.

    One percent for clocks that run at different rates (as Redlock allows) and for telling the holder in
    time, and 2 ms for the store's rounding; never more than a tenth of a very short ttl.
    """
    slack, most = 0.002 + ttl / 100, ttl / 10
    return slack if slack < most else most


class Hold:
    """One token's story: trying, held, then released or lost. Shared by plans, keeper and lease."""

    __slots__ = (
        "__weakref__",
        "buried",
        "claimed",
        "delay",
        "dropped",
        "due",
        "due_ticket",
        "end_ticket",
        "entered",
        "fence",
        "generation",
        "grant",
        "granted_at",
        "handover",
        "in_flight",
        "io",
        "key",
        "label",
        "last_sent",
        "lease",
        "lost_reason",
        "name",
        "notes",
        "on_lost",
        "outlives",
        "owner",
        "refused",
        "releases_unanswered",
        "renew",
        "renew_until",
        "renewing",
        "seen",
        "state",
        "token",
        "ttl",
        "turns",
        "valid_until",
        "waited",
    )

    seen: Any  # of those who observe; unset until there are any

    def __init__(self, name: str, key: str, owner: str, token: str, options: Options, io: Any = None) -> None:
        self.name = name
        self.key = key
        self.owner = owner
        self.token = token  # what the store knows it by
        self.grant = token  # what the application knows it by; differs if the lock was passed on in this process
        # `label` is the owner that the application chose, if it did; `delay` are seconds that the store keeps it beyond
        # our ttl, which releases take off; `handover`: whether it may be passed on in this process.
        self.ttl, _, self.renew, max_hold, _, self.label, self.on_lost, self.handover, self.delay = options
        self.outlives = False  # whether it stands when this process has ended
        self.io = io  # whose store it is; opaque here
        self.lease: Any = None  # a weak reference to the lease that the application has
        self.generation = _process.generation
        self.notes: dict[str, Any] | None = {}  # the adapter's; `None` if it is to conclude all from the token
        self.state = TRYING
        self.fence: int | None = None
        self.granted_at = NEVER  # by the store; it may have been passed on since,
        self.turns = 0  # and so often
        self.valid_until = NEVER
        self.renew_until = EVER if max_hold is None else max_hold
        self.lost_reason: str | None = None
        self.refused: Any = None  # a `Busy`: what the store, if it answers, said last to us or to who was before us
        # What may be left at the store if we stop here:
        self.in_flight = 0  # adds that were sent and not answered
        self.claimed = False  # an add was answered with yes
        self.waited = False  # the store may know us as a waiter, or have woken us
        self.releases_unanswered = 0
        self.last_sent = NEVER  # the last add, or extension
        # The keeper's:
        self.due = EVER
        self.due_ticket = self.end_ticket = -1
        self.renewing: float | None = None  # the ttl of its renewal under way
        self.entered = False  # by `with`: to release it is the business of nobody else
        self.dropped = False  # nobody has the lease any more
        self.buried = False  # to be taken back, not to be renewed

    # Acquire

    def sending(self, now: float) -> None:
        """An add is about to leave: counted first, so that an interrupt at any point finds it counted."""
        self.in_flight += 1
        self.last_sent = now

    def granted(self, sent: float, now: float, fence: int | None, repeated: bool) -> bool:
        """The store says yes to what left at `sent`. False if the lease is over by `now` already."""
        self.claimed = True
        others = self.in_flight - (2 if repeated else 1)
        self.in_flight = others if others > 0 else 0
        self.fence = fence
        ttl = self.ttl
        valid_until = sent + ttl - margin(ttl)
        if now >= valid_until:
            return False
        self.valid_until, self.granted_at = valid_until, now
        if self.renew_until < EVER:  # else the sum would be a number of its own for each lease
            self.renew_until += now
        self.due = sent + ttl / RENEWALS_PER_TTL if self.renew else valid_until
        self.state = HELD
        return True

    def claim(self) -> None:
        """An add was answered with yes, but another one will follow."""
        self.in_flight = max(0, self.in_flight - 1)
        self.claimed = True

    def passes_to(self, other: Hold) -> bool:
        """Whether `other`, which waits in this process, may have what the store granted to us."""
        return (
            self.handover
            and other.handover
            and self.renew
            and other.renew
            and self.ttl == other.ttl
            and self.delay == other.delay
            and self.label == other.label
            and other.state == TRYING
        )

    def take_over(self, hold: Hold, now: float) -> None:
        """Have what the store granted to `hold`, which has nothing then. To repeat it does no harm."""
        if self.state == TRYING and hold.state != RELEASED:
            self.token, self.notes = hold.token, hold.notes
            self.claimed, self.in_flight, self.waited = True, hold.in_flight, hold.waited
            self.last_sent, self.valid_until, self.due = hold.last_sent, hold.valid_until, hold.due
            self.fence = None if hold.fence is None else hold.fence + 1
            self.granted_at, self.turns = hold.granted_at, hold.turns + 1
            self.renew_until, self.state = self.renew_until + now, HELD  # together: a sum must not be repeated
        hold.released(False, False)

    def removable(self, now: float) -> float:
        """When the store may be asked to remove what is left: after a loss, not before the lock-delay is over."""
        return max(now, self.last_sent + self.ttl + self.delay) if self.delay and self.state == LOST else now

    @property
    def lingers(self) -> bool:
        """Whether something of this attempt may be at the store, now or later."""
        return self.claimed or self.waited or self.in_flight > 0

    @property
    def may_land(self) -> int:
        """Adds that may be the one which put our token at the store, or land there later.

        One that was answered with yes counts as well while others are under way: an adapter that finds the token
        takes one off, and must not take off one that is still to come.
        """
        return self.in_flight + 1 if self.claimed and self.in_flight else self.in_flight

    def settled(self, removed: bool = False, late_adds: bool = False) -> bool:
        """The store has confirmed that nothing of it is there. True if nothing of it can come either.

        `late_adds`: what is still in flight may land all the same. `removed`: the store had our token; unless that
        was the one known to be there, it was one of those.
        """
        if not late_adds:
            self.in_flight = 0
        elif removed and not self.claimed:
            self.in_flight = max(0, self.in_flight - 1)
        self.claimed = self.waited = False
        return self.in_flight == 0

    # While held

    def held(self, now: float) -> bool:
        """Whether the lease is valid at `now`, as far as can be known without asking."""
        return self.state == HELD and not self.over(now)

    def over(self, now: float) -> bool:
        """Whether the lease is lost. Notes the loss the first time that it shows."""
        if self.state == LOST:
            return True
        if self.generation != _process.generation and self.state in (TRYING, HELD, RELEASING):
            self.lose("it belongs to the process that forked this one: acquire it anew here")
            return True
        if self.state == HELD and now >= self.valid_until:
            self.lose(self._why_over())
            return True
        return False

    def _why_over(self) -> str:
        if not self.renew:
            return f"its ttl of {self.ttl:g} s is over and renew=False"
        if self.valid_until >= self.renew_until:
            return "max_hold is over, so it was no longer renewed"
        return f"it could not be renewed within its ttl of {self.ttl:g} s"

    def lose(self, reason: str) -> None:
        self.lost_reason = reason
        self.state = LOST

    def may_renew(self, now: float) -> bool:
        return self.renew and now < self.renew_until and not self.dropped

    def extending(self, sent: float, ttl: float) -> None:
        """An extension is about to leave: from now on the store may end the lease at that time, if it is sooner."""
        self.last_sent = sent
        self.valid_until = min(self.valid_until, sent + ttl - margin(ttl))

    def extended(self, sent: float, ttl: float) -> None:
        """The store says yes to the extension that left at `sent`."""
        if self.state == HELD:
            self.valid_until = sent + ttl - margin(ttl)
            self.due = sent + self.ttl / RENEWALS_PER_TTL if self.renew else self.valid_until

    # The end

    def give_up(self) -> None:
        """Nobody will use it: it is not held any more, and nothing of it shall stay at the store."""
        if self.state in (TRYING, HELD):
            self.state = RELEASING

    def begin_release(self, now: float) -> None:
        """Raise what the release of a lease that is not held raises; else no renewal follows."""
        if not (self.state == HELD and now < self.valid_until and self.generation == _process.generation):
            self.require(now, releasing=True)
        self.state = RELEASING

    def require(self, now: float, releasing: bool = False) -> None:
        """Raise `LockLost` or `NotHeld` unless held, or, for a release, unless its release is still unanswered."""
        if self.state == HELD and now < self.valid_until and self.generation == _process.generation:
            return
        if self.over(now):
            self.raise_lost()
        if self.state != HELD and not (releasing and self.state == RELEASING):
            raise NotHeld(f"the lease on {self.name!r} was released before", name=self.name)

    def raise_lost(self) -> NoReturn:
        raise LockLost(
            f"the lock {self.name!r} was lost: {self.lost_reason}; somebody else may hold it by now",
            name=self.name,
            reason=self.lost_reason,
        )

    def released(self, removed: bool, late_adds: bool) -> None:
        self.state = RELEASED
        if self.in_flight:
            self.settled(removed, late_adds)
        else:
            self.claimed = self.waited = False
