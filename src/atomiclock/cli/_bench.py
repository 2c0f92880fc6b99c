"""`atomiclock bench`: how fast a store is from here. For comparisons with others there is benchmarks/."""

from __future__ import annotations

import os
import threading
from typing import Any

from .. import _process
from .._manager import LockManager


def free(manager: LockManager, seconds: float) -> dict[str, Any]:
    """Acquire and release, over and over, a lock that nobody else wants."""
    name = f"bench:{os.urandom(8).hex()}"
    times: list[float] = []
    manager.acquire(name).release()  # connects
    end = _process.clock() + seconds
    while (begun := _process.clock()) < end:
        manager.acquire(name).release()
        times.append(_process.clock() - begun)
    times.sort()
    return {
        "cycles_per_second": round(len(times) / seconds, 1),
        "p50_ms": _at(times, 0.5),
        "p95_ms": _at(times, 0.95),
        "p99_ms": _at(times, 0.99),
    }


def contended(manager: LockManager, seconds: float, threads: int) -> dict[str, Any]:
    """The same by several threads that all want one lock."""
    name = f"bench:{os.urandom(8).hex()}"
    counts = [0] * threads
    end = _process.clock() + seconds

    def work(number: int) -> None:
        while _process.clock() < end:
            with manager.acquire(name):
                counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {
        "threads": threads,
        "cycles_per_second": round(sum(counts) / seconds, 1),
        "least": min(counts),
        "most": max(counts),
    }


def _at(times: list[float], part: float) -> float:
    return round(1000 * times[min(len(times) - 1, int(part * len(times)))], 4) if times else 0.0
