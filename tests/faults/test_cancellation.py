"""A task cancelled at any await of acquire, wait, extend and release leaves nothing behind and can be tried again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from leftovers import BACKENDS, left_in, url_of
from proxy import Proxy, proxy_to
from servers import RedisServer
from tally import LONG, chosen, note
from wire import wire_to

from atomiclock import AsyncLockManager, LockLost, LockTimeout, NotHeld, acquire_lock

Step = Callable[["Case"], Awaitable[None]]


class Case:
    """One attempt on a manager of its own, and what its caller knows of it."""

    def __init__(self, url: str, locks: AsyncLockManager, name: str) -> None:
        self.url, self.locks, self.name = url, locks, name
        self.lease: Any = None

    async def acquire(self) -> None:
        self.lease = await self.locks.acquire(self.name, timeout=5)

    async def acquire_and_release(self) -> None:
        self.lease = await self.locks.acquire(self.name, timeout=5)
        await self.lease.release()

    async def block(self) -> None:
        async with self.locks.acquire(self.name, timeout=5):
            pass

    async def shared_block(self) -> None:
        async with acquire_lock(self.name, self.url, timeout=5):
            await asyncio.sleep(0)

    async def lock_block(self) -> None:
        async with self.locks.lock(self.name):
            pass

    async def hold(self) -> None:
        self.lease = await self.locks.acquire(self.name, timeout=5, ttl=5, renew=False)

    async def extend(self) -> None:
        await self.lease.extend()
        await self.lease.extend(10)
        await self.lease.extend(4)

    async def is_true(self, witness: AsyncLockManager) -> None:
        """What the lease says is what the store has, and it can be extended."""
        holder = await witness.holder(self.name)
        assert holder is not None
        assert holder.token == self.lease.token
        assert 0 < self.lease.remaining <= (holder.remaining or 0.0), (
            "it believes no longer than the store will keep it"
        )
        await self.lease.extend()


async def eventually(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 3) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


async def cancelled_after(turns: int, work: Awaitable[None]) -> bool:
    """Whether `work` was still at it after so many turns of the loop, and was cancelled then."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
        if task.done():
            break
    late = task.done() or not task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return not late


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest) -> str:
    return url_of(request)


TRIED: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    note(f"{sum(TRIED.values())} cancellations inside acquire, extend and release: {dict(TRIED)}")


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("way", ["acquire", "acquire_and_release", "block", "shared_block", "lock_block", "extend"])
def test_cancelled_at_any_turn_of_the_loop_leaves_no_lock(
    url: str, way: str, warm: bool, request: pytest.FixtureRequest
) -> None:
    async def main() -> int:
        witness = AsyncLockManager(url)
        turns = tried = 0
        while True:
            locks = AsyncLockManager(url)
            if warm:
                await locks.holder("warm up")
            case = Case(url, locks, f"name {turns}")
            if way == "extend":
                await case.hold()
            cancelled = await cancelled_after(turns, getattr(case, way)())
            if way == "extend":
                await case.is_true(witness)
            if case.lease is not None:
                with suppress(NotHeld):
                    await case.lease.release()
            name = case.name
            await eventually(
                lambda name=name: is_free(witness, name), f"free after being cancelled at turn {turns} of {way}"
            )
            await locks.aclose()
            if not cancelled:
                break
            tried += 1
            turns += 1 if turns < 40 else max(1 if LONG else 7, turns // (40 if LONG else 10))
        await witness.aclose()
        await eventually(lambda: is_empty(url, request), "nothing stays in the store", 10)
        return tried

    TRIED[url.partition(":")[0]] += asyncio.run(main())


async def is_empty(url: str, request: pytest.FixtureRequest) -> bool:
    """Whether nothing is left in the store. Asked while the loop turns: until then it looks for what lands late."""
    return await asyncio.to_thread(left_in, url, request) == []


async def is_free(locks: AsyncLockManager, name: str) -> bool:
    return await locks.holder(name) is None


@pytest.mark.parametrize("way", ["acquire_and_release", "block"])
def test_cancelled_at_any_moment_of_a_slow_network_leaves_no_lock_and_no_old_reply(
    proxy: Proxy, look: redis.Redis, way: str
) -> None:
    look.set("atomiclock:foreign", "other", px=600_000)

    async def main() -> None:
        locks = AsyncLockManager(proxy.url)
        await locks.holder("warm up")
        proxy.latency = 0.01
        cancelled = 0
        for index in range(chosen(50, 200)):
            case = Case(proxy.url, locks, f"name{index}")
            task = asyncio.ensure_future(getattr(case, way)())
            await asyncio.sleep(0.024 * (index % 50) / 50)
            cancelled += task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert await locks.try_acquire("foreign") is None
            if case.lease is not None:
                with suppress(NotHeld):
                    await case.lease.release()
            key = f"atomiclock:{case.name}"
            await eventually(lambda key=key: gone(look, key), f"free after being cancelled, {index}")
        assert cancelled > 25
        await locks.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(("backend", "way"), [("memcached", "acquire_and_release"), ("etcd", "block")])
def test_cancelled_while_any_reply_is_late_leaves_no_lock_and_no_old_reply(
    backend: str, way: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.LATE", 0.02)
    server, tries = request.getfixturevalue(f"{backend}_server"), chosen(30, 300)

    async def main(url: str) -> int:
        witness, locks, cancelled = AsyncLockManager(server.url), AsyncLockManager(url), 0
        async with witness.acquire("foreign", ttl=600):
            for index in range(tries):
                case = Case(url, locks, f"name{index}")
                task = asyncio.ensure_future(getattr(case, way)())
                await asyncio.sleep(0.05 * (index % 30) / 30)
                cancelled += task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                assert await locks.try_acquire("foreign") is None
                if case.lease is not None:
                    with suppress(NotHeld):
                        await case.lease.release()
                name = case.name
                await eventually(lambda name=name: is_free(witness, name), f"free after being cancelled, {index}")
        await eventually(lambda: is_empty(server.url, request), "nothing stays in the store", 10)
        await locks.aclose()
        await witness.aclose()
        return cancelled

    with wire_to(server.port, http2=backend == "etcd") as wire:
        wire.strike("reply late")
        assert asyncio.run(main(f"{backend}://127.0.0.1:{wire.port}")) > tries / 2


async def gone(look: redis.Redis, key: str) -> bool:
    return not look.exists(key)


def test_cancelled_waiter_leaves_and_the_next_gets_the_wake_up(url: str) -> None:
    async def main() -> None:
        locks = AsyncLockManager(url)
        for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34):
            held = await locks.acquire("x")
            first = asyncio.ensure_future(Case(url, locks, "x").acquire_and_release())
            await asyncio.sleep(0.02)
            second = asyncio.ensure_future(Case(url, locks, "x").acquire_and_release())
            await asyncio.sleep(0.02)
            await held.release()
            for _ in range(turns):
                await asyncio.sleep(0)
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            begun = time.monotonic()
            await asyncio.wait_for(second, 5)
            assert time.monotonic() - begun < 1, f"{turns} turns"
        await locks.aclose()

    asyncio.run(main())


def test_a_loss_cancels_the_body_that_held_it_and_nothing_else(url: str) -> None:
    """Not the body around it, not a task beside it, and not what its task does after the block."""
    done: list[str] = []

    async def beside(locks: AsyncLockManager, gone: asyncio.Event) -> None:
        async with locks.acquire("beside", timeout=5, on_lost="cancel"):
            await gone.wait()
            await asyncio.sleep(0.01)
            done.append("beside")

    async def main() -> None:
        async with AsyncLockManager(url) as locks, locks.acquire("around", timeout=5, on_lost="cancel"):
            gone = asyncio.Event()
            other = asyncio.create_task(beside(locks, gone))
            with pytest.raises(LockLost):
                async with locks.acquire("inner", ttl=1, timeout=5, renew=False, on_lost="cancel"):
                    await asyncio.sleep(20)
            gone.set()
            await asyncio.sleep(0.01)
            done.append("around")
            await other

    asyncio.run(main())
    assert sorted(done) == ["around", "beside"]


def test_wait_for_leaves_nothing_behind_when_it_expires(url: str) -> None:
    async def main() -> None:
        locks = AsyncLockManager(url)
        held = await locks.acquire("x")
        for wait in (0.0, 0.001, 0.01, 0.05):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(locks.acquire("x"), wait)
            if sys.version_info >= (3, 11):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(wait):
                        await locks.acquire("x")
        await held.release()
        begun = time.monotonic()
        lease = await locks.acquire("x", timeout=2)
        assert time.monotonic() - begun < 0.5
        await lease.release()
        await locks.aclose()

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is younger")
def test_task_group_whose_one_task_fails_releases_the_locks_of_the_others(url: str) -> None:
    async def hold(locks: AsyncLockManager, name: str) -> None:
        async with locks.acquire(name, timeout=5):
            await asyncio.sleep(30)

    async def fail() -> None:
        await asyncio.sleep(0.05)
        raise KeyError

    async def main() -> None:
        locks = AsyncLockManager(url)
        group: Any = getattr(asyncio, "TaskGroup")()  # noqa: B009
        errors: tuple[Exception, ...] = ()
        try:
            async with group:
                for index in range(5):
                    group.create_task(hold(locks, f"name {index % 3}"))
                group.create_task(fail())
        except Exception as error:
            errors = getattr(error, "exceptions", ())
        assert [type(error) for error in errors] == [KeyError]
        for index in range(3):
            assert await is_free(locks, f"name {index}")
        await locks.aclose()

    asyncio.run(main())


def test_release_that_was_cancelled_can_be_awaited_again(redis_server: RedisServer, look: redis.Redis) -> None:
    with proxy_to(redis_server.port) as proxy:

        async def main() -> None:
            locks = AsyncLockManager(proxy.url)
            for delay in (0.0, 0.005, 0.015, 0.025):
                proxy.latency = 0.0
                lease = await locks.acquire("x")
                proxy.latency = 0.02
                task = asyncio.ensure_future(lease.release())
                await asyncio.sleep(delay)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                with suppress(NotHeld):
                    await lease.release()
                assert not look.exists("atomiclock:x")
                assert not lease.lost
            await locks.aclose()

        asyncio.run(main())


def test_loop_that_ends_in_the_middle_of_a_wait_leaves_no_waiter(url: str) -> None:
    async def hold() -> Any:
        locks = AsyncLockManager(url)
        held = await locks.acquire("x", ttl=600)
        waiter = asyncio.ensure_future(locks.acquire("x"))
        await asyncio.sleep(0.05)
        with pytest.raises(LockTimeout):
            await locks.acquire("x", timeout=0)
        return locks, held, waiter

    locks, held, _ = asyncio.run(hold())

    async def again() -> None:
        await held.release()
        begun = time.monotonic()
        lease = await locks.acquire("x", timeout=5)
        assert time.monotonic() - begun < 0.5
        await lease.release()
        await locks.aclose()

    asyncio.run(again())
