"""What a lock costs the server, by the server's own count of calls, and that nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from servers import EtcdServer, wait_until

from atomiclock import LockManager, LockTimeout
from atomiclock.backends._etcd_spares import AT_MOST, LONGEST

STREAMS = ("LeaseKeepAlive", "Watch")


class Meter:
    """Counts the calls of each method, and the messages of those that are streams, since it was made."""

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


def test_a_cycle_is_two_calls(etcd_server: EtcdServer, locks: LockManager) -> None:
    """And a keep-alive when the lease that was kept was last granted or renewed over a second ago."""
    meter = Meter(etcd_server)
    for number in range(10):
        locks.acquire(f"name {number}").release()
    locks.try_acquire("a").release()  # type: ignore[union-attr]  # it is free
    seen = meter.read()
    assert seen.pop("LeaseKeepAlive", 0) <= 3, "the machine is slow, but not so slow"
    seen.pop("LeaseKeepAlive streams", None)
    assert seen == {"Txn": 22}
    assert len(etcd_server.leases()) == 1


def test_a_lease_that_was_kept_for_a_while_is_kept_alive_before_its_use(etcd_server: EtcdServer) -> None:
    with LockManager(etcd_server.url, ttl=3, renew=False) as locks:
        locks.acquire("a").release()
        (kept,) = etcd_server.leases()
        time.sleep(2)
        lease = locks.acquire("a")
        assert etcd_server.leases() == [kept]
        assert etcd_server.keys() == [f"atomiclock:a/{kept.lstrip('0')}"]
        time.sleep(2.5)
        lease.check()
        assert len(etcd_server.keys()) == 1, "the whole ttl, from the acquire"
        wait_until(lambda: not etcd_server.keys(), 6, what="its ttl is over")


def test_a_kept_lease_that_ended_meanwhile_costs_a_new_one_and_no_attempt(etcd_server: EtcdServer) -> None:
    with LockManager(etcd_server.url) as locks:
        for wait in (0.0, 1.1):  # with and without a keep-alive
            locks.acquire("a").release()
            (kept,) = etcd_server.leases()
            etcd_server.ctl("lease", "revoke", kept)
            time.sleep(wait)
            for timeout in (0, 5):
                with locks.acquire("a", timeout=timeout):
                    assert len(etcd_server.keys()) == 1


def test_leases_are_kept_a_few_for_each_ttl_and_given_back_at_the_close(etcd_server: EtcdServer) -> None:
    with LockManager(etcd_server.url) as locks:
        for _ in range(2):
            for lease in [locks.acquire(f"name {number}") for number in range(30)]:
                lease.release()
        assert len(etcd_server.leases()) == AT_MOST
        for ttl in range(40, 40 + 2 * AT_MOST):
            locks.acquire("a", ttl=ttl).release()
        assert len(etcd_server.leases()) == 2 * AT_MOST - 1, "of eight ttls"
        locks.acquire("a", ttl=LONGEST + 1).release()
        assert len(etcd_server.leases()) == 2 * AT_MOST - 1
    assert etcd_server.leases() == []


def test_locks_held_at_once_have_leases_of_their_own(etcd_server: EtcdServer, locks: LockManager) -> None:
    for _ in range(3):
        held = [locks.acquire(f"name {number}") for number in range(5)]
        leases = {key.rpartition("/")[2] for key in etcd_server.keys()}  # noqa: SIM118  # no dict
        assert len(leases) == 5
        for lease in held:
            lease.release()


def test_a_try_of_what_was_just_found_taken_is_one_look(etcd_server: EtcdServer, locks: LockManager) -> None:
    with locks.acquire("a"):
        assert locks.try_acquire("a") is None
        meter = Meter(etcd_server)
        for _ in range(10):
            assert locks.try_acquire("a") is None
        assert meter.read() == {"Range": 10}


def test_a_release_is_as_cheap_however_often_the_ttl_was_changed(etcd_server: EtcdServer, locks: LockManager) -> None:
    lease = locks.acquire("a", renew=False)
    for number in range(20):
        lease.extend(40 + number)
    meter = Meter(etcd_server)
    lease.release()
    assert meter.read() == {"Txn": 1, "LeaseRevoke": 2}  # the one that names the key, and the last
    assert etcd_server.keys() == etcd_server.leases() == []


def test_a_renewal_is_one_message_and_one_look(etcd_server: EtcdServer, locks: LockManager) -> None:
    with locks.acquire("a") as lease, locks.acquire("b") as second:
        lease.extend()
        meter = Meter(etcd_server)
        for _ in range(5):
            lease.extend()
            second.extend()
        assert meter.read() == {"LeaseKeepAlive": 10, "LeaseKeepAlive streams": 10, "Range": 10}


def test_waiters_cost_next_to_nothing_while_they_wait_and_a_handoff_is_six_calls(
    etcd_server: EtcdServer, locks: LockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiters, done, lock = 50, [], threading.Lock()
    monkeypatch.setattr(locks._core, "in_line", False)  # so that each waits at the server, as in many processes
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
    rounds = 1 + (time.monotonic() - released + 10) / 5  # how often each may have looked again because of the time
    unary = sum(count for name, count in seen.items() if name not in STREAMS and "streams" not in name)
    assert unary <= (6 + rounds) * (waiters + 1), seen


def test_what_is_noted_of_a_lease_does_not_grow_with_its_renewals(locks: LockManager) -> None:
    with locks.acquire("x") as lease:
        notes = lease._hold.notes
        size = sys.getsizeof(notes)
        for _ in range(20):
            lease.extend()
        assert sys.getsizeof(notes) == size


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
        assert len(etcd_server.leases()) <= len(leases) + 1, "the one that is kept, unless its last answer was late"
    locks.close()
    assert etcd_server.leases() == []


def test_an_extension_to_another_ttl_leaves_one_lease(etcd_server: EtcdServer, locks: LockManager) -> None:
    with locks.acquire("a", ttl=20) as lease:
        fence = lease.fence
        for ttl in (40, 5, 300):
            lease.extend(ttl)
            assert len(etcd_server.leases()) == 2, "with the one that was kept after the warming up"
            holder = locks.holder("a")
            assert holder is not None
            assert ttl - 2 < (holder.remaining or 0) <= ttl + 1
            assert holder.fence == fence
    locks.close()
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


def test_of_the_waiters_of_a_process_one_waits_at_the_server(etcd_server: EtcdServer, locks: LockManager) -> None:
    with LockManager(etcd_server.url) as others:
        lease = others.acquire("a")
        threads = [threading.Thread(target=lambda: locks.acquire("a", timeout=60).release()) for _ in range(50)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(etcd_server.keys()) == 2, 20, what="one waits")
        time.sleep(0.3)
        assert len(etcd_server.keys()) == 2
        lease.release()
        for thread in threads:
            thread.join(60)
        assert etcd_server.keys() == []


CONTENDER = """
    import sys
    from atomiclock import LockManager

    with LockManager(sys.argv[1]) as locks:
        locks.acquire("warm").release()
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(40):
            locks.acquire("contended", timeout=60).release()
        print("done", flush=True)
        sys.stdin.readline()
"""


def test_a_handoff_among_processes_is_four_requests_at_most(etcd_server: EtcdServer) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(CONTENDER), etcd_server.url]
    with ExitStack() as stack:
        each = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
            for _ in range(6)
        ]
        assert [process.stdout.readline() for process in each if process.stdout] == ["ready\n"] * 6
        meter = Meter(etcd_server)
        for process in each:
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
        assert [process.stdout.readline() for process in each if process.stdout] == ["done\n"] * 6
        seen = meter.read()
        for process in each:
            process.communicate("", 10)
    sent = sum(count for name, count in seen.items() if "streams" not in name)
    assert sent / 240 <= 4, seen
    assert seen["Watch"] < 240, "watches stay open"


def test_renewals_go_many_at_a_time_and_one_that_is_gone_harms_no_other(etcd_server: EtcdServer) -> None:
    with LockManager(etcd_server.url, ttl=3) as locks:
        leases = [locks.acquire(f"held-{number}") for number in range(120)]
        open_before = len(os.listdir("/proc/self/fd"))
        gone = leases.pop(60)
        (key,) = (key for key in list(etcd_server.keys()) if "held-60/" in key)
        etcd_server.ctl("del", key)
        time.sleep(4)
        assert gone.lost
        for lease in leases:
            lease.check()
        assert len(os.listdir("/proc/self/fd")) <= open_before + 1, "over the connections that were there"
        for lease in leases:
            lease.release()
