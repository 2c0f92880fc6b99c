"""What stands behind a `FakeStore`: its locks, who waits for them, its clock and its keeper."""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from typing import Any, NamedTuple

from .. import _process
from .._hold import HELD, Hold
from ..backends import Holder
from ._clock import Loop, Sleeper, VirtualClock, running_loop
from ._fake_keeper import FakeKeeper, Routing

GRACE = 0.05
"""Seconds for which a free lock is kept for the waiter whose turn it is."""


class Party(NamedTuple):
    """Who does something: a thread, or a task on it."""

    thread: threading.Thread
    task: weakref.ref[asyncio.Task[Any]] | None


def current_party() -> Party:
    task = asyncio.current_task() if running_loop() is not None else None
    return Party(threading.current_thread(), None if task is None else weakref.ref(task))


def only_me(party: Party) -> bool:
    """Whether `party` can do nothing while the caller waits: it is the caller, is below it, or has ended."""
    me = current_party()
    if party.thread is not me.thread:
        return False
    if me.task is None or party.task is None:
        return True
    task = party.task()
    return task is None or task is me.task() or task.done()


class Entry(NamedTuple):
    """A lock that is held."""

    token: str
    owner: str
    fence: int
    expires: float
    party: Party

    def holder(self, now: float) -> Holder:
        remaining = None if math.isinf(self.expires) else self.expires - now
        return Holder(self.owner, self.token, self.fence, remaining)


class Waiter:
    """Somebody in a lock's queue; without a sleeper while it asks by itself."""

    def __init__(self) -> None:
        self.sleeper: Sleeper | None = None
        self.grace: float | None = None


class Fake:
    """One fake store: the locks, who waits for them, the clock and the keeper. `clock.mutex` guards all of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Make it an empty store that works."""
        self.keeper = FakeKeeper(lambda: self.clock())
        # A whole number, so that sums of whole seconds meet exactly; and near what real backends call now.
        self.clock = VirtualClock(float(math.ceil(_process.clock())), self.keeper)
        self.locks: dict[str, Entry] = {}
        self.waiters: dict[str, dict[str, Waiter]] = {}  # by key, then by token in the order of arrival
        self.fence = 0
        self.down: Party | None = None
        self.closed = False

    def expect(self, hold: Hold, loop: Loop | None) -> None:
        """Count a thread or task that was just granted a lock as working until its keeper knows the lease."""
        if hold.state == HELD and (hold.renew or hold.on_lost is not None) and hold not in self.keeper.book.live:
            self.clock.count(loop, 1)
            self.keeper.expected[hold.token] = lambda: self.clock.count(loop, -1)

    def current(self, key: str) -> Entry | None:
        entry = self.locks.get(key)
        return entry if entry is not None and entry.expires > self.clock() else None

    def grant(self, key: str, token: str, owner: str, ttl: float) -> int:
        self.fence += 1
        self.locks[key] = Entry(token, owner, self.fence, self.clock() + ttl, current_party())
        return self.fence

    def drop(self, key: str, token: str) -> bool:
        """Remove the lock if `token` has it; whether it had."""
        entry = self.current(key)
        if entry is None or entry.token != token:
            return False
        del self.locks[key]
        return True

    def wake(self, key: str) -> None:
        """Wake the two who have waited longest: the second in case that the first is on a loop which was stopped."""
        asleep = (waiter.sleeper for waiter in self.waiters.get(key, {}).values() if waiter.sleeper is not None)
        woken = (sleeper for sleeper in asleep if sleeper.wake())
        next(woken, None)
        next(woken, None)

    def leave(self, key: str, token: str) -> None:
        queue = self.waiters.get(key, {})
        queue.pop(token, None)
        if not queue:
            self.waiters.pop(key, None)

    def turn_of_another(self, key: str, mine: str) -> float | None:
        """Seconds for which a free lock is left to who has waited longest; `None` if that is us."""
        now = self.clock()
        queue = self.waiters.get(key, {})
        for token, waiter in list(queue.items()):
            if token == mine:
                return None
            if waiter.grace is None:
                waiter.grace = now + GRACE
            if waiter.grace > now:
                return waiter.grace - now
            del queue[token]
        return None

    def hopeless(self, key: str | None) -> bool:
        """Whether who sleeps for the sake of `key` can only be helped by time: no other could help it."""
        with self.clock.mutex:
            if self.closed:
                return False
            if self.down is not None:
                return only_me(self.down)
            entry = None if key is None else self.current(key)
            return entry is not None and only_me(entry.party)


open_fakes: dict[str, Fake] = {}
_routing = Routing(lambda: [fake.keeper for fake in list(open_fakes.values())])


def open_fake(fake: Fake) -> None:
    """Let the fake's URL work, and its leases be kept."""
    open_fakes[fake.name] = fake
    _routing.on()


def close_fake(fake: Fake) -> None:
    """Lose all, tell nobody, and send away who waits."""
    with fake.clock.mutex:
        fake.closed = True
        for hold in list(fake.keeper.book.live):
            fake.keeper.discard(hold)
        fake.locks.clear()
        fake.clock.wake_all()
    open_fakes.pop(fake.name, None)
    if not open_fakes:
        _routing.off()


def _in_child() -> None:
    """A forked child finds its parent's fakes empty: the threads that hold something there do not exist in it."""
    for fake in open_fakes.values():
        fake.reset()
    if open_fakes:
        _routing.off()
        _routing.on()


_process.after_fork(_in_child)
