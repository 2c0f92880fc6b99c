"""Networks and servers that fail, processes that fork or are interrupted: nobody may be wrong about the lock."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mcproxy import Fault, Proxy
from servers import MemcachedServer, wait_until

from atomiclock import BackendUnavailable, LockError, LockLost, LockManager, _sync
from atomiclock.backends import Add, clock
from atomiclock.testing._base import SLACK

LOST = ("reset", "truncated", "never")
BOUND = 1.0


@pytest.fixture
def locks(make: Callable[..., Any], proxy: Proxy) -> Any:
    locks = make(f"{proxy.url}?io_timeout={BOUND}")
    locks.holder("warm up")
    return locks


@pytest.mark.parametrize("reply", LOST)
def test_an_acquire_whose_reply_is_lost_ends_in_a_lease_that_the_server_confirms(
    locks: Any, proxy: Proxy, memcached_server: MemcachedServer, reply: str
) -> None:
    fault = proxy.script(Fault("add", reply=reply))
    lease = locks.acquire("x", timeout=5, renew=False)
    assert fault.hit.is_set()
    holder = locks.holder("x")
    assert (holder.token, holder.fence) == (lease.token, lease.fence)
    assert lease.remaining <= int(memcached_server.command("mg atomiclock:x t").split("t")[1])
    lease.release()
    assert memcached_server.keys() == []


def test_a_waiter_whose_reply_is_lost_looks_whether_it_has_the_lock(
    make: Callable[..., Any], proxy: Proxy, memcached_server: MemcachedServer
) -> None:
    """It was refused many times before, and had no need to look each time by whom."""
    released: list[float] = []
    with LockManager(memcached_server.url) as others:
        theirs = others.acquire("x", ttl=60)

        def release() -> None:
            theirs.release()
            released.append(time.monotonic())

        proxy.script(Fault("add", skip=12, reply="reset", before=release))
        lease = make(proxy.url).acquire("x", ttl=60, timeout=30, renew=False)
        assert time.monotonic() - released[0] < 2, "sooner than it would have looked anyway"
        assert others.holder("x").token == lease.token
        lease.release()


@pytest.mark.parametrize("reply", LOST)
@pytest.mark.parametrize("timeout", [0, 0.4])
def test_an_acquire_that_never_hears_an_answer_leaves_nothing_behind(
    locks: Any, proxy: Proxy, memcached_server: MemcachedServer, reply: str, timeout: float
) -> None:
    proxy.script(Fault("add", times=9**9, reply=reply))
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable):
        locks.acquire("x", timeout=timeout)
    assert time.monotonic() - begun < (timeout or BOUND) + SLACK
    wait_until(lambda: memcached_server.keys() == [], 5, "it is taken back, long before its ttl of 30 s")


@pytest.mark.parametrize("reply", LOST)
def test_an_extension_whose_reply_is_lost_is_repeated_and_its_version_found(
    locks: Any, proxy: Proxy, memcached_server: MemcachedServer, reply: str
) -> None:
    lease = locks.acquire("x", timeout=5, renew=False)
    proxy.script(Fault("extend", reply=reply))
    lease.extend(100)
    assert lease.remaining > 90
    assert int(memcached_server.command("mg atomiclock:x t").split("t")[1]) > 100
    lease.extend(60)
    lease.release()
    assert memcached_server.keys() == []


@pytest.mark.parametrize("reply", LOST)
def test_a_release_whose_reply_is_lost_is_a_success(
    locks: Any, proxy: Proxy, memcached_server: MemcachedServer, reply: str
) -> None:
    lease = locks.acquire("x", timeout=5)
    proxy.script(Fault("remove", reply=reply))
    lease.release()
    assert not lease.lost
    assert memcached_server.keys() == []


def test_a_late_release_does_not_touch_the_next_holder(locks: Any, proxy: Proxy, make: Callable[..., Any]) -> None:
    lease = locks.acquire("x", timeout=5, renew=False)
    proxy.script(Fault("remove", late=True))
    lease.release()
    with locks.acquire("x", timeout=5) as next_lease:
        assert proxy.deliver()[0].split(b" ")[0] in (b"NF", b"EX")
        assert locks.holder("x").token == next_lease.token


def test_a_late_add_does_not_keep_the_lock(locks: Any, proxy: Proxy, memcached_server: MemcachedServer) -> None:
    """memcached cannot refuse it, so its token is removed again and again until its ttl is over."""
    proxy.script(Fault("add", times=9, late=True))
    with pytest.raises(LockError):
        locks.acquire("x", timeout=0)
    assert memcached_server.keys() == []
    time.sleep(0.5)
    assert proxy.deliver()[0].startswith(b"HD")
    wait_until(lambda: memcached_server.keys() == [], 3, "the ghost is removed, long before its ttl of 30 s")
    proxy.script()
    locks.acquire("x", timeout=5).release()


def test_a_late_extension_does_not_bring_a_released_lock_back(
    locks: Any, proxy: Proxy, memcached_server: MemcachedServer
) -> None:
    lease = locks.acquire("x", timeout=5, renew=False)
    proxy.script(Fault("extend", late=True))
    lease.extend()
    lease.release()
    proxy.deliver()
    assert memcached_server.keys() == []


def test_a_server_that_drips_is_given_up_at_the_deadline(locks: Any, proxy: Proxy) -> None:
    proxy.script(Fault("add", times=9**9, reply="drip"), Fault("look", times=9**9, reply="drip"))
    begun = time.monotonic()
    with pytest.raises(LockError):
        locks.acquire("x", timeout=0.5)
    assert time.monotonic() - begun < 0.5 + SLACK


def test_a_server_that_hangs_is_given_up_at_the_deadline(
    make: Callable[..., Any], own_memcached: MemcachedServer
) -> None:
    warm, cold = make(f"{own_memcached.url}?io_timeout=0.6"), make(f"{own_memcached.url}?io_timeout=0.6")
    lease = warm.acquire("x", timeout=5, renew=False)
    with own_memcached.frozen():
        for locks in (warm, cold):
            for call in (
                lambda locks=locks: locks.acquire("y", timeout=0.3),
                lambda locks=locks: locks.try_acquire("y"),
                lambda locks=locks: locks.holder("y"),
                lambda locks=locks: locks.acquire("y"),
            ):
                begun = time.monotonic()
                with pytest.raises((BackendUnavailable, LockError)):
                    call()
                assert time.monotonic() - begun < 0.6 + SLACK
        for call in (lease.extend, lease.release):
            begun = time.monotonic()
            with pytest.raises(BackendUnavailable):
                call()
            assert time.monotonic() - begun < 0.6 + SLACK
    lease.release()
    wait_until(lambda: own_memcached.keys() == [], 10, "what was tried meanwhile is taken back")


def test_a_restart_is_told_at_the_next_renewal_and_others_get_in(
    make: Callable[..., Any], own_memcached: MemcachedServer
) -> None:
    locks = make(own_memcached.url)
    told: list[Any] = []
    lease = locks.acquire("x", timeout=5, ttl=6, on_lost=told.append)
    own_memcached.restart()
    with locks.acquire("x", timeout=10) as next_lease:
        wait_until(lambda: told, 6 + SLACK, "the holder is told")
        assert locks.holder("x").token == next_lease.token
        assert next_lease.fence > lease.fence
    with pytest.raises(LockLost):
        lease.release()


def test_a_flush_is_told_at_the_next_renewal(make: Callable[..., Any], memcached_server: MemcachedServer) -> None:
    told: list[Any] = []
    lease = make(memcached_server.url).acquire("x", timeout=5, ttl=3, on_lost=told.append)
    memcached_server.command("flush_all")
    wait_until(lambda: told, 3 + SLACK, "the holder is told")
    assert lease.lost


class Limit(Exception):
    """As Celery's soft time limit: raised by a signal handler, anywhere."""


@contextlib.contextmanager
def raised_after(seconds: float) -> Iterator[None]:
    def handler(*_: object) -> None:
        raise Limit

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_call_that_was_interrupted_never_answers_the_next(proxy: Proxy, memcached_server: MemcachedServer) -> None:
    locks = LockManager(proxy.url)
    foreign = LockManager(memcached_server.url).acquire("foreign", ttl=600, renew=False, timeout=5)
    interrupted = 0
    for index in range(30):
        proxy.script(Fault("add", delay=0.02))
        lease = None
        try:
            with raised_after(0.001 + 0.001 * index):
                lease = locks.acquire(f"name-{index}", timeout=5)
                lease.release()
        except Limit:
            interrupted += 1
        proxy.script()
        assert locks.try_acquire("foreign") is None, "it read the answer to another request"
        if lease is not None:
            with contextlib.suppress(LockError):
                lease.release()
    assert interrupted > 10
    wait_until(lambda: len(memcached_server.keys()) == 1, 5, "what was interrupted is taken back")
    foreign.release()
    locks.close()


def test_a_forked_child_uses_connections_of_its_own(memcached_server: MemcachedServer) -> None:
    locks = LockManager(memcached_server.url)
    held = locks.acquire("held", timeout=5)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for index in range(200):
                locks.acquire(f"child-{index}", timeout=5).release()
            code = 0 if locks.try_acquire("held") is None and not held else 2
        finally:
            os._exit(code)
    for index in range(200):
        locks.acquire(f"parent-{index}", timeout=5).release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert held
    held.release()
    assert memcached_server.keys() == []
    locks.close()


def test_a_server_that_is_full_of_connections_is_unavailable(make: Callable[..., Any], tmp_path: Any) -> None:
    server = MemcachedServer(tmp_path, "-c", "30").start()
    try:
        server.wait_until_old_enough()
        with contextlib.ExitStack() as stack:
            said = b"MN"
            while said.startswith(b"MN"):
                sock = stack.enter_context(server.connect())
                sock.sendall(b"mn\r\n")
                said = sock.recv(100)
            begun = time.monotonic()
            with pytest.raises(BackendUnavailable, match=r"(?i)connection"):
                make(server.url).acquire("x", timeout=0.5)
            assert time.monotonic() - begun < 0.5 + SLACK
    finally:
        server.stop()


def test_many_threads_share_a_manager(memcached_server: MemcachedServer) -> None:
    locks, errors = LockManager(memcached_server.url), []

    def work(number: int) -> None:
        try:
            for index in range(100):
                with locks.acquire(f"{number}-{index % 3}", timeout=10) as lease:
                    assert locks.holder(lease.name).token == lease.token  # type: ignore[union-attr]  # it is held
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number % 4,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert memcached_server.keys() == []
    locks.close()


@pytest.mark.parametrize("at", ["bury", "leave"])
def test_what_lands_after_a_release_is_removed_though_a_signal_came_right_after_the_release(
    memcached_server: MemcachedServer, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Before the keeper is told to look out for it, and just after."""
    with LockManager(memcached_server.url) as locks:
        lease = locks.acquire("x", ttl=20)
        hold, places = lease._hold, {"bury": _sync.keeper, "leave": locks._store.lines}
        hold.in_flight = 1  # as after an add whose answer was lost, and which was repeated

        def interrupted(*_: Any) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(places[at], at, interrupted)
        with pytest.raises(KeyboardInterrupt):
            lease.release()
        assert memcached_server.keys() == []
        now = clock()
        locks._store.perform(Add(hold.key, hold.token, 20.0, "late", False, now + 5, {}))
        assert memcached_server.keys() == ["atomiclock%3Ax"]
        wait_until(lambda: memcached_server.keys() == [], 5, "removed long before its ttl is over")
