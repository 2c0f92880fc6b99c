"""How much the server has to do: counted, not timed, so it holds on any machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import RedisServer, wait_until

from atomiclock import AsyncLockManager, LockManager, _line

ROOT = Path(__file__).parents[2]


class Counter:
    """Requests that clients sent since it was made; what scripts do inside is not counted."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._before = self._total()

    def _total(self) -> int:
        # What a script calls is counted under its own name, so only what a script cannot be is told apart: these
        # three are never called inside one.
        total = 0
        for line in self._server.command("INFO", "commandstats").splitlines():
            name, _, rest = line.partition(":")
            if name in ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_blpop"):
                total += int(rest.partition("calls=")[2].partition(",")[0])
        return total

    @property
    def sent(self) -> int:
        return self._total() - self._before


def contend(work: Callable[[], None], threads: int) -> None:
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_an_uncontended_cycle_is_two_requests(redis_server: RedisServer) -> None:
    with LockManager(redis_server.url) as locks:
        locks.acquire("x").release()
        counter = Counter(redis_server)
        for number in range(50):
            locks.acquire(f"x{number}").release()
        assert counter.sent == 100


@pytest.mark.parametrize("threads", [2, 10, 50])
def test_requests_for_each_handoff_do_not_grow_with_the_waiters(redis_server: RedisServer, threads: int) -> None:
    with LockManager(redis_server.url, handover=False) as locks:
        locks.acquire("x").release()
        counter = Counter(redis_server)

        def work() -> None:
            for _ in range(10):
                locks.acquire("x", timeout=60).release()

        contend(work, threads)
        assert counter.sent <= 3.2 * 10 * threads


def test_requests_do_not_grow_where_many_wait_in_each_of_two_processes(redis_server: RedisServer) -> None:
    with LockManager(redis_server.url, handover=False) as these, LockManager(redis_server.url, handover=False) as those:
        these.acquire("x").release()
        counter, begun = Counter(redis_server), iter([these, those] * 10)

        def work() -> None:
            locks = next(begun)
            for _ in range(20):
                locks.acquire("x", timeout=60).release()

        contend(work, 20)
        assert counter.sent <= 3.4 * 400


def test_within_a_process_most_handoffs_do_not_reach_the_server(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_line, "SPAN", 60.0)  # a busy machine passes on less often in a tenth of a second
    with LockManager(redis_server.url) as locks:
        lease = locks.acquire("x")
        counter = Counter(redis_server)
        fences: list[int] = []
        tokens: set[str] = set()

        def work() -> None:
            for _ in range(20):
                with locks.acquire("x", timeout=60) as lease:
                    fences.append(lease.fence or 0)
                    tokens.add(lease.token)

        workers = [threading.Thread(target=work) for _ in range(20)]
        for worker in workers:
            worker.start()
        wait_until(lambda: [len(getattr(line, "waiting", ())) for line in locks._store.lines._lines.values()] == [20])
        lease.release()  # only now: a thread that is alone has nobody to pass it on to
        for worker in workers:
            worker.join()
        assert fences == sorted(set(fences))
        assert len(tokens) == 400
        assert counter.sent < 200


def test_while_a_hundred_wait_the_server_is_all_but_idle(redis_server: RedisServer) -> None:
    with LockManager(redis_server.url) as locks, LockManager(redis_server.url) as others:
        lease = others.acquire("x", ttl=60)
        workers = [threading.Thread(target=lambda: locks.acquire("x", timeout=60).release()) for _ in range(100)]
        for worker in workers:
            worker.start()
        time.sleep(0.5)
        counter = Counter(redis_server)
        before = redis_server.command("CLIENT", "LIST").count("cmd=blpop")
        time.sleep(2)
        assert counter.sent <= 3
        assert before == 1, "one connection waits for all"
        lease.release()
        for worker in workers:
            worker.join()


def test_ten_thousand_tasks_wait_on_one_name(redis_server: RedisServer) -> None:
    async def main() -> list[int]:
        fences: list[int] = []
        # To begin ten thousand tasks keeps the loop of a busy machine for seconds, in which it hears no reply.
        async with AsyncLockManager(f"{redis_server.url}?io_timeout=60") as locks:

            async def work() -> None:
                async with locks.acquire("x", timeout=100) as lease:
                    fences.append(lease.fence or 0)

            counter = Counter(redis_server)
            await asyncio.gather(*(work() for _ in range(10_000)))
            assert counter.sent < 2000
        return fences

    fences = asyncio.run(main())
    assert len(fences) == 10_000
    assert fences == sorted(set(fences))


PROCESS = """
import sys, time
from atomiclock import LockManager
locks = LockManager(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    locks.acquire("x", timeout=60).release()
"""


def test_between_processes_a_handoff_is_three_requests(redis_server: RedisServer) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, redis_server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    counter = Counter(redis_server)
    for child in children:
        child.communicate("go\n", timeout=60)
        assert child.returncode == 0
    assert counter.sent <= 3.3 * 400
