"""Uncontended acquire + release, one at a time, beside the raw client and beside other libraries.

    nox -s bench                       # installs the rivals, starts a Redis of its own
    nox -s bench -- --rounds 5 --only redis

The contestants of a store take turns, round by round, so that whatever else the machine does meets all of them.
Compare the ratios within one run; the microseconds belong to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import redis
import redis.asyncio
import redis_lock

import atomiclock
from atomiclock import AsyncLockManager, LockManager

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers import RedisServer

RESULTS = Path(__file__).parent / "results"
COMPARE_AND_DELETE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
Cycle = Callable[[], Any]


def ours(url: str, **options: Any) -> Cycle:
    locks = LockManager(url, **options)
    return lambda: locks.acquire("bench").release()


def ours_async(url: str) -> Cycle:
    locks = AsyncLockManager(url)

    async def cycle() -> None:
        await (await locks.acquire("bench")).release()

    return cycle


def context(lock: Any) -> Cycle:
    def cycle() -> None:
        with lock:
            pass

    return cycle


def context_async(lock: Any) -> Cycle:
    async def cycle() -> None:
        async with lock:
            pass

    return cycle


def raw_redis(url: str) -> Cycle:
    client = redis.Redis.from_url(url)
    delete = client.register_script(COMPARE_AND_DELETE)

    def cycle() -> None:
        token = uuid.uuid4().hex
        client.set("raw", token, nx=True, px=30000)
        delete(keys=["raw"], args=[token])

    return cycle


def raw_redis_async(url: str) -> Cycle:
    client = redis.asyncio.Redis.from_url(url)
    delete = client.register_script(COMPARE_AND_DELETE)

    async def cycle() -> None:
        token = uuid.uuid4().hex
        await client.set("raw", token, nx=True, px=30000)
        await delete(keys=["raw"], args=[token])

    return cycle


def raw_sqlite(path: Path) -> Cycle:
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; CREATE TABLE l (k PRIMARY KEY, t)")

    def cycle() -> None:
        token = uuid.uuid4().hex
        db.execute("INSERT INTO l VALUES ('bench', ?)", (token,))
        db.execute("DELETE FROM l WHERE k = 'bench' AND t = ?", (token,))

    return cycle


def contestants(url: str, folder: Path) -> dict[str, tuple[int, dict[str, Cycle]]]:
    """Cycles per round, and who runs them, by store. The others are compared with the first of each store."""
    client, async_client = redis.Redis.from_url(url), redis.asyncio.Redis.from_url(url)
    memory = {"threading.Lock": context(threading.Lock()), "atomiclock": ours("memory://bench")}
    memory_async = {"asyncio.Lock": context_async(asyncio.Lock()), "atomiclock": ours_async("memory://bench")}
    files = {
        "raw sqlite3": raw_sqlite(folder / "raw.db"),
        "filelock": context(filelock.FileLock(folder / "file.lock")),
        "atomiclock": ours(f"sqlite:///{folder}/locks.db"),
    }
    server = {
        "raw redis-py": raw_redis(url),
        "redis-py Lock": context(client.lock("redis-py", timeout=30)),
        "python-redis-lock": context(redis_lock.Lock(client, "python-redis-lock", expire=30)),
        "atomiclock": ours(url),
    }
    server_async = {
        "raw redis.asyncio": raw_redis_async(url),
        "redis-py asyncio Lock": context_async(async_client.lock("redis-py", timeout=30)),
        "atomiclock": ours_async(url),
    }
    return {
        "memory": (2000, memory),
        "memory, asyncio": (2000, memory_async),
        "sqlite": (300, files),
        "redis": (300, server),
        "redis, asyncio": (300, server_async),
    }


def spend(loop: asyncio.AbstractEventLoop, cycle: Cycle, count: int) -> float:
    """Seconds for `count` cycles, on the loop if they are coroutines."""

    async def on_loop() -> float:
        begun = time.perf_counter()
        for _ in range(count):
            await cycle()
        return time.perf_counter() - begun

    if inspect.iscoroutinefunction(cycle):
        return loop.run_until_complete(on_loop())
    begun = time.perf_counter()
    for _ in range(count):
        cycle()
    return time.perf_counter() - begun


def measure(
    cycles: dict[str, Cycle], count: int, rounds: int, loop: asyncio.AbstractEventLoop
) -> dict[str, list[float]]:
    """Microseconds per cycle, one for each round, by contestant. The first round only warms up."""
    found: dict[str, list[float]] = {name: [] for name in cycles}
    for turn in range(rounds + 1):
        for name, cycle in cycles.items():
            gc.collect()
            spent = spend(loop, cycle, count)
            if turn:
                found[name].append(1e6 * spent / count)
    return found


def show(store: str, found: dict[str, list[float]], count: int) -> None:
    """A table of the medians, and of how they compare with the first contestant's."""
    base = next(iter(found))
    print(f"\n{store}: acquire + release, µs, median of {len(found[base])} rounds of {count}")
    for who, values in sorted(found.items(), key=lambda item: statistics.median(item[1])):
        median = statistics.median(values)
        ratio = median / statistics.median(found[base])
        print(f"  {who:24} {median:8.1f} {ratio:7.2f} x {base}  ({min(values):.0f} to {max(values):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="stores whose name contains this")
    chosen = parser.parse_args()
    report: dict[str, Any] = {"version": atomiclock.__version__, "python": platform.python_version(), "stores": {}}
    report |= {"when": time.strftime("%Y-%m-%dT%H:%M:%S"), "cpus": os.cpu_count(), "rounds": chosen.rounds}
    with tempfile.TemporaryDirectory() as name:
        folder, loop = Path(name), asyncio.new_event_loop()
        server = RedisServer(folder).start()
        try:
            for store, (count, cycles) in contestants(server.url, folder).items():
                if chosen.only in store:
                    report["stores"][store] = found = measure(cycles, count, chosen.rounds, loop)
                    show(store, found, count)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            server.stop()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(report, indent=1))
    print(f"\n{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
