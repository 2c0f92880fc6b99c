"""What a lock costs the server, by the server's own count of calls, and that nothing stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from servers import EtcdServer, wait_until

from atomiclock import LockManager, LockTimeout

STREAMS = ("LeaseKeepAlive", "Watch")


class Meter:
    """Counts the calls of each method, and the messages on the two streams, since it was made."""

    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._before = server.calls()

    def read(self) -> dict[str, int]:
        now = self._server.calls()
        methods = {name: count - self._before.get(name, 0) for name, count in now.items()}
        wanted = {name: count for name, count in methods.items() if "message" not in name and name not in STREAMS}
        for stream in STREAMS:
            wanted[stream] = methods.get(f"message {stream}", 0)
            wanted[f"{stream} streams"] = methods.get(stream, 0)
        return {name: count for name, count in wanted.items() if count}


@pytest.fixture
def locks(etcd_server: EtcdServer) -> Iterator[LockManager]:
    with LockManager(etcd_server.url) as locks:
        locks.acquire("warm").release()
        yield locks


def test_a_cycle_is_four_calls(etcd_server: EtcdServer, locks: LockManager) -> None:
    meter = Meter(etcd_server)
    for _ in range(10):
        locks.acquire("a").release()
    locks.try_acquire("a").release()  # type: ignore[union-attr]  # it is free
    assert meter.read() == {"LeaseGrant": 11, "Txn": 22, "LeaseRevoke": 11}


def test_a_try_of_what_was_just_found_taken_is_one_look(etcd_server: EtcdServer, locks: LockManager) -> None:
    with locks.acquire("a"):
        assert locks.try_acquire("a") is None
        meter = Meter(etcd_server)
        for _ in range(10):
            assert locks.try_acquire("a") is None
        assert meter.read() == {"Range": 10}


def test_a_renewal_is_one_message_and_one_look(etcd_server: EtcdServer, locks: LockManager) -> None:
    with locks.acquire("a") as lease, locks.acquire("b") as second:
        lease.extend()
        meter = Meter(etcd_server)
        for _ in range(5):
            lease.extend()
            second.extend()
        assert meter.read() == {"LeaseKeepAlive": 10, "Range": 10}, "all on the stream that is open"


def test_waiters_cost_next_to_nothing_while_they_wait_and_a_handoff_is_six_calls(
    etcd_server: EtcdServer, locks: LockManager
) -> None:
    waiters, done, lock = 50, [], threading.Lock()
    lease = locks.acquire("a")

    def wait() -> None:
        with locks.acquire("a", timeout=60):
            with lock:
                done.append(time.monotonic())

    threads = [threading.Thread(target=wait) for _ in range(waiters)]
    meter = Meter(etcd_server)
    for thread in threads:
        thread.start()
    wait_until(lambda: len(etcd_server.keys()) == waiters + 1, 20, what="all wait")
    wait_until(lambda: meter.read().get("Watch", 0) >= waiters, 5, what="all watch")
    time.sleep(0.3)
    idle = Meter(etcd_server)
    time.sleep(1)
    assert sum(idle.read().values()) <= waiters, "each looks again every 5 s or so"
    released = time.monotonic()
    lease.release()
    for thread in threads:
        thread.join(60)
    assert len(done) == waiters
    seen = meter.read()
    assert seen["Watch streams"] == 1
    assert seen.get("LeaseKeepAlive streams", 0) <= 1
    rounds = 1 + (time.monotonic() - released + 10) / 5  # how often each may have looked again because of the time
    unary = sum(count for name, count in seen.items() if name not in STREAMS and "streams" not in name)
    assert unary <= (6 + rounds) * (waiters + 1), seen


def test_failures_leave_no_lease_and_no_key(etcd_server: EtcdServer, locks: LockManager) -> None:
    with LockManager(etcd_server.url) as another, locks.acquire("a"):
        keys, leases = etcd_server.keys(), etcd_server.leases()
        for _ in range(10):
            assert another.try_acquire("a") is None
            with pytest.raises(LockTimeout):
                another.acquire("a", timeout=0.1)
            with pytest.raises(LockTimeout):
                another.acquire("a", timeout=0)
        assert etcd_server.keys() == keys
        assert etcd_server.leases() == leases
    assert etcd_server.leases() == []


def test_an_extension_to_another_ttl_leaves_one_lease(etcd_server: EtcdServer, locks: LockManager) -> None:
    with locks.acquire("a", ttl=20) as lease:
        fence = lease.fence
        for ttl in (40, 5, 300):
            lease.extend(ttl)
            assert len(etcd_server.leases()) == 1
            holder = locks.holder("a")
            assert holder is not None
            assert ttl - 2 < (holder.remaining or 0) <= ttl
            assert holder.fence == fence
    assert etcd_server.leases() == []
    assert etcd_server.keys() == []


def test_a_timeout_too_short_for_a_last_look_leaves_no_place_in_the_queue(
    etcd_server: EtcdServer, locks: LockManager
) -> None:
    with locks.acquire("a"):
        for timeout in (0.0005, 0.001, 0.002, 0.003, 0.005, 0.008):
            with pytest.raises((LockTimeout, ConnectionError)):
                locks.acquire("a", timeout=timeout)
        wait_until(lambda: len(etcd_server.keys()) == 1, 5, what="only the holder is left")
        wait_until(lambda: len(etcd_server.leases()) == 1, 5, what="only the holder is left")


def test_who_waits_no_longer_watches_no_longer(etcd_server: EtcdServer, locks: LockManager) -> None:
    before = etcd_server.watchers()
    with locks.acquire("a"):
        for _ in range(5):
            with pytest.raises(LockTimeout):
                locks.acquire("a", timeout=0.1)
        wait_until(lambda: etcd_server.watchers() == before, 5, what="the watches are gone")
