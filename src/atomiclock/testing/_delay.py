"""Laws of the lock-delay: what was lost is kept from others for a while, and what was released is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ..backends import Traits
from ..errors import ConfigurationError, LockLost, LockTimeout
from ._base import SLACK, Laws, eventually, needs, vanish
from ._facade import Locks
from ._processes import Child, ProcessFixtures


class DelayLaws(ProcessFixtures, Laws):
    def test_a_lost_lock_is_granted_to_nobody_before_its_lock_delay_is_over(
        self, locks: Locks, another: Locks, name: str, brief: float, traits: Traits
    ) -> None:
        delay = max(2.0, 3 * traits.ttl_step)  # in which who is late by a moment is still told
        told: list[Any] = []
        begun = time.monotonic()
        lease = locks.acquire(name, ttl=brief, lock_delay=delay, renew=False, on_lost=told.append, timeout=10)
        eventually(lambda: told, brief + SLACK, "on_lost is called when its own time is over")
        assert lease.lost
        assert time.monotonic() - begun < brief + delay
        with pytest.raises(LockLost):
            lease.release()
        with pytest.raises(LockTimeout):
            locks.acquire(name, timeout=0)
        another.acquire(name, timeout=brief + delay + 3 * traits.ttl_step + SLACK).release()
        assert time.monotonic() - begun >= 0.95 * (brief + delay)

    def test_a_release_frees_it_at_once(self, locks: Locks, another: Locks, name: str) -> None:
        for again in (another, locks):
            with again.acquire(name, lock_delay=20, timeout=0) as lease:
                assert lease
        assert another.holder(name) is None

    def test_the_store_keeps_it_longer_than_the_holder_believes(
        self, locks: Locks, another: Locks, name: str, short: float
    ) -> None:
        ttl = max(1.0, short)
        with locks.acquire(name, ttl=ttl, lock_delay=20) as lease:
            begun = time.monotonic()
            while time.monotonic() - begun < ttl / 2:  # a renewal is due after a third
                assert 0 < lease.remaining <= lease.ttl == ttl
                assert _left(another, name) > 20
                time.sleep(0.02)
            lease.extend(5)
            assert ttl < lease.remaining <= 5
            assert _left(another, name) > 24

    def test_a_dead_holders_lock_is_kept(
        self, child: Callable[..., Child], locks: Locks, name: str, traits: Traits
    ) -> None:
        needs(traits.scope != "process", "its scope is one process")
        one = child("hold", options={"ttl": 10, "lock_delay": 20})
        one.says()
        one.kill()
        assert _left(locks, name) > 20
        assert locks.try_acquire(name) is None
        vanish(locks, name)

    def test_ttl_and_lock_delay_together_are_what_the_store_must_be_able_to_keep(
        self, locks: Locks, name: str, traits: Traits
    ) -> None:
        longest = traits.longest_ttl
        with pytest.raises(ConfigurationError, match="lock_delay"):
            locks.acquire(name, ttl=longest / 2, lock_delay=longest)
        with locks.acquire(name, ttl=10, lock_delay=longest / 2) as lease, pytest.raises(ConfigurationError):
            lease.extend(longest * 0.9)
        for bad in (-1, float("nan"), float("inf"), "5", None):
            with pytest.raises(ConfigurationError, match="lock_delay"):
                locks.acquire(name, lock_delay=bad)
        assert locks.holder(name) is None


def _left(locks: Locks, name: str) -> float:
    holder = locks.holder(name)
    assert holder is not None
    assert holder.remaining is not None
    return holder.remaining
