"""Nothing grows: threads, descriptors, tasks, connections, keys, rows, memory of names."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from colours import Face
from servers import RedisServer, wait_until

from atomiclock import AsyncLockManager, LockManager, LockTimeout
from atomiclock._hold import Hold


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def kinds(look: redis.Redis) -> list[str]:
    """The server's keys but tombstones."""
    return [key for key in look.keys("*") if len(key.rpartition(":")[2]) != 32]


@pytest.fixture(params=["redis", "sqlite", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return server.url
    return f"sqlite:///{tmp_path}/locks.db" if request.param == "sqlite" else "memory://ledger"


def cycle(locks: Any, index: int) -> None:
    lease = locks.acquire(f"name {index % 50}", timeout=5)
    assert locks.try_acquire(f"name {index % 50}") is None
    if index % 10 == 0:
        with pytest.raises(LockTimeout):
            locks.acquire(f"name {index % 50}", timeout=0.005)
    lease.release()


Ledger = dict[str, Callable[[], int]]


def grows(things: Ledger, run: Callable[[int], object], times: int) -> dict[str, int]:
    """What there is more of after `times` runs, beyond what the first hundred needed."""
    for index in range(100):
        run(index)
    before = at_rest(things)
    for index in range(times):
        run(index)
    after = at_rest(things)
    # The keeper may remember some attempts longer: it throws them out when they are the larger part of its book.
    allowed = {what: 64 if what == "attempts" else 1 for what in things}
    return {what: after[what] - before[what] for what in things if after[what] > before[what] + allowed[what]}


def at_rest(things: Ledger) -> dict[str, int]:
    """The least of each while what goes on in the background ends."""
    least = {what: count() for what, count in things.items()}
    for _ in range(8):
        time.sleep(0.05)
        gc.collect()
        least = {what: min(least[what], count()) for what, count in things.items()}
    return least


def test_two_thousand_cycles_leave_nothing(face: Face, url: str, look: redis.Redis, tmp_path: Path) -> None:
    locks = face.manager(url)
    clients_before = len(look.client_list())

    things = {
        "threads": threading.active_count,
        "descriptors": descriptors,
        "tasks": lambda: len(face.tasks()),
        "attempts": lambda: len(live_holds()),
    }
    assert grows(things, lambda index: cycle(locks, index), 2000) == {}
    if url.startswith("redis"):
        assert len(look.client_list()) - clients_before <= 3
        wait_until(lambda: [key for key in kinds(look) if not key.endswith((":waiting", ":wake"))] == [], 2)
    if url.startswith("sqlite"):
        with sqlite3.connect(tmp_path / "locks.db") as db:
            assert db.execute("SELECT count(*) FROM locks").fetchone() == (0,)
            assert db.execute("SELECT count(*) FROM waiters").fetchone() == (0,)
        db.close()


def live_holds() -> list[Hold]:
    return [thing for thing in gc.get_objects() if type(thing) is Hold]


def test_cancelled_attempts_leave_nothing(url: str, look: redis.Redis) -> None:
    async def main() -> int:
        locks = AsyncLockManager(url)
        held = await locks.acquire("held")
        before = 0
        for index in range(600):
            name = "held" if index % 2 else f"name {index}"
            task = asyncio.ensure_future(locks._acquire(locks._attempt(name, locks._core.options()), 5))
            for _ in range(index % 12):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                lease = await task
                await lease.release()
            if index == 100:
                before = descriptors() + len(asyncio.all_tasks())
        await asyncio.sleep(0.1)
        after = descriptors() + len(asyncio.all_tasks())
        await held.release()
        await locks.aclose()
        return after - before

    assert asyncio.run(main()) <= 3
    if url.startswith("redis"):
        wait_until(lambda: [key for key in kinds(look) if key.endswith(":info")] == [], 2)
        assert not look.exists("atomiclock:held")


def test_twenty_thousand_names_leave_a_handful_of_keys(redis_server: RedisServer, look: redis.Redis) -> None:
    locks = LockManager(redis_server.url, renew=False)
    gc.collect()
    before = len(gc.get_objects())
    for index in range(20_000):
        locks.acquire(f"name {index}").release()
    gc.collect()
    assert len(look.keys()) < 5
    assert len(gc.get_objects()) - before < 500
    locks.close()


def test_leases_that_were_kept_and_released_are_forgotten_by_the_keeper(url: str) -> None:
    locks = LockManager(url)
    for _ in range(3):
        leases = [locks.acquire(f"name {index}", ttl=60) for index in range(300)]
        for lease in leases:
            lease.release()
    del leases, lease
    wait_until(lambda: len(live_holds()) < 100, 2)
    locks.close()


def test_two_thousand_leases_are_kept_by_one_thread_in_little_memory(url: str) -> None:
    locks = LockManager(url, ttl=60)
    locks.acquire("warm").release()
    threads = threading.active_count()
    leases = [locks.acquire(f"first {index}") for index in range(100)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        leases += [locks.acquire(f"name {index}") for index in range(2000)]
        each = (tracemalloc.get_traced_memory()[0] - before) / 2000
    finally:
        tracemalloc.stop()
    assert each <= 1536
    assert threading.active_count() <= threads + 1
    for lease in leases:
        lease.release()
    locks.close()
