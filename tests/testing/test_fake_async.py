"""`FakeStore` under tasks: the same, told on the holder's own loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from atomiclock import (
    AsyncLease,
    AsyncLockManager,
    BackendUnavailable,
    ConfigurationError,
    LockLost,
    LockManager,
    LockTimeout,
    acquire_lock,
    try_lock,
)
from atomiclock.testing import FakeStore

T = TypeVar("T")


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with FakeStore() as store:
        yield store


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, on a loop of its own, within a bound."""

    async def bounded() -> T:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(bounded())


async def nightly(*steps: Callable[[], object], **options: Any) -> list[int]:
    done = []
    async with acquire_lock("nightly", **options) as lease:
        for number, step in enumerate(steps):
            lease.check()
            step()
            await asyncio.sleep(0)
            done.append(number)
    return done


class TestLosing:
    def test_the_holder_knows_at_once_and_leaves_with_an_error(self, store: FakeStore) -> None:
        async def body() -> None:
            async with acquire_lock("nightly") as lease:
                store.lose(lease)
                assert lease.lost

        with pytest.raises(LockLost, match="no longer has it"):
            run(body())

    def test_a_body_stops_at_its_next_check(self, store: FakeStore) -> None:
        later = []

        async def body() -> None:
            with pytest.raises(LockLost):
                await nightly(lambda: store.lose("nightly"), lambda: later.append(1))

        run(body())
        assert not later

    def test_cancel_ends_the_body_at_its_next_await(self, store: FakeStore) -> None:
        reached = []

        async def body() -> None:
            async with acquire_lock("nightly", on_lost="cancel") as lease:
                store.lose(lease)
                reached.append("still here")
                await asyncio.sleep(60)
                reached.append("never here")

        with pytest.raises(LockLost):
            run(body())
        assert reached == ["still here"]

    def test_cancel_ends_the_body_of_another_task(self, store: FakeStore) -> None:
        async def holds() -> None:
            async with acquire_lock("nightly", on_lost="cancel"):
                await asyncio.sleep(60)

        async def body() -> None:
            task = asyncio.create_task(holds())
            await store.aadvance(0)
            store.lose("nightly")
            with pytest.raises(LockLost):
                await task

        run(body())

    def test_a_callback_is_called_on_the_loop(self, store: FakeStore) -> None:
        told: list[AsyncLease] = []
        threads = []

        def alarm(lease: AsyncLease) -> None:
            told.append(lease)
            threads.append(threading.current_thread())

        async def body() -> None:
            lease = await AsyncLockManager().acquire("nightly", on_lost=alarm)
            store.lose(lease)
            await store.aadvance(0)
            assert told == [lease]

        run(body())
        assert threads == [threading.current_thread()]

    def test_a_coroutine_is_awaited(self, store: FakeStore) -> None:
        told: list[AsyncLease] = []

        async def alarm(lease: AsyncLease) -> None:
            await asyncio.sleep(0)
            told.append(lease)

        async def body() -> None:
            lease = await AsyncLockManager().acquire("nightly", ttl=30, on_lost=alarm, renew=False)
            await store.aadvance(31)
            assert told == [lease]

        run(body())

    def test_a_thread_can_lose_what_a_task_holds(self, store: FakeStore) -> None:
        told: list[AsyncLease] = []
        entered, end = threading.Event(), threading.Event()

        async def body() -> None:
            lease = await AsyncLockManager().acquire("nightly", on_lost=told.append)
            entered.set()
            await asyncio.to_thread(end.wait, 10)
            assert lease.lost

        thread = threading.Thread(target=lambda: run(body()))
        thread.start()
        assert entered.wait(10)
        store.lose("nightly")
        assert len(told) == 1, "its loop was given the time to call it"
        end.set()
        thread.join(10)
        assert not thread.is_alive()

    def test_a_lease_of_a_loop_that_is_gone_can_be_lost(self, store: FakeStore) -> None:
        told: list[AsyncLease] = []
        locks = AsyncLockManager()
        lease = run(acquired(locks, on_lost=told.append))
        store.lose(lease)
        assert lease.lost
        assert not told, "there is no loop to be told on"


class TestTaking:
    def test_the_busy_path(self, store: FakeStore) -> None:
        async def body() -> None:
            with store.take("nightly", owner="worker-2"):
                with pytest.raises(LockTimeout, match="worker-2"):
                    await nightly(timeout=0)
                async with try_lock("nightly") as lease:
                    assert lease is None
            assert await nightly() == []

        run(body())

    def test_a_wait_for_what_the_test_itself_has_ends_at_once(self, store: FakeStore) -> None:
        async def body() -> float:
            with store.take("nightly"), pytest.raises(LockTimeout) as raised:
                await nightly(timeout=600)
            return raised.value.waited

        assert run(body()) == pytest.approx(600)

    def test_what_was_taken_below_the_loop_is_the_tests_own_too(self, store: FakeStore) -> None:
        with store.take("nightly"), pytest.raises(LockTimeout):
            run(nightly(timeout=5))

    def test_what_an_ended_task_took_is_given_back_by_nobody(self, store: FakeStore) -> None:
        async def fixture() -> None:
            store.take("nightly")

        async def body() -> None:
            await asyncio.create_task(fixture())
            await nightly(timeout=5)

        with pytest.raises(LockTimeout):
            run(body())

    def test_a_task_that_waits_gets_it_when_it_is_given_back(self, store: FakeStore) -> None:
        async def body() -> None:
            theirs = store.take("nightly")
            waiting = asyncio.create_task(nightly(lambda: None, timeout=60))
            await store.aadvance(59)
            assert not waiting.done()
            theirs.release()
            assert await waiting == [0]

        run(body())

    def test_tasks_that_contend_need_no_clock(self, store: FakeStore) -> None:
        inside: list[int] = []

        async def work() -> None:
            for _ in range(20):
                async with acquire_lock("nightly", timeout=5):
                    inside.append(1)
                    assert len(inside) == 1
                    await asyncio.sleep(0.0005)
                    inside.pop()

        async def body() -> None:
            await asyncio.gather(*(work() for _ in range(4)))

        run(body())


class TestTime:
    def test_leases_are_renewed_or_end(self, store: FakeStore) -> None:
        async def body() -> None:
            locks = AsyncLockManager(ttl=30)
            kept, ends = await locks.acquire("kept"), await locks.acquire("ends", renew=False)
            await store.aadvance(3600)
            assert kept
            assert ends.lost
            store.advance(3600)
            assert kept, "as nobody waits, the plain one does as well"

        run(body())

    def test_a_task_times_out_when_its_time_has_come(self, store: FakeStore) -> None:
        async def body() -> None:
            store.take("nightly")
            waiting = asyncio.create_task(nightly(timeout=5))
            await store.aadvance(4.9)
            assert not waiting.done()
            await store.aadvance(0.2)
            assert waiting.done()
            assert isinstance(waiting.exception(), LockTimeout)

        run(body())

    def test_a_task_gets_in_when_the_holder_expires_on_the_way(self, store: FakeStore) -> None:
        order: list[str] = []

        async def body() -> None:
            locks = AsyncLockManager(ttl=10)
            first = await locks.acquire("nightly", renew=False, on_lost=lambda _: order.append("lost"))
            waiting = asyncio.create_task(next_one(locks))
            await store.aadvance(100)
            lease = await waiting
            assert first.lost
            assert lease, "it got in after ten seconds, and was renewed since"

        async def next_one(locks: AsyncLockManager) -> AsyncLease:
            lease = await locks.acquire("nightly", timeout=20)
            order.append("next")
            return lease

        run(body())
        assert order == ["lost", "next"]

    def test_the_plain_advance_refuses_to_overtake_tasks(self, store: FakeStore) -> None:
        async def body() -> None:
            with store.take("nightly"):
                waiting = asyncio.create_task(nightly(timeout=5))
                await store.aadvance(0)
                with pytest.raises(RuntimeError, match=r"await store\.aadvance"):
                    store.advance(1)
            assert await waiting == []

        run(body())

    def test_a_thread_can_advance_the_waits_of_tasks(self, store: FakeStore) -> None:
        errors: list[BaseException] = []

        def app() -> None:
            try:
                run(nightly(timeout=5))
            except LockTimeout as error:
                errors.append(error)

        store.take("nightly")
        thread = threading.Thread(target=app)
        thread.start()
        store.wait_for_waiter("nightly")
        store.advance(5)
        thread.join(10)
        assert len(errors) == 1

    def test_a_cancelled_waiter_leaves_nothing(self, store: FakeStore) -> None:
        async def body() -> None:
            theirs = store.take("nightly")
            waiting = asyncio.create_task(nightly())
            await store.aadvance(1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            theirs.release()
            assert store.holders() == {}
            assert await nightly(timeout=0) == []

        run(body())

    def test_a_waiter_whom_nobody_helps_is_told(self, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
        from atomiclock.testing import _clock

        monkeypatch.setattr(_clock, "STALLED", 0.05)

        async def body() -> None:
            with store.take("nightly"):
                await asyncio.create_task(nightly(timeout=5))

        with pytest.raises(RuntimeError, match=r"advance\(\)"):
            run(body())


class TestOutage:
    def test_an_acquire_is_unavailable_at_once(self, store: FakeStore) -> None:
        async def body() -> None:
            with store.outage(), pytest.raises(BackendUnavailable):
                await nightly(timeout=60)
            assert await nightly() == []

        run(body())

    def test_what_is_held_is_lost_in_a_long_one(self, store: FakeStore) -> None:
        async def body() -> None:
            with store.outage():
                with pytest.raises(BackendUnavailable):
                    await acquired(AsyncLockManager())
            async with acquire_lock("nightly", ttl=30, on_lost="cancel"):
                store.down()
                await store.aadvance(40)

        with pytest.raises(LockLost, match="could not be renewed"):
            run(body())

    def test_a_task_that_retries_gets_its_lock_when_the_store_is_back(self, store: FakeStore) -> None:
        async def body() -> None:
            store.down()
            trying = asyncio.create_task(nightly(lambda: None))
            await store.aadvance(1)
            assert not trying.done()
            store.up()
            assert await trying == [0]

        run(body())


class TestWhatUsesIt:
    def test_threads_and_tasks_exclude_each_other(self, store: FakeStore) -> None:
        async def body() -> None:
            async with try_lock("nightly") as lease:
                assert lease is None
            holder = await AsyncLockManager().holder("nightly")
            assert holder is not None
            assert holder.owner == "a thread"

        with LockManager().acquire("nightly", owner="a thread"):
            run(body())
        assert store.holders() == {}

    def test_extend_and_release(self, store: FakeStore) -> None:
        async def body() -> None:
            lease = await acquired(AsyncLockManager(), ttl=30)
            await lease.extend(300)
            assert lease.remaining > 290
            await lease.release()

        run(body())

    def test_a_real_loops_leases_go_on_beside_it(self, store: FakeStore) -> None:
        async def body() -> None:
            lease = await acquired(AsyncLockManager("memory://beside-async", ttl=0.4))
            await store.aadvance(3600)
            await asyncio.sleep(0.8)
            lease.check()
            await lease.extend()
            await lease.release()

        run(body())

    def test_a_waiter_is_sent_away_at_the_end(self) -> None:
        async def body() -> None:
            with FakeStore() as store:
                store.take("nightly")
                waiting = asyncio.create_task(nightly())
                await store.aadvance(0)
            with pytest.raises(ConfigurationError, match="closed"):
                await waiting

        run(body())


async def acquired(locks: AsyncLockManager, **options: Any) -> AsyncLease:
    return await locks.acquire("nightly", **options)
