"""`FakeStore` under threads: what an application's author does in a test, and sees."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

import atomiclock
from atomiclock import (
    AsyncLockManager,
    BackendUnavailable,
    ConfigurationError,
    Lease,
    LockLost,
    LockManager,
    LockTimeout,
    acquire_lock,
    configure,
    try_lock,
)
from atomiclock.testing import FakeStore


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with FakeStore() as store:
        yield store


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def nightly(*steps: Callable[[], object], **options: Any) -> list[int]:
    """An application's function that holds a lock; which steps it took."""
    done = []
    with acquire_lock("nightly", **options) as lease:
        for number, step in enumerate(steps):
            lease.check()
            step()
            done.append(number)
    return done


class TestLosing:
    def test_the_holder_knows_at_once_and_leaves_with_an_error(self, store: FakeStore) -> None:
        def body() -> None:
            with acquire_lock("nightly") as lease:
                store.lose(lease)
                assert lease.lost
                assert not lease
                assert lease.remaining == 0

        with pytest.raises(LockLost, match="no longer has it"):
            body()

    def test_a_body_stops_at_its_next_check(self, store: FakeStore) -> None:
        later = []
        with pytest.raises(LockLost):
            nightly(lambda: store.lose("nightly"), lambda: later.append(1))
        assert not later

    def test_on_lost_has_returned_when_lose_does(self, store: FakeStore) -> None:
        told: list[Lease] = []
        threads = []

        def alarm(lease: Lease) -> None:
            time.sleep(0.05)
            threads.append(threading.current_thread())
            told.append(lease)

        lease = LockManager().acquire("nightly", on_lost=alarm)
        store.lose(lease)
        assert told == [lease]
        assert threads != [threading.current_thread()], "as in earnest"

    def test_another_can_get_in_and_is_not_touched(self, store: FakeStore) -> None:
        lease = LockManager().acquire("nightly")
        store.lose(lease)
        other = store.take("nightly", owner="another")
        with pytest.raises(LockLost):
            lease.release()
        assert store.holder("nightly") is not None
        other.release()
        assert store.holder("nightly") is None

    def test_who_waits_gets_it_after_the_holder_was_told(self, store: FakeStore, pool: ThreadPoolExecutor) -> None:
        order: list[str] = []
        manager = LockManager()
        lease = manager.acquire("nightly", on_lost=lambda _: order.append("lost"))
        waiting = pool.submit(nightly, lambda: order.append("next"), timeout=60)
        store.wait_for_waiter("nightly")
        store.lose(lease)
        assert waiting.result(10) == [0]
        assert order == ["lost", "next"]

    def test_a_lease_that_does_not_renew_learns_of_it_as_in_earnest(self, store: FakeStore) -> None:
        locks = LockManager(ttl=30, renew=False)
        first, second, third = (locks.acquire(name) for name in "abc")
        for lease in (first, second, third):
            store.lose(lease)
        assert all((first, second, third)), "they do not ask"
        with pytest.raises(LockLost):
            first.release()
        with pytest.raises(LockLost):
            second.extend()
        store.advance(31)
        assert third.lost

    def test_a_loss_during_an_outage_shows_when_the_store_answers(self, store: FakeStore) -> None:
        lease = LockManager().acquire("nightly", ttl=30)
        with store.outage():
            store.lose(lease)
            assert lease
        store.advance(2)
        assert lease.lost

    def test_what_cannot_be_lost_is_refused_with_the_reason(self, store: FakeStore) -> None:
        locks = LockManager()
        with pytest.raises(ValueError, match="nobody holds 'nightly'"):
            store.lose("nightly")
        released = locks.acquire("released")
        released.release()
        gone = locks.acquire("gone")
        store.lose(gone)
        elsewhere = LockManager("memory://elsewhere").acquire("nightly")
        with FakeStore() as another:
            foreign = LockManager(another.url).acquire("nightly")
            for lease, reason in (
                (released, "not held any more"),
                (gone, "not held any more"),
                (elsewhere, "not a lease of this FakeStore"),
                (foreign, "not a lease of this FakeStore"),
            ):
                with pytest.raises(ValueError, match=reason):
                    store.lose(lease)
            foreign.release()
        with pytest.raises(TypeError, match="a lease or the name"):
            store.lose(42)  # type: ignore[arg-type]  # that is the mistake
        elsewhere.release()

    def test_the_loss_is_logged(self, store: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
        lease = LockManager().acquire("nightly")
        with caplog.at_level(logging.WARNING, "atomiclock"):
            store.lose(lease)
        assert "'nightly' was lost" in caplog.text


class TestTaking:
    def test_the_busy_path(self, store: FakeStore) -> None:
        theirs = store.take("nightly", owner="worker-2")
        with pytest.raises(LockTimeout, match="worker-2"):
            nightly(timeout=0)
        with try_lock("nightly") as lease:
            assert lease is None
        theirs.release()
        assert nightly() == []

    def test_a_wait_for_what_the_test_itself_has_ends_at_once(self, store: FakeStore) -> None:
        begun = time.monotonic()
        with store.take("nightly"), pytest.raises(LockTimeout) as raised:
            nightly(timeout=3600)
        assert raised.value.waited == pytest.approx(3600)
        assert time.monotonic() - begun < 60
        assert nightly() == []

    def test_a_wait_of_a_holder_for_itself_ends_too_and_its_lease_is_kept_meanwhile(self, store: FakeStore) -> None:
        with acquire_lock("nightly", ttl=30) as lease:
            with pytest.raises(LockTimeout):
                nightly(timeout=100)
            assert lease
            assert lease.remaining > 15

    def test_a_wait_that_would_never_end_is_an_error_instead(self, store: FakeStore) -> None:
        with store.take("nightly"), pytest.raises(RuntimeError, match="hang"):
            nightly()

    def test_what_was_taken_for_a_time_ends(self, store: FakeStore) -> None:
        store.take("nightly", ttl=5)
        assert nightly(timeout=10) == [], "after five seconds of virtual time"

    def test_a_thread_that_waits_gets_it_when_it_is_given_back(
        self, store: FakeStore, pool: ThreadPoolExecutor
    ) -> None:
        theirs = store.take("nightly")
        waiting = pool.submit(nightly, lambda: None, timeout=60)
        store.wait_for_waiter("nightly")
        store.advance(59)
        assert not waiting.done()
        theirs.release()
        assert waiting.result(10) == [0]

    def test_a_lock_that_is_held_cannot_be_taken(self, store: FakeStore) -> None:
        with acquire_lock("nightly", owner="me"), pytest.raises(ValueError, match="held by me"):
            store.take("nightly")

    def test_to_give_it_back_twice_harms_nobody(self, store: FakeStore) -> None:
        with store.take("nightly") as theirs:
            theirs.release()
            with acquire_lock("nightly") as lease:
                theirs.release()
                assert store.holder("nightly") is not None
                assert lease


class TestTime:
    def test_it_stands_still_unless_it_is_advanced(self, store: FakeStore) -> None:
        lease = LockManager().acquire("nightly", ttl=30, renew=False)
        before = lease.remaining
        time.sleep(0.02)
        assert lease.remaining == before
        store.advance(10)
        assert lease.remaining == pytest.approx(before - 10)

    def test_without_renewal_a_lease_ends(self, store: FakeStore) -> None:
        told: list[Lease] = []
        lease = LockManager().acquire("nightly", ttl=30, renew=False, on_lost=told.append)
        store.advance(29)
        assert lease
        assert not told
        store.advance(2)
        assert told == [lease]
        assert "renew=False" in (lease.lost_reason or "")
        assert store.holder("nightly") is None

    def test_with_renewal_it_lives_for_days(self, store: FakeStore) -> None:
        with acquire_lock("nightly", ttl=30) as lease:
            store.advance(2 * 86400)
            lease.check()
            assert lease.remaining > 15

    def test_max_hold_ends_it(self, store: FakeStore) -> None:
        lease = LockManager().acquire("nightly", ttl=30, max_hold=100)
        store.advance(100)
        assert lease
        store.advance(31)
        assert "max_hold" in (lease.lost_reason or "")

    def test_a_thread_times_out_when_its_time_has_come(self, store: FakeStore, pool: ThreadPoolExecutor) -> None:
        store.take("nightly")
        waiting = pool.submit(nightly, timeout=5)
        store.wait_for_waiter("nightly")
        store.advance(4.9)
        assert not waiting.done()
        store.advance(0.2)
        error = waiting.exception(10)
        assert isinstance(error, LockTimeout)
        assert error.waited == pytest.approx(5)

    def test_a_thread_gets_in_when_the_holder_expires_on_the_way(
        self, store: FakeStore, pool: ThreadPoolExecutor
    ) -> None:
        order: list[str] = []
        locks = LockManager(ttl=10, renew=False)
        holder = locks.acquire("nightly", on_lost=lambda _: order.append("lost"))
        waiting = pool.submit(locks.acquire, "nightly", timeout=20, renew=True)
        store.wait_for_waiter("nightly")
        store.advance(100)
        lease = waiting.result(10)
        assert order == ["lost"]
        assert holder.lost
        assert lease, "it got in after ten seconds, and was renewed since"
        lease.release()

    def test_waiters_get_in_by_turn(self, store: FakeStore, pool: ThreadPoolExecutor) -> None:
        order: list[int] = []
        theirs = store.take("nightly")
        waiting = []
        for number in range(5):
            waiting.append(pool.submit(nightly, partial(order.append, number), timeout=60))
            while len(store._fake.waiters.get("atomiclock:nightly", {})) <= number:
                time.sleep(0.001)
        theirs.release()
        assert [one.result(10) for one in waiting] == [[0]] * 5
        assert order == list(range(5))

    def test_sums_of_fractions_meet(self, store: FakeStore, pool: ThreadPoolExecutor) -> None:
        store.take("nightly")
        waiting = pool.submit(nightly, timeout=1)
        store.wait_for_waiter("nightly")
        for _ in range(10):
            store.advance(0.1)
        assert isinstance(waiting.exception(10), LockTimeout)

    @pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
    def test_it_goes_forward_only(self, store: FakeStore, seconds: float) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            store.advance(seconds)

    def test_threads_that_contend_need_no_clock(self, store: FakeStore, pool: ThreadPoolExecutor) -> None:
        inside: list[int] = []

        def work() -> None:
            for _ in range(20):
                with acquire_lock("nightly", timeout=5):
                    inside.append(1)
                    assert len(inside) == 1
                    time.sleep(0.0005)
                    inside.pop()

        for one in [pool.submit(work) for _ in range(4)]:
            one.result(60)

    def test_threads_that_contend_while_time_goes_by_never_meet(
        self, store: FakeStore, pool: ThreadPoolExecutor
    ) -> None:
        inside: list[int] = []

        def work() -> None:
            for _ in range(30):
                with acquire_lock("nightly", ttl=3) as lease:
                    inside.append(1)
                    assert len(inside) == 1
                    lease.check()
                    inside.pop()

        running = [pool.submit(work) for _ in range(4)]
        while not all(one.done() for one in running):
            store.advance(0.5)
        for one in running:
            one.result()

    def test_nobody_waiting_is_told_after_a_while(self, store: FakeStore) -> None:
        with pytest.raises(TimeoutError, match="nobody waited for 'nightly'"):
            store.wait_for_waiter("nightly", timeout=0.01)

    def test_a_waiter_whom_nobody_helps_is_told(
        self, store: FakeStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from atomiclock.testing import _clock

        monkeypatch.setattr(_clock, "STALLED", 0.05)
        with store.take("nightly"):
            error = pool.submit(nightly, timeout=5).exception(10)
        assert isinstance(error, RuntimeError)
        assert "advance()" in str(error)


class TestOutage:
    def test_an_acquire_is_unavailable_at_once(self, store: FakeStore) -> None:
        begun = time.monotonic()
        with store.outage(), pytest.raises(BackendUnavailable, match="down"):
            nightly(timeout=60)
        assert time.monotonic() - begun < 30
        assert nightly() == []

    def test_what_is_held_survives_a_short_one(self, store: FakeStore) -> None:
        with acquire_lock("nightly", ttl=30) as lease:
            with store.outage():
                store.advance(15)
                assert lease
            store.advance(15)
            assert lease.remaining > 15

    def test_what_is_held_is_lost_in_a_long_one_before_others_get_in(self, store: FakeStore) -> None:
        told: list[Lease] = []
        lease = LockManager().acquire("nightly", ttl=30, on_lost=told.append)
        with store.outage():
            store.advance(40)
            assert told == [lease]
        assert "could not be renewed" in (lease.lost_reason or "")
        assert nightly() == []

    def test_a_release_in_it_is_unknown_and_is_made_up_for(self, store: FakeStore) -> None:
        lease = LockManager().acquire("nightly", ttl=30)
        with store.outage():
            with pytest.raises(BackendUnavailable):
                lease.release()
            assert store.holder("nightly") is not None
        store.advance(2)
        assert store.holder("nightly") is None

    def test_a_thread_that_waits_through_one_gets_its_lock(self, store: FakeStore, pool: ThreadPoolExecutor) -> None:
        theirs = store.take("nightly")
        waiting = pool.submit(nightly, lambda: None, timeout=60)
        store.wait_for_waiter("nightly")
        store.down()
        store.advance(0.5)
        store.up()
        theirs.release()
        assert waiting.result(10) == [0]

    def test_a_thread_gives_up_in_a_long_one(self, store: FakeStore, pool: ThreadPoolExecutor) -> None:
        store.take("nightly")
        waiting = pool.submit(nightly, timeout=60)
        store.wait_for_waiter("nightly")
        store.down()
        store.advance(10)
        assert isinstance(waiting.exception(10), BackendUnavailable)


class TestWhatUsesIt:
    def test_all_that_names_no_url(self, store: FakeStore) -> None:
        with acquire_lock("a"), LockManager().acquire("b"), LockManager(store.url).acquire("c"):
            with acquire_lock("d", f"{store.url}?ttl=7") as lease:
                assert lease.ttl == 7
                assert sorted(store.holders()) == ["a", "b", "c", "d"]
        assert store.holders() == {}
        assert store.url in repr(LockManager())
        assert store.url in repr(AsyncLockManager())
        assert store.url in repr(store)

    def test_other_stores_go_on_beside_it_on_real_time(self, store: FakeStore) -> None:
        told: list[Lease] = []
        beside = LockManager("memory://beside", ttl=1)
        kept, ends = beside.acquire("kept"), beside.acquire("ends", renew=False, on_lost=told.append)
        ours = LockManager().acquire("ours", ttl=1)
        store.advance(60)
        assert all((kept, ends, ours))
        end = time.monotonic() + 20
        while not told and time.monotonic() < end:
            time.sleep(0.01)
        assert told == [ends]
        assert kept, "its own keeper renews it"
        assert ours
        kept.extend()
        ours.extend()
        kept.release()
        ours.release()

    def test_a_real_lease_outlives_the_fake(self) -> None:
        beside = LockManager("memory://outlives", ttl=0.4)
        with FakeStore():
            lease = beside.acquire("kept")
        time.sleep(0.8)
        lease.check()
        lease.release()

    def test_the_namespace_is_the_applications(self, store: FakeStore) -> None:
        theirs = store.take("nightly", namespace="shop")
        assert nightly() == []
        configure(namespace="shop")
        with pytest.raises(LockTimeout):
            nightly(timeout=0)
        assert list(store.holders()) == ["nightly"]
        theirs.release()

    def test_what_was_configured_inside_is_undone_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from atomiclock import _options

        monkeypatch.setattr(_options, "_configured", {"url": "memory://before", "ttl": 7.0})
        monkeypatch.setenv("ATOMICLOCK_URL", "memory://environment")
        with FakeStore() as store:
            assert LockManager().acquire("nightly").ttl == 7, "the other options stay"
            configure("memory://changed", ttl=9)
            assert store.holder("nightly") is not None
        assert "memory://before" in repr(LockManager())
        lease = LockManager().acquire("nightly")
        assert lease.ttl == 7
        lease.release()

    def test_two_at_once_exclude_each_other_not_even_by_name(self) -> None:
        with FakeStore() as first, FakeStore() as second:
            with acquire_lock("nightly"), acquire_lock("nightly", first.url):
                assert list(first.holders()) == list(second.holders()) == ["nightly"]
            first.advance(100)

    def test_two_that_are_closed_out_of_order_restore_what_was_before(self) -> None:
        first, second = FakeStore(), FakeStore()
        before = repr(LockManager())
        first.__enter__()
        second.__enter__()
        first.__exit__()
        assert second.url in repr(LockManager())
        assert nightly() == []
        second.__exit__()
        assert repr(LockManager()) == before

    def test_its_url_works_only_while_it_is_open(self) -> None:
        with FakeStore() as store:
            locks = LockManager(store.url)
            lease = locks.acquire("nightly")
        for use in (lambda: LockManager(store.url), lambda: locks.acquire("nightly"), lambda: configured(store.url)):
            with pytest.raises(ConfigurationError, match="FakeStore"):
                use()
        with pytest.raises(LockLost):
            lease.release()
        assert "closed" in repr(store)

    def test_a_waiter_is_sent_away_at_the_end(self, pool: ThreadPoolExecutor) -> None:
        with FakeStore() as store:
            store.take("nightly")
            waiting = pool.submit(nightly)
            store.wait_for_waiter("nightly")
        assert isinstance(waiting.exception(10), ConfigurationError)

    @pytest.mark.parametrize("verb", ["lose", "take", "holder", "advance", "down", "up", "holders", "wait_for_waiter"])
    def test_it_is_used_while_it_is_open(self, verb: str) -> None:
        store = FakeStore()
        arguments = {"advance": (1,), "down": (), "up": (), "holders": ()}.get(verb, ("nightly",))
        with pytest.raises(RuntimeError, match="not open yet: write `with"):
            getattr(store, verb)(*arguments)
        with store:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            getattr(store, verb)(*arguments)
        with pytest.raises(RuntimeError, match="make another"):
            store.__enter__()

    def test_a_forked_child_finds_it_empty_and_working(self, store: FakeStore) -> None:
        with acquire_lock("nightly") as lease:
            child = os.fork()
            if not child:
                try:
                    fine = lease.lost and store.holders() == {} and nightly() == []
                    mine = LockManager().acquire("nightly", ttl=30)
                    store.advance(100)
                    fine = fine and bool(mine)
                    store.lose(mine)
                    fine = fine and mine.lost
                finally:
                    os._exit(0 if fine else 1)
            _, status = os.waitpid(child, 0)
            assert status == 0
            assert lease
            assert list(store.holders()) == ["nightly"]

    def test_a_dropped_lease_is_no_longer_renewed(self, store: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
        LockManager().acquire("nightly", ttl=30)
        with caplog.at_level(logging.WARNING, "atomiclock"):
            store.advance(31)
        assert "dropped without release" in caplog.text
        assert store.holder("nightly") is None

    def test_it_needs_no_pytest(self) -> None:
        import subprocess
        import sys

        code = (
            "import sys; from atomiclock.testing import FakeStore\n"
            "with FakeStore() as store: store.take('x').release()\n"
            "assert 'pytest' not in sys.modules"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, check=True)


def configured(url: str) -> None:
    atomiclock.LockManager(url).acquire("nightly")
