"""What a worker of a blocking library does. `tasks_async` has the same functions for coroutines.

Times are CLOCK_MONOTONIC seconds, which all processes of a machine share.
"""

from __future__ import annotations

import gc
import random
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from board import GRANTS, Board
from contest import Lock, said

clock = time.monotonic


class World(NamedTuple):
    lock: Callable[[str], Lock]
    board: Board


_held: dict[str, Any] = {}


def cycles(world: World, name: str, seconds: float) -> dict[str, Any]:
    """Acquire and release again and again: how often, in how many seconds."""
    lock = world.lock(name)
    _some(lock, 1)  # connects
    batch = max(1, int(0.001 / max(_some(lock, 3) / 3, 1e-7)))
    gc.collect()
    done, spent = 0, 0.0
    while spent < seconds:
        spent += _some(lock, batch)
        done += batch
    return {"cycles": done, "spent": spent}


def _some(lock: Lock, count: int) -> float:
    acquire, release = lock.acquire, lock.release
    begun = time.perf_counter()
    for _ in range(count):
        acquire()
        release()
    return time.perf_counter() - begun


def handoff(world: World, name: str, ids: list[int], hold: list[float], begin: float, end: float) -> dict[str, Any]:
    """Take turns with each other and with other processes: when each got the lock, and began to give it back."""
    stamps: list[tuple[float, float, int]] = []
    errors: Counter[str] = Counter()

    def run(me: int) -> None:
        lock, board = world.lock(name), world.board
        _sleep_until(begin)
        while clock() < end:
            try:
                lock.acquire()
            except Exception as error:
                errors[said(error)] += 1
                continue
            got = clock()
            board.enter(me)
            mine = board[GRANTS]
            time.sleep(random.uniform(*hold))
            board.leave(me)
            stamps.append((got, clock(), me))
            lock.release()
            while board[GRANTS] == mine and clock() < end:  # until another has it: this is about handing over
                time.sleep(0.0005)

    _in_threads(run, ids)
    return {"stamps": stamps, "errors": errors}


def contend(world: World, name: str, ids: list[int], begin: float, end: float) -> dict[str, Any]:
    """One thread for each of `ids`, all after the same lock until `end`: how often each got it, and errors.

    Whoever gets it first keeps it until `begin`, so that by then all others wait for it. Without that, a thread or
    task that never has to wait would have it to itself until its time slice is over, whatever the library.
    """
    errors: Counter[str] = Counter()
    grants, late = dict.fromkeys(ids, 0), []

    def run(me: int) -> None:
        lock, board = world.lock(name), world.board
        while clock() < end:
            try:
                lock.acquire()
            except Exception as error:
                errors[said(error)] += 1
                continue
            board.enter(me)
            if clock() < begin:
                _sleep_until(begin)
            elif clock() < end:
                grants[me] += 1
            else:
                late.append(me)
            board.leave(me)
            try:
                lock.release()
            except Exception as error:
                errors[f"release: {said(error)}"] += 1

    _in_threads(run, ids)
    return {"grants": list(grants.values()), "late": len(late), "errors": errors, "drained": clock() - end}


def _in_threads(run: Callable[[int], None], ids: list[int]) -> None:
    threads = [threading.Thread(target=run, args=(me,), daemon=True) for me in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hold(world: World, name: str) -> dict[str, Any]:
    """Take the lock, and keep it."""
    _held[name] = world.lock(name)
    _held[name].acquire()
    return {}


def let_go(world: World, name: str) -> dict[str, Any]:  # noqa: ARG001
    _held.pop(name).release()
    return {}


_crowd_errors: Counter[str] = Counter()


def crowd(world: World, name: str, count: int) -> dict[str, Any]:
    """Let `count` threads wait for the lock. The process is killed afterwards."""

    def run() -> None:
        lock = world.lock(name)
        while True:
            try:
                lock.acquire()
                lock.release()
                return
            except Exception as error:
                _crowd_errors[said(error)] += 1

    for _ in range(count):
        threading.Thread(target=run, daemon=True).start()
    return {}


def crowd_errors(world: World) -> dict[str, Any]:  # noqa: ARG001
    return {"errors": dict(_crowd_errors)}


def names(world: World, prefix: str, count: int, seconds: float) -> dict[str, Any]:
    """A cycle on each of `count` names, or on as many as `seconds` allow."""
    _some(world.lock(f"{prefix}-first"), 1)
    begun, done = clock(), 0
    while done < count and clock() < begun + seconds:
        _some(world.lock(f"{prefix}-{done}"), 1)
        done += 1
    return {"cycles": done, "spent": clock() - begun}


def gather(world: World, prefix: str, count: int, seconds: float) -> dict[str, Any]:
    """Hold `count` locks at once, or as many as `seconds` allow: what they cost in memory."""
    for _ in range(2):
        _some(world.lock(f"{prefix}-first"), 1)
    mine: list[Any] = []
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    begun = clock()
    while len(mine) < count and clock() < begun + seconds:
        keep = world.lock(f"{prefix}-{len(mine)}").keep
        assert keep is not None
        mine.append(keep())
    spent = clock() - begun
    traced = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    _held.update({f"{prefix}-{number}": kept for number, kept in enumerate(mine)})
    return {"held": len(mine), "spent": spent, "traced": traced}


def scatter(world: World, prefix: str) -> dict[str, Any]:
    """Give back what `gather` took: which releases failed."""
    errors: Counter[str] = Counter()
    begun = clock()
    for name in [name for name in _held if name.startswith(prefix)]:
        try:
            let_go(world, name)
        except Exception as error:
            errors[said(error)] += 1
    return {"errors": dict(errors), "spent": clock() - begun}


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - clock()))
