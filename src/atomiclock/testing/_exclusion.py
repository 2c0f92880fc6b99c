"""Laws of mutual exclusion."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

from ._base import Laws, Threads
from ._facade import Locks


class Guarded:
    """A counter that nobody protects, and that notices when two are in it."""

    def __init__(self) -> None:
        self.count = 0
        self.inside = 0
        self.overlaps = 0

    def step(self) -> None:
        self.inside += 1
        if self.inside != 1:
            self.overlaps += 1
        seen = self.count
        time.sleep(0.0005)  # others run meanwhile
        self.count = seen + 1
        self.inside -= 1


class ExclusionLaws(Laws):
    def test_never_two_inside_and_nobody_shut_out(self, locks: Locks, another: Locks, name: str) -> None:
        guarded = Guarded()

        def work(number: int) -> None:
            mine = (locks, another)[number % 2]
            for _ in range(8):
                with mine.acquire(name, ttl=20, timeout=20):
                    guarded.step()

        with Threads() as threads:
            for number in range(8):
                threads.start(partial(work, number))
        assert (guarded.overlaps, guarded.count) == (0, 64)

    def test_one_of_many_simultaneous_tries_wins(self, locks: Locks, another: Locks, name: str) -> None:
        rounds, tries = 10, 6
        won: list[list[Any]] = [[] for _ in range(rounds)]
        barrier = threading.Barrier(tries, timeout=20)

        def work(number: int) -> None:
            mine = (locks, another)[number % 2]
            for turn in range(rounds):
                barrier.wait()
                lease = mine.try_acquire(f"{name}-{turn}", ttl=20, renew=False)
                if lease is not None:
                    won[turn].append(lease)

        with Threads() as threads:
            for number in range(tries):
                threads.start(partial(work, number))
        assert [len(leases) for leases in won] == [1] * rounds
        for (lease,) in won:
            lease.release()

    def test_a_try_of_a_held_lock_is_none(self, locks: Locks, another: Locks, name: str) -> None:
        with locks.acquire(name) as lease:
            assert another.try_acquire(name) is None
            assert locks.try_acquire(name) is None, "it is not re-entrant"
            assert lease
        assert not lease

    def test_what_was_released_is_free_for_anybody(self, locks: Locks, another: Locks, name: str) -> None:
        for mine in (locks, another, locks, locks, another):
            lease = mine.try_acquire(name)
            assert lease
            lease.release()

    def test_different_names_do_not_exclude_each_other(self, locks: Locks, another: Locks, name: str) -> None:
        with locks.acquire(name), another.acquire(name + "x", timeout=0), locks.acquire("x" + name, timeout=0):
            assert another.try_acquire(name) is None

    def test_a_failed_try_changes_nothing(self, locks: Locks, another: Locks, name: str) -> None:
        with locks.acquire(name, ttl=20, renew=False, owner="first") as lease:
            before = locks.holder(name)
            for _ in range(3):
                assert another.try_acquire(name, ttl=500, owner="second") is None
            after = locks.holder(name)
        assert before is not None
        assert after is not None
        assert (after.token, after.owner) == (lease.token, "first")
        assert (after.remaining or 0) <= (before.remaining or 0)
