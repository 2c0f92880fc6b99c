"""What belongs to an event loop, while other threads have theirs."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from atomiclock._loops import ByLoop


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    """Threads take turns all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_loops_come_and_go_in_many_threads_at_once() -> None:
    values: ByLoop[object] = ByLoop()
    trouble: list[BaseException] = []

    async def put() -> None:
        for _ in range(200):
            values.put(object())
            values.values()
            values.pop()

    def work() -> None:
        try:
            for _ in range(10):
                asyncio.run(put())
        except BaseException as error:
            trouble.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert trouble == []
