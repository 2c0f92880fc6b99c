"""Laws of renewal, and of telling the holder that its lease is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest

from ..backends import Traits
from ..errors import ConfigurationError, LockLost
from ._async_facade import AsyncLocks
from ._base import SLACK, Laws, eventually, lost, stays, vanish
from ._facade import Locks
from ._leases import holds
from ._trouble import Lose, Trouble


class RenewalLaws(Laws):
    def test_renewal_keeps_the_lock_beyond_its_ttl_and_stops_at_release(
        self, locks: Locks, another: Locks, name: str, short: float, traits: Traits, brief: float
    ) -> None:
        told: list[Any] = []
        lease = locks.acquire(name, ttl=short, on_lost=told.append)
        stays(lambda: lease and another.try_acquire(name) is None, 2 * short, "held beyond the ttl")
        lease.release()
        begun = time.monotonic()
        another.acquire(name, ttl=brief, renew=False, timeout=5)
        eventually(lambda: locks.try_acquire(name), brief + 2 * traits.ttl_step + SLACK, "nobody renews it").release()
        assert time.monotonic() - begun >= brief
        assert not told, "a lease that was released is not lost"

    def test_without_renewal_it_ends(self, locks: Locks, name: str, brief: float) -> None:
        assert "renew=False" in (lost(locks, name, brief).lost_reason or "")

    def test_max_hold_stops_renewal(self, locks: Locks, another: Locks, name: str, brief: float) -> None:
        begun = time.monotonic()
        lease = locks.acquire(name, ttl=brief, max_hold=brief / 2, timeout=10)
        eventually(lambda: lease.lost, 2 * brief + SLACK)
        assert time.monotonic() - begun >= brief / 2
        assert "max_hold" in (lease.lost_reason or "")
        another.acquire(name, timeout=2 * brief + SLACK).release()

    def test_on_lost_is_called_once_with_the_lease_when_the_ttl_is_over(
        self, locks: Locks, name: str, brief: float
    ) -> None:
        told: list[Any] = []
        lease = locks.acquire(name, ttl=brief, renew=False, on_lost=told.append, timeout=10)
        eventually(lambda: told, SLACK, "on_lost is called")
        assert [one.token for one in told] == [lease.token]
        assert told[0].lost
        stays(lambda: len(told) == 1, 0.1)

    def test_on_lost_is_called_when_a_renewal_finds_the_lock_gone(
        self, locks: Locks, another: Locks, name: str, short: float
    ) -> None:
        told: list[Any] = []
        lease = locks.acquire(name, ttl=short, on_lost=told.append)
        vanish(another, name)
        with another.acquire(name, ttl=20) as next_lease:
            eventually(lambda: told, short + SLACK, "on_lost is called")
            assert lease.lost
            assert holds(another, next_lease), "the renewal must not touch it"
        assert [one.token for one in told] == [lease.token]

    def test_on_lost_cancel_cancels_the_body_of_a_task(self, locks: Locks, another: Locks, name: str) -> None:
        if not isinstance(locks, AsyncLocks):
            with pytest.raises(ConfigurationError, match="async with"):
                locks.acquire(name, on_lost="cancel")
            assert locks.holder(name) is None
            return
        manager, entered = locks.manager, threading.Event()
        reached: list[str] = []

        async def body() -> None:
            async with manager.acquire(name, ttl=0.5, on_lost="cancel") as lease:
                reached.append(lease.token)
                entered.set()
                await asyncio.sleep(20)
                reached.append("the end")

        running = asyncio.run_coroutine_threadsafe(body(), locks.thread.loop)
        assert entered.wait(5)
        vanish(another, name)
        with pytest.raises(LockLost):
            running.result(5)
        assert len(reached) == 1

    def test_a_dropped_lease_is_not_renewed_for_ever(
        self, locks: Locks, another: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        lease = locks.acquire(name, ttl=brief, timeout=10)
        del lease
        gc.collect()
        another.acquire(name, timeout=brief + 2 * traits.ttl_step + SLACK).release()

    def test_a_renewal_that_fails_once_is_tried_again_in_time(
        self, troubled: Locks, trouble: Trouble, another: Locks, name: str, short: float
    ) -> None:
        trouble.once("before", "extend", Lose())
        with troubled.acquire(name, ttl=1.3 * short) as lease:
            stays(lambda: lease and another.try_acquire(name) is None, 1.7 * short)
        assert trouble.struck == 1

    def test_a_holder_that_cannot_renew_knows_before_anybody_gets_in(
        self, troubled: Locks, trouble: Trouble, another: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        told: list[Any] = []
        with trouble.always("before", "extend", Lose()):
            lease = troubled.acquire(name, ttl=brief, on_lost=told.append, timeout=10)
            next_lease = eventually(lambda: another.try_acquire(name), brief + 2 * traits.ttl_step + SLACK)
            assert lease.lost
            eventually(lambda: told)
            next_lease.release()
