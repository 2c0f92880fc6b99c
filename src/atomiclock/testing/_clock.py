"""Virtual time: it stands still until it is told to move, and knows who sleeps on it until when."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

Loop = asyncio.AbstractEventLoop

PATIENCE = 5.0
"""Real seconds that a move of the clock waits for a thread, a loop or a callback that it has woken."""
STALLED = 10.0
"""Real seconds after which a sleeper gives up, if nothing at all happened meanwhile: nobody moves the clock."""
TURNS = 10
"""Turns that a loop gets at each move, for tasks to come to where they wait."""
SAME = 1e-9
"""Seconds by which sums of fractions may miss each other and mean the same time."""


class Chores(Protocol):
    """What has to be done at certain times by nobody in particular: the keeper's work."""

    def due(self) -> float:
        """When the next is due."""
        ...

    def turn(self) -> None:
        """Do what is due by now."""

    def told(self, seconds: float) -> bool:
        """Whether all callbacks have returned, waiting `seconds` for those that have not."""
        ...


class VirtualClock:
    """Seconds that go by only in `advance` and `aadvance`; called, it tells the time.

    What is due on the way happens at its own time, one after the other. Who is woken gets to run until it sleeps
    again or is done, before the clock moves on: so it counts who is `working`, by event loop, threads under `None`.
    """

    def __init__(self, now: float, chores: Chores) -> None:
        self.mutex = threading.RLock()
        self.changed = threading.Condition(self.mutex)
        self.activity = 0
        self.sleepers: set[Sleeper] = set()
        self._chores = chores
        self._now = now
        self._alarms: list[tuple[float, int, Sleeper]] = []
        self._number = count()
        self._working: Counter[Loop | None] = Counter()

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if self._used_on(running_loop()):
            raise RuntimeError("tasks of this event loop are waiting for a lock: use `await store.aadvance(...)`")
        target = self._now + seconds
        self.settle()
        while self.step(target):
            self.settle()

    async def aadvance(self, seconds: float) -> None:
        target = self._now + seconds
        await self.asettle()
        while self.step(target):
            await self.asettle()

    def step(self, target: float) -> bool:
        """Move to what is due next, and wake who sleeps until then; or to `target`, and false, if that comes first."""
        with self.mutex:
            self.activity += 1
            then = min(self._next_alarm(), self._chores.due())
            if then > target + SAME:
                self._now = max(self._now, target)
                return False
            self._now = max(self._now, then)
        self._chores.turn()  # first: a holder is told of its loss before a waiter gets in
        with self.mutex:
            while self._next_alarm() <= self._now + SAME:
                heappop(self._alarms)[2].wake()
        return True

    def _next_alarm(self) -> float:
        while self._alarms and self._alarms[0][2].awake:
            heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else float("inf")

    # Who is at work

    def settle(self) -> None:
        """Do what is due, and wait until who was woken sleeps again or is done: but for tasks of the caller's loop."""
        self._chores.turn()
        self._chores.told(PATIENCE)
        mine = running_loop()
        with self.changed:
            self.changed.wait_for(lambda: self._quiet(mine), PATIENCE)

    async def asettle(self) -> None:
        """The same, with turns of the running loop for its tasks."""
        end = time.monotonic() + PATIENCE
        for turn in count():
            self._chores.turn()
            await asyncio.sleep(0 if turn <= TURNS else 0.001)
            if turn >= TURNS and ((self._chores.told(0) and self._quiet()) or time.monotonic() > end):
                return

    def _quiet(self, mine: Loop | None = None) -> bool:
        return not any(
            number > 0
            for loop, number in list(self._working.items())
            if loop is None or (loop is not mine and loop.is_running())
        )

    def _used_on(self, loop: Loop | None) -> bool:
        with self.mutex:
            return loop is not None and (
                self._working[loop] > 0 or any(sleeper.loop is loop for sleeper in self.sleepers)
            )

    @contextmanager
    def working(self, loop: Loop | None) -> Iterator[None]:
        """Count whoever runs the body as at work."""
        self.count(loop, 1)
        try:
            yield
        finally:
            self.count(loop, -1)

    def count(self, loop: Loop | None, change: int) -> None:
        with self.changed:
            self.activity += 1
            self._working[loop] += change
            if not self._working[loop]:
                del self._working[loop]
            self.changed.notify_all()

    def fall_asleep(self, sleeper: Sleeper, until: float) -> None:
        with self.mutex:
            if not sleeper.awake:  # else it was woken before it could fall asleep
                self.sleepers.add(sleeper)
                heappush(self._alarms, (until, next(self._number), sleeper))
            self.count(sleeper.loop, -1)

    def wake_all(self) -> None:
        with self.mutex:
            for sleeper in list(self.sleepers):
                sleeper.wake()


class Sleeper:
    """One thread or task that sleeps on the clock, once. It counts as working from the moment that it is woken."""

    def __init__(self, clock: VirtualClock, loop: Loop | None = None) -> None:
        self.loop = loop
        self.awake = False
        self._clock = clock
        self._event = threading.Event()
        self._future = None if loop is None else loop.create_future()

    def wake(self) -> bool:
        """By any thread, any number of times; false if nobody is there any more."""
        if self.loop is not None and self.loop.is_closed():
            return False
        with self._clock.mutex:
            if not self.awake:
                self.awake = True
                self._clock.sleepers.discard(self)
                self._clock.count(self.loop, 1)
        self._event.set()
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(self._resume)
            except RuntimeError:  # closed in between
                return False
        return True

    def _resume(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def sleep(self, until: float, alone: Callable[[], bool]) -> None:
        """Sleep until `until` or woken. If `alone` nobody else can end it, so the clock runs."""
        self._clock.fall_asleep(self, until)
        try:
            while not self.awake and alone():
                self._clock.step(until)
                if not self.awake:
                    self._clock.settle()
            seen = self._clock.activity
            while not self._event.wait(STALLED):
                seen = self._still_moving(seen)
        finally:
            self.wake()  # an interrupt may have been what woke it

    async def asleep(self, until: float, alone: Callable[[], bool]) -> None:
        """The same for a task."""
        assert self._future is not None
        self._clock.fall_asleep(self, until)
        try:
            while not self.awake and alone():
                self._clock.step(until)
                if not self.awake:
                    await self._clock.asettle()
            seen = self._clock.activity
            while not (await asyncio.wait({self._future}, timeout=STALLED))[0]:
                seen = self._still_moving(seen)
        finally:
            self.wake()

    def _still_moving(self, seen: int) -> int:
        if self._clock.activity == seen:
            raise RuntimeError(
                f"waited {STALLED:g} real seconds for a lock of a FakeStore, on which nothing happened: "
                "its clock stands still until the test calls advance(), or gives back what it took"
            )
        return self._clock.activity


def running_loop() -> Loop | None:
    """The event loop that runs on this thread."""
    return asyncio._get_running_loop()
