"""Connections are bounded: who comes when all are in use waits for one, for no longer than it has time."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from servers import RedisServer, free_port, wait_until

from atomiclock import AsyncLockManager, BackendUnavailable, LockManager
from atomiclock._process import clock
from atomiclock._url import parse
from atomiclock.backends import Unknown, _wire_pool
from atomiclock.backends._resp import pack
from atomiclock.backends._wire import Several
from atomiclock.backends.redis import RedisBackend


def connections_made(server: RedisServer) -> int:
    for line in server.command("INFO", "stats").splitlines():
        if line.startswith("total_connections_received:"):
            return int(line.partition(":")[2])
    raise AssertionError("Redis tells no connections")


def patient(server: RedisServer) -> str:
    """Its URL for clients that drop no connection, and so open no other, because a busy machine is slow to answer."""
    return f"{server.url}?io_timeout=60"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connections must do."""
    monkeypatch.setattr(_wire_pool, "MOST", 2)


def test_five_hundred_threads_share_a_bounded_number_of_connections(redis_server: RedisServer) -> None:
    before = connections_made(redis_server)
    trouble: list[BaseException] = []
    with LockManager(patient(redis_server)) as locks:

        def work(index: int) -> None:
            try:
                for _ in range(4):
                    locks.acquire(f"x{index}", timeout=60).release()
            except BaseException as error:
                trouble.append(error)

        workers = [threading.Thread(target=work, args=(index,)) for index in range(500)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert trouble == []
    assert connections_made(redis_server) - before <= _wire_pool.MOST + 2  # two ask for the numbers


def test_two_thousand_tasks_share_a_bounded_number_of_connections(redis_server: RedisServer) -> None:
    before = connections_made(redis_server)

    async def main() -> None:
        async with AsyncLockManager(patient(redis_server)) as locks:

            async def work(index: int) -> None:
                async with locks.acquire(f"x{index}", timeout=60):
                    await asyncio.sleep(0)

            await asyncio.gather(*(work(index) for index in range(2000)))

    asyncio.run(main())
    assert connections_made(redis_server) - before <= _wire_pool.MOST + 2


def test_who_waits_for_a_lock_leaves_connections_to_others(redis_server: RedisServer) -> None:
    before = connections_made(redis_server)
    served: list[float] = []
    url = patient(redis_server)
    with LockManager(url) as holders, LockManager(url) as locks:
        leases = [holders.acquire(f"x{index}", ttl=60) for index in range(200)]

        def wait(index: int) -> None:
            locks.acquire(f"x{index}", timeout=60).release()
            served.append(time.monotonic())

        workers = [threading.Thread(target=wait, args=(index,)) for index in range(200)]
        for worker in workers:
            worker.start()
        looks = 0

        def half_of_them_wait_there() -> bool:
            nonlocal looks
            looks += 1
            return redis_server.command("CLIENT", "LIST").count("cmd=blpop") == _wire_pool.MOST // 2

        wait_until(half_of_them_wait_there)
        for index in range(20):
            locks.acquire(f"y{index}", timeout=5).release()
        released = time.monotonic()
        for lease in leases:
            lease.release()
        for worker in workers:
            worker.join()
    assert max(served) - released < 10
    assert connections_made(redis_server) - before <= 2 * (_wire_pool.MOST + 2) + looks


def test_waiters_that_begin_at_once_leave_connections_to_others(redis_server: RedisServer) -> None:
    """All of them find room before the first has taken it."""

    async def main() -> None:
        async with AsyncLockManager(redis_server.url) as holders, AsyncLockManager(redis_server.url) as locks:
            leases = [await holders.acquire(f"x{index}", ttl=60) for index in range(150)]
            waiting = [asyncio.ensure_future(locks.acquire(f"x{index}", timeout=60)) for index in range(150)]
            async with locks.acquire("own", ttl=2):
                await asyncio.sleep(0.2)  # until they wait, and as long as a renewal may take
                for index in range(20):
                    await (await locks.acquire(f"y{index}", timeout=2)).release()
                await asyncio.sleep(2)
            for lease in leases:
                await lease.release()
            for lease in await asyncio.gather(*waiting):
                await lease.release()

    asyncio.run(main())


def test_threads_that_begin_at_once_to_wait_leave_connections_to_others(redis_server: RedisServer) -> None:
    with LockManager(redis_server.url) as holders, LockManager(redis_server.url) as locks:
        leases = [holders.acquire(f"x{index}", ttl=60) for index in range(150)]
        ready = threading.Barrier(150)

        def wait(index: int) -> None:
            ready.wait()
            locks.acquire(f"x{index}", timeout=20).release()

        workers = [threading.Thread(target=wait, args=(index,)) for index in range(150)]
        for worker in workers:
            worker.start()
        wait_until(lambda: redis_server.command("CLIENT", "LIST").count("cmd=blpop") >= _wire_pool.MOST // 2)
        for index in range(20):
            locks.acquire(f"y{index}", timeout=2).release()
        for lease in leases:
            lease.release()
        for worker in workers:
            worker.join()


def test_no_task_waits_longer_than_its_timeout_for_a_connection_to_a_frozen_server(own_redis: RedisServer) -> None:
    """Some begin to connect with a moment left: redis-py may swallow the cancellation that ends that."""

    async def main() -> list[float]:
        async with AsyncLockManager(own_redis.url) as locks:

            async def work(index: int) -> float:
                begun = clock()
                timeout = (1.0, 2.0, None)[index % 3]
                with pytest.raises(BackendUnavailable):
                    await locks.acquire(f"x{index}", timeout=timeout)
                return clock() - begun - (3.0 if timeout is None else timeout)

            return await asyncio.gather(*(work(index) for index in range(500)))

    with own_redis.frozen():
        late = asyncio.run(main())
    assert max(late) < 1.5


def test_errors_that_somebody_keeps_keep_no_connection(redis_server: RedisServer) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}"
    kept: list[BaseException] = []
    with LockManager(nobody) as locks:
        for _ in range(_wire_pool.MOST + 5):
            with pytest.raises(BackendUnavailable, match="not reachable") as raised:
                locks.try_acquire("x")
            kept.append(raised.value)


@pytest.mark.usefixtures("two")
def test_who_gets_no_connection_in_time_is_told_so(redis_server: RedisServer) -> None:
    channel = RedisBackend.from_url(parse(redis_server.url)).channel()
    block = Several.of([pack(b"BLPOP", b"nothing", b"1.5"), pack(b"PING")])
    workers = [threading.Thread(target=channel.call, args=(block, clock() + 5)) for _ in range(2)]
    for worker in workers:
        worker.start()
    wait_until(lambda: redis_server.command("CLIENT", "LIST").count("cmd=blpop") == 2)
    begun = clock()
    with pytest.raises(Unknown, match="connection") as raised:
        channel.call(pack(b"PING"), begun + 0.3)
    assert 0.3 <= clock() - begun < 1.0
    assert not raised.value.sent
    assert channel.call(pack(b"PING"), clock() + 5) == b"PONG", "it is given one as soon as there is one"
    for worker in workers:
        worker.join()
    channel.close()


@pytest.mark.usefixtures("two")
def test_a_task_that_is_cancelled_while_it_queues_keeps_nothing(redis_server: RedisServer) -> None:
    async def main() -> None:
        channel = RedisBackend.from_url(parse(redis_server.url)).async_channel()

        async def ask() -> object:
            return await channel.call(pack(b"PING"), clock() + 10)

        for turns in range(12):
            tasks = [asyncio.ensure_future(ask()) for _ in range(6)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[1::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert done[::2] == [b"PONG"] * 3
        channel.close()

    asyncio.run(main())


@pytest.mark.usefixtures("two")
def test_threads_that_queue_are_served_in_turn(redis_server: RedisServer) -> None:
    channel = RedisBackend.from_url(parse(redis_server.url)).channel()
    counts = [0] * 8
    end = clock() + 1.0

    def work(index: int) -> None:
        while clock() < end:
            channel.call(pack(b"PING"), clock() + 5)
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    channel.close()
    assert min(counts) * 8 > max(counts), counts
