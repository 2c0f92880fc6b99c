"""Processes that are killed, stopped, forked, or that just end, while they hold, wait for or renew a lock."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tally import chosen

import atomiclock
from atomiclock import Lease, LockLost, LockManager, NotHeld

SOURCE = str(Path(atomiclock.__file__).parents[1])
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def url_of(backend: str, request: pytest.FixtureRequest) -> str:
    if backend == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/locks.db"
    url: str = request.getfixturevalue(f"{backend}_server").url
    return url


@pytest.fixture(params=["redis", "sqlite", "memcached"])
def url(request: pytest.FixtureRequest) -> str:
    """For tests that fork. Those of etcd are in a process of their own: `tests/etcd/test_processes.py`."""
    return url_of(request.param, request)


@pytest.fixture(params=["redis", "sqlite", "memcached", "etcd"])
def any_url(request: pytest.FixtureRequest) -> str:
    return url_of(request.param, request)


def orphaned_for(url: str, ttl: float) -> float:
    """Seconds for which the lock of a process that died may be taken, and then somebody busy to notice."""
    return 1.2 if url.startswith("sqlite") else ttl + 1.5 + {"mem": 3, "etc": 2}.get(url[:3], 0)


@contextlib.contextmanager
def child(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-W", "always", "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise AssertionError(process.communicate()[1])
    return line


HOLD = """
import sys, time
from atomiclock import LockManager
lease = LockManager(sys.argv[1]).acquire("x", ttl=float(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""

HOLD_AND_TELL = """
import sys
from atomiclock import LockManager, LockLost
lease = LockManager(sys.argv[1]).acquire("x", ttl=float(sys.argv[2]))
print("held", flush=True)
for line in sys.stdin:
    held = bool(lease)
    try:
        lease.release()
        print(held, "released", flush=True)
    except LockLost:
        print(held, "lost", flush=True)
"""


def test_lock_of_a_killed_holder_is_free_at_once_on_sqlite_and_after_its_ttl_elsewhere(any_url: str) -> None:
    locks = LockManager(any_url)
    with child(HOLD, any_url, 2) as process:
        assert line_of(process) == "held"
        assert locks.try_acquire("x") is None
        process.kill()
        process.wait()
        begun = time.monotonic()
        lease = locks.acquire("x", timeout=10)
        took = time.monotonic() - begun
    assert took < orphaned_for(any_url, 2)
    lease.release()
    locks.close()


def test_waiter_notices_at_once_that_the_holder_on_its_machine_was_killed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/locks.db"
    locks = LockManager(url)
    with child(HOLD, url, 600) as process:
        assert line_of(process) == "held"
        threading.Timer(0.4, process.kill).start()
        begun = time.monotonic()
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        lease = locks.acquire("x", timeout=20)
        assert time.monotonic() - begun < 0.4 + 5, "at once, by its ttl of ten minutes"
        reaper.join()
    lease.release()
    locks.close()


def is_untouched(lease: Lease, locks: LockManager) -> None:
    time.sleep(0.7)  # a renewal of the other would have come by now
    lease.check()
    holder = locks.holder("x")
    assert holder is not None
    assert holder.token == lease.token


def test_holder_that_was_stopped_past_its_ttl_knows_at_once_and_touches_nobody(any_url: str) -> None:
    locks = LockManager(any_url)
    with child(HOLD_AND_TELL, any_url, 1) as process:
        assert line_of(process) == "held"
        process.send_signal(signal.SIGSTOP)
        lease = locks.acquire("x", timeout=10, ttl=30)
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("release\n")
        process.stdin.flush()
        assert line_of(process) == "False lost"
        is_untouched(lease, locks)
    lease.release()
    locks.close()


STAND_STILL = {
    # C code that keeps the interpreter until a byte comes: no thread of this process runs meanwhile.
    "C code keeps the interpreter": """
import ctypes, sys
from atomiclock import LockManager, LockLost
lease = LockManager(sys.argv[1]).acquire("x", ttl=1)
print("held", flush=True)
ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
held = bool(lease)
try:
    lease.release()
except LockLost:
    print(held, "lost", flush=True)
sys.stdin.read()
""",
    "the event loop is blocked": """
import asyncio, os, sys
from atomiclock import AsyncLockManager, LockLost
async def main():
    lease = await AsyncLockManager(sys.argv[1]).acquire("x", ttl=1)
    print("held", flush=True)
    os.read(0, 1)
    held = bool(lease)
    await asyncio.sleep(0)
    try:
        await lease.release()
    except LockLost:
        print(held, "lost", flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
""",
}


@pytest.mark.parametrize("how", STAND_STILL)
def test_holder_that_cannot_run_past_its_ttl_knows_at_once_and_touches_nobody_when(any_url: str, how: str) -> None:
    with LockManager(any_url) as locks, child(STAND_STILL[how], any_url) as process:
        assert line_of(process) == "held"
        with locks.acquire("x", timeout=10, ttl=30) as lease:  # while it lives, and is not stopped
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
            assert line_of(process) == "False lost"
            is_untouched(lease, locks)


WAIT = """
import sys
from atomiclock import LockManager
print("waiting", flush=True)
LockManager(sys.argv[1]).acquire("x", ttl=2, timeout=60)
print("got it", flush=True)
"""


def test_waiter_that_is_killed_keeps_nobody_out(any_url: str) -> None:
    with LockManager(any_url) as locks, LockManager(any_url) as others:
        held = locks.acquire("x", ttl=20, timeout=5)
        with child(WAIT, any_url) as process:
            assert line_of(process) == "waiting"
            time.sleep(0.5)  # etcd takes a while to connect
            process.kill()
            process.wait()
        held.release()
        begun = time.monotonic()
        others.acquire("x", timeout=20).release()
        assert time.monotonic() - begun < orphaned_for(any_url, 2) + 0.5
        assert locks.holder("x") is None


def test_waiters_that_are_killed_one_after_the_other_keep_nobody_out_for_longer_than_the_last_of_them(
    any_url: str,
) -> None:
    """On etcd each has a place in the queue, which stands for the ttl after its last word: they end side by side."""
    with LockManager(any_url) as locks, LockManager(any_url) as others, contextlib.ExitStack() as stack:
        held = locks.acquire("x", ttl=20, timeout=5)
        waiters = [stack.enter_context(child(WAIT, any_url)) for _ in range(3)]
        for process in waiters:
            assert line_of(process) == "waiting"
        time.sleep(0.5)
        served: list[float] = []

        def be_served() -> None:
            lease = others.acquire("x", timeout=60)
            served.append(time.monotonic())
            lease.release()

        last = threading.Thread(target=be_served)
        last.start()
        time.sleep(0.5)
        held.release()
        died = 0.0
        for process in waiters:
            process.kill()
            process.wait()
            died = time.monotonic()
            time.sleep(0.7)
        last.join(60)
        assert served[0] - died < orphaned_for(any_url, 2) + 0.5


CYCLES = """
import sys
from atomiclock import LockManager
locks = LockManager(sys.argv[1])
locks.acquire("x", ttl=2, timeout=20).release()
print("ready", flush=True)
while True:
    locks.acquire("x", ttl=2, timeout=20).release()
"""


def test_process_that_is_killed_in_the_middle_of_acquire_or_release_leaves_the_lock_for_its_ttl_at_most(
    any_url: str,
) -> None:
    with LockManager(any_url) as locks:
        for turn in range(chosen(2, 10)):
            with child(CYCLES, any_url) as process:
                assert line_of(process) == "ready"
                time.sleep(0.0037 * (turn + 1))
                process.kill()
                process.wait()
                begun = time.monotonic()
                locks.acquire("x", ttl=2, timeout=20).release()
                assert time.monotonic() - begun < orphaned_for(any_url, 2) + 0.5


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a fork that runs `work`: 0 if it raised nothing."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(20)
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@FORKS
def test_child_of_a_holder_neither_believes_nor_renews_nor_releases(url: str) -> None:
    locks = LockManager(url)
    lease = locks.acquire("x", ttl=3)

    def work() -> None:
        assert not lease
        assert lease.lost
        for call in (lease.check, lease.extend, lease.release):
            with pytest.raises(LockLost):
                call()
        with pytest.raises(LockLost), lease:
            pass
        assert locks.try_acquire("x") is None
        begun = time.monotonic()
        locks.acquire("another", timeout=5).release()
        assert time.monotonic() - begun < 4
        time.sleep(1)

    assert in_child(work) == 0
    assert lease
    time.sleep(2.5)
    lease.check()
    lease.release()
    locks.close()


@FORKS
def test_child_that_leaves_the_with_block_of_its_parent_releases_nothing(url: str) -> None:
    locks = LockManager(url)
    with atomiclock.acquire_lock("x", url) as lease:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                try:
                    lease.__exit__(None, None, None)
                finally:
                    del lease
            os._exit(0)
        os.waitpid(pid, 0)
        lease.check()
        assert locks.try_acquire("x") is None
    locks.close()


@FORKS
def test_fork_while_a_thread_waits_gives_the_lock_once(url: str) -> None:
    locks = LockManager(url)
    held = locks.acquire("x")
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(locks.acquire("x", timeout=20)))
    waiter.start()
    time.sleep(0.1)

    def work() -> None:
        assert locks.try_acquire("x") is None
        locks.acquire("another", timeout=5).release()

    assert in_child(work) == 0
    held.release()
    waiter.join(5)
    assert len(got) == 1
    assert locks.try_acquire("x") is None
    got[0].release()
    locks.acquire("x", timeout=0).release()
    locks.close()


@FORKS
def test_fork_in_the_middle_of_renewals_leaves_both_sides_working(url: str) -> None:
    locks = LockManager(url)
    leases = [locks.acquire(f"name {index}", ttl=2) for index in range(5)]

    def work() -> None:
        mine = [locks.acquire(f"{os.getpid()} {index}", ttl=2) for index in range(3)]
        time.sleep(0.7)
        for lease in mine:
            lease.release()

    for _ in range(4):
        assert in_child(work) == 0
        for lease in leases:
            lease.check()
    for lease in leases:
        lease.release()
    locks.close()


FORKED_WHILE_THE_DRIVER_LOADS = """
import os, sys, threading, time
from importlib.abc import MetaPathFinder
from atomiclock import LockManager

loading = threading.Event()

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if threading.current_thread() is not threading.main_thread() and not loading.is_set():
            loading.set()
            time.sleep(0.5)

sys.meta_path.insert(0, Slow())
if sys.argv[2] == "open":  # all but what the first request loads
    locks = LockManager(sys.argv[1])
def use(name):
    with (locks if sys.argv[2] == "open" else LockManager(sys.argv[1])) as mine:
        mine.acquire(name, timeout=5).release()
thread = threading.Thread(target=use, args=("parent",))
thread.start()
print("loading" if loading.wait(3) else "loaded", flush=True)
child = os.fork()
if child == 0:
    use("child")
    os._exit(0)
thread.join()
end = time.monotonic() + 8
while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
    time.sleep(0.01)
os.kill(child, 9) if done[0] == 0 else None
print("hangs" if done[0] == 0 else done[1], flush=True)
"""


@pytest.mark.parametrize("begins", ["manager", "open"])
def test_fork_while_a_thread_loads_the_driver_lets_the_child_load_it_too(any_url: str, begins: str) -> None:
    with child(FORKED_WHILE_THE_DRIVER_LOADS, any_url, begins) as process:
        began = line_of(process)
        assert line_of(process) == "0"
    if begins == "manager":
        assert began == "loading"


LOADS = """
import sys
from atomiclock import LockManager, _process
class Loading:
    def __enter__(self):
        self.before = set(sys.modules)
    def __exit__(self, *_):
        seen.update(set(sys.modules) - self.before)
seen, _process.loading = set(), Loading()
import atomiclock._manager, atomiclock._observe
locks, before = LockManager(sys.argv[1]), set(sys.modules)
with locks.acquire("x") as lease:
    lease.extend()
    locks.try_acquire("x")
locks.holder("x")
print(*(set(sys.modules) - before - seen), ".")
"""


def test_what_a_lock_loads_is_loaded_where_no_fork_comes_in_between(any_url: str) -> None:
    with child(LOADS, any_url) as process:
        assert line_of(process) == "."


ORPHAN = """
import os, sys, time
from atomiclock import LockManager
lease = LockManager(sys.argv[1]).acquire("x", ttl=float(sys.argv[2]))
if os.fork() == 0:
    time.sleep(20)
    os._exit(0)
print("held", flush=True)
os.kill(os.getpid(), 9)
"""


def test_orphan_of_a_dead_holder_blocks_nobody_beyond_the_ttl(any_url: str) -> None:
    locks = LockManager(any_url)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ORPHAN, any_url, "2"],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert line_of(process) == "held"
        process.wait()
        begun = time.monotonic()
        lease = locks.acquire("x", timeout=10)
        assert time.monotonic() - begun < orphaned_for(any_url, 2)
        lease.release()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
    locks.close()


def count_up(job: tuple[str, str, int]) -> None:
    """Adds to a number in a file, unprotected but for the lock."""
    url, path, times = job
    for _ in range(times):
        with atomiclock.acquire_lock("counter", url, timeout=60):
            number = int(Path(path).read_text())
            Path(path).write_text(str(number + 1))


@FORKS
def test_pool_of_forked_workers_never_counts_at_once(url: str, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    with atomiclock.acquire_lock("warm up", url):  # the parent has connections and a keeper to inherit
        with multiprocessing.get_context("fork").Pool(8) as pool:
            pool.map(count_up, [(url, str(counter), 25)] * 8, chunksize=1)
            pool.close()
            pool.join()
    assert counter.read_text() == "200"


EXITS = {
    "holding": 'lease = LockManager(url).acquire("x")',
    "holding by acquire_lock": 'acquire_lock("x", url).__enter__()',
    "holding a lock": 'LockManager(url).lock("x").acquire()',
    "in a thread that waits": """
held = LockManager(url).acquire("x")
threading.Thread(target=LockManager(url).acquire, args=("x",), daemon=True).start()
time.sleep(0.1)""",
    "with a renewal due": 'lease = LockManager(url).acquire("x", ttl=3); time.sleep(1.02)',
    "async": """
async def main():
    global lease
    lease = await AsyncLockManager(url).acquire("x", ttl=3)
    await asyncio.sleep(1.02)
asyncio.run(main())""",
    "async in a wait": """
async def main():
    locks = AsyncLockManager(url)
    lease = await locks.acquire("x")
    asyncio.ensure_future(locks._acquire(locks._attempt("x", locks._core.options()), None))
    await asyncio.sleep(0.1)
asyncio.run(main())""",
}


@pytest.mark.parametrize("how", EXITS)
def test_interpreter_that_ends_while(any_url: str, how: str) -> None:
    """... is quiet and does not hang."""
    start = "import asyncio, sys, threading, time\nfrom atomiclock import *\nurl = sys.argv[1]\n"
    with child(f"{start}{EXITS[how]}\nprint('the end', flush=True)", any_url) as process:
        assert line_of(process) == "the end"
        begun = time.monotonic()
        out, errors = process.communicate(timeout=60)
        took = time.monotonic() - begun
    assert (process.returncode, out, errors) == (0, "", "")
    assert took < 15


def test_sys_exit_inside_with_releases(any_url: str) -> None:
    with child(
        "import sys\nfrom atomiclock import *\nwith acquire_lock('x', sys.argv[1]): sys.exit(3)", any_url
    ) as process:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 3
    locks = LockManager(any_url)
    locks.acquire("x", timeout=0).release()
    locks.close()


@FORKS
def test_lock_object_in_a_child_says_not_held(url: str) -> None:
    locks = LockManager(url)
    lock = locks.lock("x")
    lock.acquire()

    def work() -> None:
        with pytest.raises((LockLost, NotHeld)):
            lock.release()
        assert lock.locked()  # by the parent

    assert in_child(work) == 0
    lock.release()
    locks.close()


C_FORK = """
import ctypes, os, sys
from atomiclock import LockManager
locks = LockManager(sys.argv[1])
held = locks.acquire("held", timeout=5)
libc = ctypes.PyDLL(None)  # which keeps the interpreter to itself, as uWSGI does
child = ctypes.pythonapi.PyOS_AfterFork_Child, libc.fork()
if child[1] == 0:
    child[0]()
    locks.acquire("mine", timeout=5).release()
    print(held.lost, flush=True)
    os._exit(0)
print(os.waitpid(child[1], 0)[1], flush=True)
"""


@pytest.mark.parametrize("backend", ["redis", "memcached", "etcd"])  # SQLite must be told before
def test_a_fork_by_c_code_that_tells_python_only_afterwards_is_one_too(
    backend: str, request: pytest.FixtureRequest
) -> None:
    """As uWSGI's with `py-call-osafterfork`."""
    with child(C_FORK, url_of(backend, request)) as process:
        assert [line_of(process), line_of(process)] == ["True", "0"]
        assert process.stderr is not None
        process.wait(10)
        assert process.stderr.read() == ""
