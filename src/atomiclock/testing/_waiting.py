"""Laws of waiting: deadlines, wake-ups, and what a waiter leaves behind."""

from __future__ import annotations

import time

import pytest

from ..backends import Traits
from ..errors import ConfigurationError, LockTimeout
from ._base import SLACK, Laws, Threads, eventually
from ._facade import INTERRUPTIONS, Locks
from ._trouble import Interrupt, Trouble


class Waiter:
    """A thread that waits for a lock, notes when it got it, and releases it."""

    def __init__(self, threads: Threads, locks: Locks, name: str) -> None:
        self.got = 0.0
        self._locks = locks
        self._name = name
        threads.start(self._wait)
        time.sleep(0.05)  # it should be waiting by then; if it is not, the law holds more easily

    def _wait(self) -> None:
        with self._locks.acquire(self._name, ttl=20, timeout=20):
            self.got = time.monotonic()


def soon(traits: Traits) -> float:
    """Seconds within which a waiter must have noticed a release."""
    return 1.5 if traits.waits == "wake" else 5.0


class WaitingLaws(Laws):
    def test_a_timeout_is_one_total_deadline(self, locks: Locks, another: Locks, name: str) -> None:
        with locks.acquire(name, owner="somebody"):
            begun = time.monotonic()
            with pytest.raises(LockTimeout) as raised:
                another.acquire(name, timeout=0.15)
            waited = time.monotonic() - begun
        assert 0.1 <= waited <= 0.15 + SLACK
        assert raised.value.name == name
        assert raised.value.owner == "somebody"
        assert 0.1 <= raised.value.waited <= 0.15 + SLACK

    def test_a_timeout_of_zero_is_one_attempt(self, locks: Locks, another: Locks, name: str) -> None:
        another.acquire(name, timeout=0).release()
        with locks.acquire(name):
            begun = time.monotonic()
            with pytest.raises(LockTimeout):
                another.acquire(name, timeout=0)
            assert time.monotonic() - begun < SLACK

    def test_a_bad_timeout_is_refused_before_anything_is_stored(self, locks: Locks, name: str) -> None:
        for timeout in (-1, -0.001, float("nan"), float("inf"), "5", True):
            with pytest.raises(ConfigurationError, match="timeout"):
                locks.acquire(name, timeout=timeout)
        assert locks.holder(name) is None

    def test_a_waiter_is_woken_by_the_release(self, locks: Locks, another: Locks, name: str, traits: Traits) -> None:
        delays = []
        for _ in range(2):
            lease = locks.acquire(name, ttl=20)
            with Threads() as threads:
                waiter = Waiter(threads, another, name)
                released = time.monotonic()
                lease.release()
            delays.append(waiter.got - released)
        assert max(delays) < 5.0, "long before the ttl"
        if traits.waits == "wake":
            assert min(delays) < 0.2, "not by looking again"

    def test_waiters_get_in_one_after_another(self, locks: Locks, another: Locks, name: str, traits: Traits) -> None:
        lease = locks.acquire(name, ttl=20)
        with Threads() as threads:
            waiters = [Waiter(threads, mine, name) for mine in (another, locks, another, locks)]
            released = time.monotonic()
            lease.release()
        assert max(waiter.got for waiter in waiters) - released < 3 * soon(traits)

    def test_a_waiter_gets_in_when_the_holder_expires(
        self, locks: Locks, another: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        begun = time.monotonic()
        lease = locks.acquire(name, ttl=brief, renew=False, timeout=10)
        with another.acquire(name, timeout=brief + 10):
            waited = time.monotonic() - begun
            assert lease.lost
        assert brief <= waited <= brief + 2 * traits.ttl_step + SLACK

    def test_a_waiter_that_timed_out_does_not_keep_others_from_being_woken(
        self, locks: Locks, another: Locks, name: str, traits: Traits
    ) -> None:
        lease = locks.acquire(name, ttl=20)
        with pytest.raises(LockTimeout):
            another.acquire(name, timeout=0.05)
        with Threads() as threads:
            waiter = Waiter(threads, another, name)
            released = time.monotonic()
            lease.release()
        assert waiter.got - released < soon(traits)
        assert locks.holder(name) is None

    def test_an_interrupted_waiter_does_not_keep_others_from_being_woken(
        self, locks: Locks, another: Locks, name: str, traits: Traits
    ) -> None:
        lease = locks.acquire(name, ttl=20)
        with pytest.raises(INTERRUPTIONS):
            another.interrupted(0.05, name, ttl=20)
        with Threads() as threads:
            waiter = Waiter(threads, another, name)
            released = time.monotonic()
            lease.release()
        assert waiter.got - released < soon(traits)
        eventually(lambda: locks.holder(name) is None, what="nothing is left")

    def test_a_wake_up_that_hits_an_interrupted_waiter_is_passed_on(
        self, locks: Locks, another: Locks, name: str, traits: Traits, troubled: Locks, trouble: Trouble
    ) -> None:
        lease = locks.acquire(name, ttl=20)

        def interrupted() -> None:
            with pytest.raises(INTERRUPTIONS):
                troubled.acquire(name, ttl=20, timeout=20)

        with Threads() as threads:
            threads.start(interrupted)
            time.sleep(0.05)
            waiter = Waiter(threads, another, name)
            trouble.once("after", "wait", Interrupt())
            if traits.waits == "poll":  # its waits end by themselves, and the next ask may be an add
                eventually(lambda: trouble.struck, what="it is interrupted")
            released = time.monotonic()
            lease.release()
        assert waiter.got - released < soon(traits) + SLACK
        eventually(lambda: locks.holder(name) is None, what="nothing is left")
