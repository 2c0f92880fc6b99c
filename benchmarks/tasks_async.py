"""What a worker of an asyncio library does: `tasks_sync` for coroutines, with tasks instead of threads."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
from collections import Counter
from typing import Any

from board import GRANTS
from contest import Lock, said
from tasks_sync import World, clock

__all__ = ["World"]

_held: dict[str, Any] = {}


async def cycles(world: World, name: str, seconds: float) -> dict[str, Any]:
    lock = world.lock(name)
    await _some(lock, 1)
    batch = max(1, int(0.001 / max(await _some(lock, 3) / 3, 1e-7)))
    gc.collect()
    done, spent = 0, 0.0
    while spent < seconds:
        spent += await _some(lock, batch)
        done += batch
    return {"cycles": done, "spent": spent}


async def _some(lock: Lock, count: int) -> float:
    acquire, release = lock.acquire, lock.release
    begun = time.perf_counter()
    for _ in range(count):
        await acquire()
        await release()
    return time.perf_counter() - begun


async def handoff(
    world: World, name: str, ids: list[int], hold: list[float], begin: float, end: float
) -> dict[str, Any]:
    stamps: list[tuple[float, float, int]] = []
    errors: Counter[str] = Counter()

    async def run(me: int) -> None:
        lock, board = world.lock(name), world.board
        await _sleep_until(begin)
        while clock() < end:
            try:
                await lock.acquire()
            except Exception as error:
                errors[said(error)] += 1
                continue
            got = clock()
            board.enter(me)
            mine = board[GRANTS]
            await asyncio.sleep(random.uniform(*hold))
            board.leave(me)
            stamps.append((got, clock(), me))
            await lock.release()
            while board[GRANTS] == mine and clock() < end:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.0005)

    await asyncio.gather(*(run(me) for me in ids))
    return {"stamps": stamps, "errors": errors}


async def contend(world: World, name: str, ids: list[int], begin: float, end: float) -> dict[str, Any]:
    errors: Counter[str] = Counter()
    grants, late = dict.fromkeys(ids, 0), []

    async def run(me: int) -> None:
        lock, board = world.lock(name), world.board
        while clock() < end:
            try:
                await lock.acquire()
            except Exception as error:
                errors[said(error)] += 1
                continue
            board.enter(me)
            if clock() < begin:
                await _sleep_until(begin)
            elif clock() < end:
                grants[me] += 1
            else:
                late.append(me)
            board.leave(me)
            try:
                await lock.release()
            except Exception as error:
                errors[f"release: {said(error)}"] += 1

    await asyncio.gather(*(run(me) for me in ids))
    return {"grants": list(grants.values()), "late": len(late), "errors": errors, "drained": clock() - end}


async def hold(world: World, name: str) -> dict[str, Any]:
    _held[name] = world.lock(name)
    await _held[name].acquire()
    return {}


async def let_go(world: World, name: str) -> dict[str, Any]:  # noqa: ARG001
    await _held.pop(name).release()
    return {}


_crowd: set[asyncio.Task[None]] = set()
_crowd_errors: Counter[str] = Counter()


async def crowd(world: World, name: str, count: int) -> dict[str, Any]:
    async def run() -> None:
        lock = world.lock(name)
        while True:
            try:
                await lock.acquire()
                await lock.release()
                return
            except Exception as error:
                _crowd_errors[said(error)] += 1

    _crowd.update(asyncio.create_task(run()) for _ in range(count))
    return {}


async def crowd_errors(world: World) -> dict[str, Any]:  # noqa: ARG001
    return {"errors": dict(_crowd_errors)}


async def names(world: World, prefix: str, count: int, seconds: float) -> dict[str, Any]:
    await _some(world.lock(f"{prefix}-first"), 1)
    begun, done = clock(), 0
    while done < count and clock() < begun + seconds:
        await _some(world.lock(f"{prefix}-{done}"), 1)
        done += 1
    return {"cycles": done, "spent": clock() - begun}


async def gather(world: World, prefix: str, count: int, seconds: float) -> dict[str, Any]:
    for _ in range(2):
        await _some(world.lock(f"{prefix}-first"), 1)
    mine: list[Any] = []
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    begun = clock()
    while len(mine) < count and clock() < begun + seconds:
        keep = world.lock(f"{prefix}-{len(mine)}").keep
        assert keep is not None
        mine.append(await keep())
    spent = clock() - begun
    traced = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    _held.update({f"{prefix}-{number}": kept for number, kept in enumerate(mine)})
    return {"held": len(mine), "spent": spent, "traced": traced}


async def scatter(world: World, prefix: str) -> dict[str, Any]:
    errors: Counter[str] = Counter()
    begun = clock()
    for name in [name for name in _held if name.startswith(prefix)]:
        try:
            await let_go(world, name)
        except Exception as error:
            errors[said(error)] += 1
    return {"errors": dict(errors), "spent": clock() - begun}


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - clock()))
