"""Laws of unknown outcomes: replies that are lost or never come, and interruptions."""

from __future__ import annotations

import time

import pytest

from ..errors import BackendUnavailable, LockError
from ._base import SLACK, Laws, eventually
from ._facade import INTERRUPTIONS, Locks
from ._leases import holds
from ._trouble import BOUND, Hang, Interrupt, Lose, Trouble, When

BOTH = pytest.mark.parametrize("when", ["before", "after"])


class FailureLaws(Laws):
    @BOTH
    def test_an_acquire_whose_answer_is_lost_ends_in_a_lease(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str, when: When
    ) -> None:
        trouble.once(when, "add", Lose())
        lease = troubled.acquire(name, ttl=20, timeout=3)
        assert trouble.struck == 1
        assert holds(locks, lease)
        lease.release()
        locks.acquire(name, timeout=0).release()

    @BOTH
    def test_a_try_whose_answer_is_lost_is_never_none(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str, when: When
    ) -> None:
        with trouble.always(when, "add", Lose()), pytest.raises(BackendUnavailable) as raised:
            troubled.try_acquire(name, ttl=20)
        assert raised.value.name == name
        eventually(lambda: locks.holder(name) is None, 5, "nothing is left")

    def test_an_acquire_at_a_store_that_hangs_ends_at_its_deadline(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str
    ) -> None:
        begun = time.monotonic()
        with trouble.always("after", "add", Hang()), pytest.raises(LockError):
            troubled.acquire(name, ttl=20, timeout=0.1)
        assert time.monotonic() - begun < 0.1 + SLACK
        eventually(lambda: locks.holder(name) is None, 5, "nothing is left")

    def test_without_a_deadline_a_store_that_hangs_is_given_up_after_a_while(
        self, troubled: Locks, trouble: Trouble, name: str
    ) -> None:
        begun = time.monotonic()
        with trouble.always("before", "add", Hang()), pytest.raises(BackendUnavailable):
            troubled.acquire(name, ttl=20)
        assert time.monotonic() - begun < 3 * BOUND + SLACK

    @BOTH
    def test_a_release_whose_answer_is_lost_is_a_success(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str, when: When
    ) -> None:
        lease = troubled.acquire(name, ttl=20)
        trouble.once(when, "remove", Lose())
        lease.release()
        assert not lease.lost
        assert locks.holder(name) is None

    @BOTH
    def test_a_release_that_is_never_answered_is_unknown_and_may_be_repeated(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str, when: When
    ) -> None:
        lease = troubled.acquire(name, ttl=20)
        with trouble.always(when, "remove", Lose()), pytest.raises(BackendUnavailable):
            lease.release()
        assert not lease
        lease.release()
        assert locks.holder(name) is None

    @BOTH
    def test_an_extension_whose_answer_is_lost_is_tried_again(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str, when: When
    ) -> None:
        with troubled.acquire(name, ttl=5, renew=False) as lease:
            trouble.once(when, "extend", Lose())
            lease.extend(20)
            assert lease.remaining > 10
            assert holds(locks, lease)

    def test_an_acquire_that_is_interrupted_when_the_store_has_acted_leaves_no_lock(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str
    ) -> None:
        trouble.once("after", "add", Interrupt())
        with pytest.raises(INTERRUPTIONS):
            troubled.acquire(name, ttl=20)
        eventually(lambda: locks.try_acquire(name), SLACK, "nothing is left").release()

    def test_a_try_that_is_interrupted_when_the_store_has_acted_leaves_no_lock(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str
    ) -> None:
        trouble.once("after", "add", Interrupt())
        with pytest.raises(INTERRUPTIONS):
            troubled.try_acquire(name, ttl=20)
        eventually(lambda: locks.try_acquire(name), SLACK, "nothing is left").release()

    @BOTH
    def test_a_release_that_is_interrupted_may_be_repeated(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str, when: When
    ) -> None:
        lease = troubled.acquire(name, ttl=20)
        trouble.once(when, "remove", Interrupt())
        with pytest.raises(INTERRUPTIONS):
            lease.release()
        assert not lease
        lease.release()
        assert locks.holder(name) is None

    def test_an_interrupted_release_that_is_not_repeated_frees_the_lock(
        self, troubled: Locks, trouble: Trouble, locks: Locks, name: str
    ) -> None:
        lease = troubled.acquire(name, ttl=20)
        trouble.once("before", "remove", Interrupt())
        with pytest.raises(INTERRUPTIONS):
            lease.release()
        eventually(lambda: locks.try_acquire(name), SLACK, "nothing is left").release()
