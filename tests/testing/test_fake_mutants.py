"""Mistakes planted into `FakeStore`, one by one: each must make one of a few scenarios fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from atomiclock import LockManager, LockTimeout, acquire_lock
from atomiclock.testing import FakeStore, _clock, _fake, _fake_keeper, _fake_world

Patch = pytest.MonkeyPatch


def a_loss_is_told_at_once() -> None:
    told: list[Any] = []

    def alarm(lease: Any) -> None:
        time.sleep(0.05)
        told.append(lease)

    with FakeStore() as store:
        lease = LockManager().acquire("nightly", on_lost=alarm)
        store.lose(lease)
        assert lease.lost
        assert told == [lease]


def a_lost_lock_can_be_taken() -> None:
    with FakeStore() as store:
        lease = LockManager().acquire("nightly")
        store.lose(lease)
        store.take("nightly")


def renewals_happen_on_the_way() -> None:
    with FakeStore() as store, acquire_lock("nightly", ttl=30) as lease:
        store.advance(100)
        assert lease


def time_stands_still() -> None:
    with FakeStore() as store, acquire_lock("nightly", ttl=30) as lease:
        before = lease.remaining
        time.sleep(0.01)
        assert lease.remaining == before
        store.advance(1)
        assert lease.remaining == before - 1


def a_wait_for_oneself_ends() -> None:
    with FakeStore() as store, store.take("nightly"), pytest.raises(LockTimeout):
        LockManager().acquire("nightly", timeout=5)


def a_wait_for_another_goes_on() -> None:
    with FakeStore() as store, ThreadPoolExecutor() as pool:
        theirs = store.take("nightly")
        waiting = pool.submit(LockManager().acquire, "nightly", timeout=5, renew=False)
        store.wait_for_waiter("nightly", timeout=1)
        time.sleep(0.02)
        theirs.release()
        waiting.result(10).release()


def a_woken_thread_gets_to_run_before_time_goes_on() -> None:
    with FakeStore() as store, ThreadPoolExecutor() as pool:
        store.take("nightly", ttl=10)
        waiting = pool.submit(LockManager().acquire, "nightly", timeout=20, ttl=30)
        store.wait_for_waiter("nightly", timeout=1)
        store.advance(1000)
        assert waiting.result(10)


def what_was_configured_comes_back() -> None:
    before = repr(LockManager())
    with FakeStore():
        assert repr(LockManager()) != before
    assert repr(LockManager()) == before


SCENARIOS = [
    a_loss_is_told_at_once,
    a_lost_lock_can_be_taken,
    renewals_happen_on_the_way,
    time_stands_still,
    a_wait_for_oneself_ends,
    a_wait_for_another_goes_on,
    a_woken_thread_gets_to_run_before_time_goes_on,
    what_was_configured_comes_back,
]


def lose_leaves_the_holder_in_the_dark(patch: Patch) -> None:
    patch.setattr(_fake_keeper.FakeKeeper, "renew_now", lambda self, token: None)


def lose_leaves_the_lock(patch: Patch) -> None:
    patch.setattr(_fake_world.Fake, "drop", lambda self, key, token: True)


def advance_leaps(patch: Patch) -> None:
    def step(self: Any, target: float) -> bool:
        self._now = target
        self._chores.turn()
        self.wake_all()
        return False

    patch.setattr(_clock.VirtualClock, "step", step)


def callbacks_are_not_waited_for(patch: Patch) -> None:
    patch.setattr(_fake_keeper.FakeKeeper, "told", lambda self, seconds: True)


def threads_are_not_waited_for(patch: Patch) -> None:
    original = _fake_world.Fake.turn_of_another

    def slow(self: Any, key: str, mine: str) -> float | None:
        self.clock.mutex.release()
        time.sleep(0.05)
        self.clock.mutex.acquire()
        return original(self, key, mine)

    patch.setattr(_fake_world.Fake, "turn_of_another", slow)
    patch.setattr(_clock.VirtualClock, "_quiet", lambda self, mine=None: True)


def nobody_is_alone(patch: Patch) -> None:
    patch.setattr(_fake_world, "only_me", lambda party: False)


def everybody_is_alone(patch: Patch) -> None:
    patch.setattr(_fake_world, "only_me", lambda party: True)


def the_real_keeper_keeps(patch: Patch) -> None:
    patch.setattr(_fake_keeper.Routing, "on", lambda self: None)


def nothing_is_restored(patch: Patch) -> None:
    original = _fake._configure
    patch.setattr(
        _fake, "_configure", lambda configured: original(configured) if "fake://" in str(configured) else None
    )


MUTANTS = [
    lose_leaves_the_holder_in_the_dark,
    lose_leaves_the_lock,
    advance_leaps,
    callbacks_are_not_waited_for,
    threads_are_not_waited_for,
    nobody_is_alone,
    everybody_is_alone,
    the_real_keeper_keeps,
    nothing_is_restored,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_unbroken_it_passes(scenario: Callable[[], None]) -> None:
    scenario()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_mutant_is_found(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    from atomiclock import _options

    monkeypatch.setattr(_options, "_configured", dict(_options._configured))
    monkeypatch.setattr(_clock, "STALLED", 0.2)
    monkeypatch.setattr(_clock, "PATIENCE", 0.2)
    mutant(monkeypatch)
    assert any(fails(scenario) for scenario in SCENARIOS)


def fails(scenario: Callable[[], None]) -> bool:
    try:
        scenario()
    except Exception:
        return True
    return False
