"""Laws of time: when a lease ends, for its holder and for everybody else."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from ..backends import Traits
from ..errors import ConfigurationError, LockError, LockLost
from ._base import SLACK, Laws, eventually, lost
from ._facade import Locks
from ._trouble import Delay, Trouble

BAD_TTLS: list[Any] = [0, 0.0, -1, -0.5, float("nan"), float("inf"), float("-inf"), True, "5", 10**400]


class ExpiryLaws(Laws):
    def test_nobody_gets_in_before_the_ttl_is_over_and_somebody_soon_after(
        self, locks: Locks, another: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        begun = time.monotonic()
        lease = locks.acquire(name, ttl=brief, renew=False, timeout=10)
        next_lease = eventually(lambda: another.try_acquire(name), brief + 2 * traits.ttl_step + SLACK)
        ended = time.monotonic()
        assert lease.lost, "the holder must know before anybody else gets in"
        assert ended - begun >= brief
        next_lease.release()

    def test_the_lease_is_never_longer_than_the_store_keeps_it(self, locks: Locks, name: str) -> None:
        with locks.acquire(name, ttl=5, renew=False) as lease:
            for _ in range(5):
                holder = locks.holder(name)
                assert holder is not None
                assert holder.remaining is not None
                assert 0 < lease.remaining <= holder.remaining
            lease.extend(3)
            holder = locks.holder(name)
            assert holder is not None
            assert 0 < lease.remaining <= (holder.remaining or 0)

    def test_validity_counts_from_before_the_request(
        self, troubled: Locks, trouble: Trouble, name: str, short: float
    ) -> None:
        trouble.once("after", "add", Delay(0.06))
        begun = time.monotonic()
        with troubled.acquire(name, ttl=short + 2, renew=False) as lease:
            assert lease.remaining <= short + 2 - 0.06
            trouble.once("after", "extend", Delay(0.06))
            extended = time.monotonic()
            lease.extend()
            assert lease.remaining <= short + 2 - 0.06
            assert extended - begun >= 0.06

    def test_a_reply_that_comes_when_the_lease_is_over_is_no_grant(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str, brief: float
    ) -> None:
        with trouble.always("after", "add", Delay(brief)), pytest.raises(LockError):
            troubled.acquire(name, ttl=brief, timeout=0)
        eventually(lambda: locks.holder(name) is None, 3 * brief + SLACK)

    def test_a_lost_lease_says_so_everywhere(self, locks: Locks, name: str, brief: float) -> None:
        lease = lost(locks, name, brief)
        assert not lease
        assert lease.lost_reason
        assert lease.remaining == 0
        for call in (lease.check, lease.extend, lease.release, lease.release, lease.check):
            with pytest.raises(LockLost) as raised:
                call()
            assert raised.value.name == name
            assert raised.value.reason == lease.lost_reason
        assert lease.lost, "once lost it stays lost"

    def test_leaving_with_after_a_loss_raises(self, locks: Locks, name: str, brief: float) -> None:
        with pytest.raises(LockLost):
            with locks.acquire(name, ttl=brief, renew=False) as lease:
                eventually(lambda: not lease)

    def test_the_bodys_own_error_wins_over_a_loss_and_carries_a_note(
        self, locks: Locks, name: str, brief: float
    ) -> None:
        with pytest.raises(ZeroDivisionError) as raised:
            with locks.acquire(name, renew=False) as lease:
                with suppress(LockLost):  # on a slow machine at once
                    lease.extend(brief)
                eventually(lambda: not lease)
                _ = 1 / 0
        assert any("LockLost" in note for note in getattr(raised.value, "__notes__", []))

    def test_the_bodys_own_error_releases_the_lock(self, locks: Locks, another: Locks, name: str) -> None:
        with pytest.raises(ZeroDivisionError) as raised:
            with locks.acquire(name):
                _ = 1 / 0
        assert not getattr(raised.value, "__notes__", [])
        assert another.holder(name) is None

    def test_a_bad_ttl_is_refused_before_anything_is_stored(self, locks: Locks, name: str) -> None:
        for ttl in (*BAD_TTLS, None):
            for call in (locks.acquire, locks.try_acquire, locks.lock):
                with pytest.raises(ConfigurationError, match="ttl"):
                    call(name, ttl=ttl)
        assert locks.holder(name) is None
        with locks.acquire(name, ttl=20, renew=False) as lease:
            for ttl in BAD_TTLS:
                with pytest.raises(ConfigurationError, match="ttl"):
                    lease.extend(ttl)
            assert lease.remaining > 10

    def test_a_ttl_that_is_too_long_is_refused(self, locks: Locks, name: str, traits: Traits) -> None:
        longer = traits.longest_ttl * 1.01
        with pytest.raises(ConfigurationError, match="ttl"):
            locks.acquire(name, ttl=longer)
        assert locks.holder(name) is None
        with locks.acquire(name) as lease, pytest.raises(ConfigurationError, match="ttl"):
            lease.extend(longer)

    def test_the_longest_ttl_is_honoured(self, locks: Locks, another: Locks, name: str, traits: Traits) -> None:
        with locks.acquire(name, ttl=traits.longest_ttl, renew=False) as lease:
            assert lease.remaining > traits.longest_ttl * 0.9
            assert another.try_acquire(name) is None

    def test_a_tiny_ttl_is_honoured_or_the_lock_is_not_granted(self, locks: Locks, name: str, traits: Traits) -> None:
        for ttl in (0.0001, 0.003, 0.0205):
            try:
                lease = locks.acquire(name, ttl=ttl, renew=False, timeout=0)
            except LockError:
                pass  # it was over before the answer came
            else:
                assert lease.remaining <= ttl
            eventually(lambda: locks.holder(name) is None, 3 * traits.ttl_step + SLACK, "never without an expiry")
