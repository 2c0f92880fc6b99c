"""Forks, the end of a process, dropped managers, and gevent."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from servers import EtcdServer, wait_until

from atomiclock import LockManager, LockTimeout
from atomiclock.backends._etcd_session import Link
from atomiclock.testing._facade import Interrupted


def run_python(code: str, *arguments: str, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)


FORKS = """
    import os, sys, threading, time, warnings
    from atomiclock import BackendUnavailable, LockManager
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork and threads

    url, stop, errors = sys.argv[1], threading.Event(), []
    locks, another = LockManager(url, ttl=3), LockManager(url, ttl=3)
    lease = locks.acquire("held")
    got = []
    waiter = threading.Thread(target=lambda: got.append(another.acquire("held", timeout=60)))
    waiter.start()

    def work(number):
        while not stop.is_set():
            try:
                if number:
                    locks.acquire(f"busy{number}", timeout=10).release()
                else:
                    assert another.try_acquire("held") is None
            except BaseException as error:
                errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()

    def child(number):
        if lease or locks.try_acquire("held") is not None:
            return 3
        with locks.acquire(f"child{number}", timeout=10) as mine:
            mine.extend()
        for manager in (locks, another):
            try:
                manager.acquire("held", timeout=0.3)
                return 4
            except (TimeoutError, BackendUnavailable):  # a busy machine may not answer in that time
                pass
        return 0

    bad = []
    for number in range(12):
        pid = os.fork()
        if pid == 0:
            try:
                code = child(number)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                code = 5
            if number % 2:
                os._exit(code)
            sys.exit(code)  # runs what is registered for the end of a process
        begun = time.monotonic()
        while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - begun > 20:
                os.kill(pid, 9)
            time.sleep(0.005)
        if found[1]:
            bad.append((number, found[1]))
    stop.set()
    for worker in workers:
        worker.join()
    lease.check()
    lease.release()
    waiter.join()
    got[0].release()
    print(bad, errors)
"""


def test_forks_while_holding_renewing_waiting_and_calling(etcd_server: EtcdServer) -> None:
    done = run_python(FORKS, etcd_server.url)
    assert done.stdout == "[] []\n", done.stdout + done.stderr
    assert done.returncode == 0
    # What a child has kept for its next lock, or was taking back when it ended, is left to the ttl.
    wait_until(lambda: not etcd_server.leases(), 10, what="no lease is left")
    assert etcd_server.keys() == []


ASYNC_FORKS = """
    import asyncio, os, sys, warnings
    from atomiclock import AsyncLockManager, LockManager
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork and threads
    url = sys.argv[1]

    def child(locks):
        async def main():
            async with locks.acquire("child", timeout=10):
                return await locks.try_acquire("held") is None

        asyncio.events._set_running_loop(None)
        both = [asyncio.run(main()), asyncio.run(main())]
        with LockManager(url).acquire("child", timeout=10):
            return both == [True, True]

    async def main():
        bad = []
        async with AsyncLockManager(url) as locks, locks.acquire("held", ttl=3) as lease:
            waiter = asyncio.create_task(take(locks, "held"))
            await asyncio.sleep(0.2)
            for number in range(10):
                under_way = asyncio.create_task(take(locks, f"w{number}"))
                await asyncio.sleep(0.0005)
                pid = os.fork()
                if pid == 0:
                    code = 3
                    try:
                        code = 0 if child(locks) else 4
                    finally:
                        os._exit(code)
                await under_way
                status = (await asyncio.to_thread(os.waitpid, pid, 0))[1]
                if status:
                    bad.append(status)
            lease.check()
            await lease.release()
            await waiter
        print(bad)

    async def take(locks, name):
        async with locks.acquire(name, timeout=60):
            pass

    asyncio.run(main())
"""


def test_forks_from_an_event_loop(etcd_server: EtcdServer) -> None:
    done = run_python(ASYNC_FORKS, etcd_server.url)
    assert done.stdout == "[]\n", done.stdout + done.stderr
    assert etcd_server.keys() == []


ENDS = """
    import asyncio, sys, threading, time
    from atomiclock import AsyncLockManager, LockManager, acquire_lock
    url, how = sys.argv[1:]
    locks = LockManager(url)
    lease = locks.acquire("a", ttl=3)
    lease.extend()
    threading.Thread(target=lambda: locks.acquire("a", ttl=3, timeout=60), daemon=True).start()
    if how == "async":
        async def main():
            other = AsyncLockManager(url)
            lease = await other.acquire("b", ttl=3)
            await lease.extend()
            waiter = asyncio.create_task(wait(other))
            await asyncio.sleep(0.3)
        async def wait(other):
            await other.acquire("b", ttl=3, timeout=60)
        asyncio.run(main())
    time.sleep(0.3)
    if how == "error":
        raise SystemExit(7)
"""


@pytest.mark.parametrize("how", ["plain", "error", "async"])
def test_a_process_ends_with_locks_held_and_waited_for(etcd_server: EtcdServer, how: str) -> None:
    done = run_python(ENDS, etcd_server.url, how, seconds=20)
    assert done.returncode == (7 if how == "error" else 0), done.stderr
    assert done.stderr == ""
    wait_until(lambda: not etcd_server.leases(), 10, what="all is free after the ttl")
    assert etcd_server.keys() == []


def test_a_manager_that_is_dropped_takes_its_threads_along(etcd_server: EtcdServer) -> None:
    def use() -> None:
        locks = LockManager(etcd_server.url, renew=False, ttl=3)  # the keeper may remember it for so long
        with locks.acquire("a") as lease:
            lease.extend()
            with pytest.raises(TimeoutError):
                locks.acquire("b", timeout=0.1)  # of another manager; who waits in a line is remembered as well

    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "atomiclock-etcd-watch"]

    with LockManager(etcd_server.url) as others, others.acquire("b"):
        before = len(ours())
        for _ in range(5):
            use()
        gc.collect()
        wait_until(lambda: len(ours()) <= before, what="the threads of the streams end")


def test_a_signal_just_when_the_stream_is_open_leaves_no_thread(
    etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise Interrupted

    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "atomiclock-etcd-watch"]

    with LockManager(etcd_server.url) as others, others.acquire("a"), LockManager(etcd_server.url) as locks:
        before = ours()
        with monkeypatch.context() as patch:
            patch.setattr(Link, "adopt", interrupted)
            with pytest.raises(Interrupted):
                locks.acquire("a", timeout=5)
        wait_until(lambda: ours() == before, 3, what="nobody knows the stream, and its thread ends")
        with pytest.raises(LockTimeout):
            locks.acquire("a", timeout=0.2)


GEVENT = """
    from gevent import monkey
    monkey.patch_all()
    import gevent, sys, time
    from atomiclock import LockManager

    locks, another, ticks = LockManager(sys.argv[1]), LockManager(sys.argv[1]), []

    def tick():
        while True:
            ticks.append(time.monotonic())
            gevent.sleep(0.01)

    ticker = gevent.spawn(tick)
    with locks.acquire("a", ttl=2) as lease:
        waiter = gevent.spawn(lambda: another.acquire("a", timeout=20))
        gevent.sleep(2.5)
        assert lease and not waiter.ready()
        assert another.try_acquire("a") is None
    waiter.get(timeout=5).release()
    gap = max(b - a for a, b in zip(ticks, ticks[1:]))
    ticker.kill()
    print(len(ticks) > 150, gap < 0.5)
    locks.close()
    another.close()
"""


def test_under_gevent_the_other_greenlets_go_on(etcd_server: EtcdServer) -> None:
    done = run_python(GEVENT, etcd_server.url, seconds=60)
    assert done.stdout == "True True\n", done.stdout + done.stderr
    assert etcd_server.keys() == []


def test_prefork_children_of_multiprocessing(etcd_server: EtcdServer) -> None:
    import multiprocessing
    import warnings

    with LockManager(etcd_server.url) as locks, locks.acquire("held", ttl=3) as lease, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=2) as pool:
            found: list[Any] = pool.starmap(_count, [(etcd_server.url,)] * 8, chunksize=1)
            pool.close()
            pool.join()
        lease.extend()
    assert found == [True] * 8


def _count(url: str) -> bool:
    from atomiclock import acquire_lock

    with acquire_lock("count", url, timeout=20) as lease:
        return bool(lease) and LockManager(url).try_acquire("held") is None
