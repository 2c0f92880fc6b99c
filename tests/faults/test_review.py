"""What a hostile review found, each kept as a test."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from servers import RedisServer, wait_until

import atomiclock
from atomiclock import AsyncLockManager, ConfigurationError, LockManager, NotHeld, _sync, acquire_lock

FORK_AND_CLOSE = """
import os, subprocess, sys, time
from atomiclock import LockManager
url = sys.argv[1]
master = LockManager(url)
master.acquire("warm").release()
read, write = os.pipe()
child = os.fork()
if child == 0:
    mine = LockManager(url)
    mine.acquire("warm").release()
    master.acquire("other").release()
    os.read(read, 1)
    lease = mine.acquire("job")
    seen = subprocess.run([sys.executable, "-c", sys.argv[2], url], capture_output=True, text=True).stdout.strip()
    os._exit(0 if seen == "None" and lease else 1)
time.sleep(0.2)
master.close()
os.write(write, b"x")
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
LOOK = 'import sys; from atomiclock import LockManager; print(LockManager(sys.argv[1]).try_acquire("job"))'

FORK_WHILE_OTHERS_LOCK = """
import os, sys, threading, time, warnings
from atomiclock import LockManager
warnings.simplefilter("ignore")
locks = LockManager(sys.argv[1])
end = time.monotonic() + 3
def work(name):
    while time.monotonic() < end:
        locks.acquire(name).release()
for name in "abc":
    threading.Thread(target=work, args=(name,), daemon=True).start()
forks = 0
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        try:
            locks.acquire(f"fresh {forks}", timeout=3).release()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("a child could not lock")
    forks += 1
print(forks)
"""


def run(script: str, *words: str) -> str:
    where = {**os.environ, "PYTHONPATH": str(Path(atomiclock.__file__).parents[1])}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=where)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_lock_file_is_open_across_a_fork_so_the_parents_close_lets_nobody_in(tmp_path: Path) -> None:
    run(FORK_AND_CLOSE, f"sqlite:///{tmp_path}/locks.db", LOOK)


def test_a_fork_waits_for_the_transactions_of_other_threads(tmp_path: Path) -> None:
    assert int(run(FORK_WHILE_OTHERS_LOCK, f"sqlite:///{tmp_path}/locks.db")) > 2, "it went on"


def test_connections_that_were_given_up_do_not_use_up_a_limit(redis_server: RedisServer) -> None:
    locks = LockManager(redis_server.url)
    for _ in range(150):
        locks.acquire("a").release()
        locks.close()


def test_an_interrupt_while_waking_the_keeper_does_not_stop_all_later_renewals(monkeypatch: Any) -> None:
    monkeypatch.setattr(_sync, "keeper", _sync.KeeperThread())
    locks = LockManager("memory://interrupted")
    locks.acquire("first", ttl=30).release()
    real = _sync.KeeperThread._rouse

    def interrupted(self: Any) -> None:
        monkeypatch.setattr(_sync.KeeperThread, "_rouse", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(_sync.KeeperThread, "_rouse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locks.acquire("second", ttl=0.5)
    with locks.acquire("third", ttl=2) as lease:
        time.sleep(2.5)
        lease.check()


def test_the_keeper_outlives_a_callback_that_cannot_be_started(monkeypatch: Any) -> None:
    monkeypatch.setattr(_sync, "keeper", _sync.KeeperThread())
    locks = LockManager("memory://no-threads")
    told: list[str] = []
    with locks.acquire("kept", ttl=2) as kept:
        real = threading.Thread.start

        def start(self: threading.Thread) -> None:
            if self.name == "atomiclock-on-lost":
                raise RuntimeError("can't start new thread")
            real(self)

        monkeypatch.setattr(threading.Thread, "start", start)
        lost = locks.acquire("lost", ttl=0.2, renew=False, on_lost=lambda lease: told.append(lease.name))
        wait_until(lambda: told == ["lost"], what="told")
        assert lost.lost
        time.sleep(2.5)
        kept.check()


def test_a_block_that_ends_on_another_thread_or_task_releases_the_lock() -> None:
    locks = LockManager("memory://moved")
    lock = locks.lock("a")
    lock.__enter__()
    thread = threading.Thread(target=lock.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert locks.holder("a") is None

    async def main() -> None:
        moved = AsyncLockManager("memory://moved").lock("b")
        await moved.__aenter__()
        await asyncio.create_task(moved.__aexit__(None, None, None))
        assert locks.holder("b") is None

    asyncio.run(main())


def test_an_error_of_an_option_carries_the_locks_name() -> None:
    locks = LockManager("memory://named")
    for mistake in (
        lambda: locks.acquire("nm", ttl=0),
        lambda: locks.lock("nm", ttl=-1),
        lambda: acquire_lock("nm", ttl=-1),
        lambda: acquire_lock("nm", "redsi://h").__enter__(),
    ):
        with pytest.raises(ConfigurationError) as caught:
            mistake()
        assert caught.value.name == "nm"


def test_a_function_that_returns_a_coroutine_is_not_run_without_its_lock() -> None:
    async def body() -> None: ...

    @acquire_lock("a", "memory://decorated")
    def plain() -> Any:
        return body()

    with pytest.raises(ConfigurationError, match="returned a coroutine"):
        plain()

    class Callable:
        async def __call__(self) -> Any:
            return LockManager("memory://decorated").holder("b")

    assert asyncio.run(acquire_lock("b", "memory://decorated")(Callable().__call__)()) is not None


def test_a_released_lease_cannot_be_entered_copied_or_pickled() -> None:
    locks = LockManager("memory://copies")
    lease = locks.acquire("a")
    for misuse in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            misuse(lease)
    with pytest.raises(TypeError):
        pickle.dumps(locks)
    lease.release()
    with pytest.raises(NotHeld):
        lease.__enter__()
