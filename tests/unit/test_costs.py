"""What a lock that nobody else wants costs, in counts: they are the same on every machine, however busy it is."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from atomiclock import AsyncLockManager, LockManager
from atomiclock.backends import _sqlite_io

CALLS = {"sync": 44, "async": 57}
"""Of Python's functions, generators' turns too: 40 and 53 on each of Python 3.10 to 3.13."""

NAMES = 5000


class Counter:
    """Counts calls of Python's functions in its block."""

    def __enter__(self) -> Counter:
        self.calls = 0
        sys.setprofile(self._count)
        return self

    def _count(self, frame: FrameType, event: str, arg: object) -> None:
        self.calls += event == "call"

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self.calls -= 1  # of this


# The least of many: some have something to make for those that follow.


def test_a_cycle_takes_few_calls_of_python() -> None:
    with LockManager("memory://") as locks:
        counts = []
        for _ in range(40):
            with Counter() as counter:
                locks.acquire("x").release()
            counts.append(counter.calls)
    assert 20 < min(counts) <= CALLS["sync"]


def test_a_cycle_of_a_task_takes_few_calls_of_python() -> None:
    async def main() -> list[int]:
        counts = []
        async with AsyncLockManager("memory://") as locks:
            for _ in range(40):
                with Counter() as counter:
                    await (await locks.acquire("x")).release()
                counts.append(counter.calls)
        return counts

    assert 20 < min(asyncio.run(main())) <= CALLS["async"]


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'locks.db'}"


def test_a_cycle_leaves_no_garbage_that_has_to_be_looked_for(url: str) -> None:
    with LockManager(url) as locks:
        locks.acquire("x").release()
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                locks.acquire("x").release()
            found = gc.collect()
        finally:
            gc.enable()
    assert found < 100, "less than one object for two cycles: what others leave meanwhile"


def test_names_used_once_leave_nothing_that_grows(url: str) -> None:
    with LockManager(url) as locks:
        for number in range(600):  # what is known of the last few hundred names is known then
            locks.acquire(f"early {number}").release()
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(600):  # and weighed
                locks.acquire(f"later {number}").release()
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for number in range(NAMES):
                locks.acquire(f"name {number}").release()
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert after - before < 20 * NAMES, "bytes; the least that could stay of each is some 50"
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
            assert db.execute("SELECT count(*) FROM locks").fetchone() == (0,)
            assert db.execute("SELECT count(*) FROM waiters").fetchone() == (0,)
        db.close()


def test_a_cycle_in_the_file_is_two_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    connect: Callable[..., Any] = _sqlite_io.connect

    def traced(*args: Any) -> Any:
        db = connect(*args)
        db.set_trace_callback(said.append)
        return db

    monkeypatch.setattr(_sqlite_io, "connect", traced)
    with LockManager(f"sqlite:///{tmp_path / 'locks.db'}") as locks:
        locks.acquire("x").release()
        said.clear()
        locks.acquire("x").release()
    assert [statement.split()[0] for statement in said] == ["INSERT", "DELETE"]
