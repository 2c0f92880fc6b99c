"""Laws of the line: how the waiters of one manager share the lock, and that others are not starved by them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from ..backends import Traits
from ..errors import LockTimeout
from ._base import SLACK, Laws, Threads, eventually
from ._exclusion import Guarded
from ._facade import INTERRUPTIONS, Locks
from ._waiting import Waiter, soon


class LineLaws(Laws):
    @pytest.mark.parametrize("handover", [True, False])
    def test_many_waiters_of_one_manager_exclude_each_other(
        self, managers: Callable[..., Locks], name: str, traits: Traits, handover: bool
    ) -> None:
        locks, guarded = managers(handover=handover), Guarded()
        fences: list[Any] = []
        tokens: list[str] = []

        def work() -> None:
            for _ in range(8):
                with locks.acquire(name, ttl=20, timeout=30) as lease:
                    fences.append(lease.fence)
                    tokens.append(lease.token)
                    guarded.step()

        with Threads() as threads:
            for _ in range(8):
                threads.start(work)
        assert (guarded.overlaps, guarded.count) == (0, 64)
        assert len(set(tokens)) == 64
        if traits.fence != "none":
            assert all(a < b for a, b in pairwise(fences)), fences

    def test_waiters_of_one_manager_are_served_in_the_order_of_arrival(self, locks: Locks, name: str) -> None:
        served: list[int] = []

        def wait(number: int) -> None:
            with locks.acquire(name, ttl=20, timeout=30):
                served.append(number)

        with Threads() as threads:
            with locks.acquire(name, ttl=20):
                for number in range(6):
                    threads.start(partial(wait, number))
                    time.sleep(0.05)
        assert served == list(range(6))

    def test_waiters_of_one_manager_do_not_starve_another(self, locks: Locks, another: Locks, name: str) -> None:
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                with locks.acquire(name, ttl=20, timeout=30):
                    time.sleep(0.001)

        with Threads() as threads:
            for _ in range(4):
                threads.start(hammer)
            try:
                for _ in range(3):
                    another.acquire(name, ttl=20, timeout=15).release()
            finally:
                stop.set()

    def test_the_next_in_line_gets_in_when_the_lease_before_it_ends(
        self, locks: Locks, name: str, brief: float
    ) -> None:
        lease = locks.acquire(name, ttl=brief, renew=False, timeout=10)
        with Threads() as threads:
            waiters = [Waiter(threads, locks, name) for _ in range(3)]
        assert lease.lost
        assert all(waiter.got for waiter in waiters)

    def test_who_leaves_the_line_is_passed_over(self, locks: Locks, name: str, traits: Traits) -> None:
        lease = locks.acquire(name, ttl=20)
        with Threads() as threads:

            def timed_out() -> None:
                with pytest.raises(LockTimeout) as raised:
                    locks.acquire(name, timeout=0.3)
                assert raised.value.owner == lease.owner
                assert 0.25 <= raised.value.waited <= 0.3 + SLACK

            threads.start(timed_out)
            time.sleep(0.05)
            threads.start(timed_out)
            waiter = Waiter(threads, locks, name)
            with pytest.raises(INTERRUPTIONS):
                locks.interrupted(0.1, name, ttl=20)
            time.sleep(0.4)
            released = time.monotonic()
            lease.release()
        assert waiter.got - released < soon(traits)
        eventually(lambda: locks.holder(name) is None, what="nothing is left")

    def test_a_lease_that_was_passed_on_is_renewed_and_over_when_it_is_released(
        self, locks: Locks, another: Locks, name: str, traits: Traits
    ) -> None:
        ttl = max(0.6, 2 * traits.ttl_step)
        first = locks.acquire(name, ttl=ttl)
        got: list[Any] = []
        with Threads() as threads:
            threads.start(lambda: got.append(locks.acquire(name, ttl=ttl, timeout=20)))
            time.sleep(0.1)
            first.release()
        (second,) = got
        end = time.monotonic() + 2 * ttl
        while time.monotonic() < end:
            assert second, "it is renewed"
            assert another.try_acquire(name) is None
            time.sleep(ttl / 10)
        assert not first
        second.release()
        another.acquire(name, timeout=5).release()
