"""Laws of release and extension: by the owner, and by nobody else."""

from __future__ import annotations

import pickle

import pytest

from ..backends import Traits
from ..errors import LockError, LockLost, LockTimeout, NotHeld
from ._base import SLACK, Laws, eventually, lost, stays, vanish
from ._facade import Held, Locks


def holds(locks: Locks, lease: Held) -> bool:
    """Whether the store says that `lease` has its lock."""
    holder = locks.holder(lease.name)
    return holder is not None and holder.token == lease.token


class LeaseLaws(Laws):
    def test_released_twice_is_an_error_and_the_next_holder_is_untouched(
        self, locks: Locks, another: Locks, name: str
    ) -> None:
        lease = locks.acquire(name)
        lease.release()
        assert not lease
        assert not lease.lost, "it was released, not lost"
        assert lease.remaining == 0
        with another.acquire(name) as next_lease:
            for call in (lease.release, lease.extend, lease.release):
                with pytest.raises(NotHeld) as raised:
                    call()
                assert raised.value.name == name
            assert holds(another, next_lease)
            next_lease.extend()

    def test_a_lease_released_inside_its_with_is_not_released_again(
        self, locks: Locks, another: Locks, name: str
    ) -> None:
        with locks.acquire(name) as lease:
            lease.release()
            next_lease = another.acquire(name, timeout=0)
        assert holds(another, next_lease)
        next_lease.release()

    def test_release_after_expiry_never_deletes_the_next_holder(
        self, locks: Locks, another: Locks, name: str, brief: float
    ) -> None:
        lease = lost(locks, name, brief)
        with another.acquire(name, ttl=20, timeout=10) as next_lease:
            with pytest.raises(LockLost):
                lease.release()
            stays(lambda: holds(another, next_lease), 0.15, "the next holder has it")
            next_lease.extend()

    def test_release_of_what_the_store_lost_never_deletes_the_next_holder(
        self, locks: Locks, another: Locks, name: str
    ) -> None:
        lease = locks.acquire(name, ttl=20, renew=False)
        vanish(another, name)
        with another.acquire(name, ttl=20, timeout=10) as next_lease:
            with pytest.raises(LockLost):
                lease.release()
            assert holds(another, next_lease)
            assert lease.lost
            with pytest.raises(LockLost):
                lease.release()
            stays(lambda: holds(another, next_lease), 0.1)

    def test_leaving_with_when_the_store_lost_the_lock_raises(self, locks: Locks, another: Locks, name: str) -> None:
        with pytest.raises(LockLost), locks.acquire(name, ttl=20, renew=False):
            vanish(another, name)

    def test_an_extension_outlives_the_first_ttl(
        self, locks: Locks, another: Locks, name: str, short: float, traits: Traits
    ) -> None:
        with locks.acquire(name, ttl=short, renew=False) as lease:
            lease.extend(10 * short + 10)
            assert 10 * short < lease.remaining <= 10 * short + 10
            assert lease.ttl == 10 * short + 10
            stays(lambda: another.try_acquire(name) is None, short + traits.ttl_step + 0.05)
            assert lease

    def test_an_extension_without_a_ttl_starts_the_ttl_again(self, locks: Locks, name: str, short: float) -> None:
        with locks.acquire(name, ttl=short, renew=False) as lease:
            eventually(lambda: lease.remaining < 0.7 * short)
            try:
                lease.extend()
            except LockLost:
                pytest.fail("it was still held")
            assert lease.ttl == short
            holder = locks.holder(name)
            assert holder is not None
            assert (holder.remaining or 0) > 0.7 * short - 0.05

    def test_an_extension_may_shorten_the_lease(
        self, locks: Locks, another: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        lease, short = locks.acquire(name, ttl=20, renew=False), max(brief, 0.5)
        lease.extend(short)
        assert lease.remaining <= short
        eventually(lambda: another.try_acquire(name), short + 2 * traits.ttl_step + SLACK).release()
        assert lease.lost

    def test_extension_after_expiry_touches_nobody(
        self, locks: Locks, another: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        lease = lost(locks, name, brief)
        with pytest.raises(LockLost):
            lease.extend(500)
        with another.acquire(name, ttl=20, renew=False, timeout=10) as next_lease:
            with pytest.raises(LockLost):
                lease.extend(500)
            holder = another.holder(name)
            assert holder is not None
            assert holder.token == next_lease.token
            assert (holder.remaining or 0) <= 20 + traits.ttl_step

    def test_extension_of_what_the_store_lost_touches_nobody(
        self, locks: Locks, another: Locks, name: str, traits: Traits
    ) -> None:
        lease = locks.acquire(name, ttl=20, renew=False)
        vanish(another, name)
        with another.acquire(name, ttl=20, renew=False) as next_lease:
            with pytest.raises(LockLost):
                lease.extend(500)
            holder = another.holder(name)
            assert holder is not None
            assert holder.token == next_lease.token
            assert (holder.remaining or 0) <= 20 + traits.ttl_step

    def test_an_extension_of_what_nobody_has_does_not_bring_it_back(
        self, locks: Locks, another: Locks, name: str
    ) -> None:
        lease = locks.acquire(name, ttl=20, renew=False)
        vanish(another, name)
        with pytest.raises(LockLost):
            lease.extend()
        assert another.holder(name) is None

    def test_every_error_survives_pickling(self, locks: Locks, another: Locks, name: str, brief: float) -> None:
        errors: list[LockError] = []
        with locks.acquire(name), pytest.raises(LockTimeout) as timeout:
            another.acquire(name, timeout=0)
        errors.append(timeout.value)
        released = locks.acquire(name)
        released.release()
        for call in (released.release, lost(locks, name, brief).check, lambda: locks.acquire("")):
            with pytest.raises(LockError) as raised:
                call()
            errors.append(raised.value)
        for error in errors:
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
            assert type(copy) is type(error)
            assert str(copy) == str(error)
            assert copy.__dict__ == error.__dict__
            assert copy.name == error.name
