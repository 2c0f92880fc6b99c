"""etcdctl, which runs the official recipe of etcd's Go client, and we exclude each other, first come first served."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from servers import EtcdServer, wait_until

from atomiclock import LockLost, LockManager, LockTimeout
from atomiclock.backends import Remove, clock


class Locker:
    """`etcdctl lock NAME`: says the key when it has the lock, and holds it until killed or told to end."""

    def __init__(self, server: EtcdServer, name: str, *words: str) -> None:
        environment = {**os.environ, "ETCDCTL_API": "3"}
        command = server.ctl_command("lock", name, *words)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdout is not None
        self._out = self.process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._said = b""

    def key(self) -> str:
        """Its key, once it has the lock; empty before."""
        self._said += self._out.read() or b""
        return self._said.decode().partition("\n")[0] if b"\n" in self._said else ""

    def end(self) -> None:
        """SIGTERM, at which it releases."""
        if not self._out.closed:
            self.process.terminate()
            self.process.wait(5)
            self._out.close()


@pytest.fixture
def lockers(etcd_server: EtcdServer) -> Iterator[Any]:
    made: list[Locker] = []

    def start(name: str, *words: str) -> Locker:
        made.append(Locker(etcd_server, name, *words))
        return made[-1]

    yield start
    for locker in made:
        locker.end()


@pytest.fixture
def locks(etcd_server: EtcdServer) -> Iterator[LockManager]:
    with LockManager(etcd_server.url, namespace="") as locks:
        yield locks


def test_what_etcdctl_holds_we_do_not_get(lockers: Any, locks: LockManager) -> None:
    theirs = lockers("shared")
    wait_until(theirs.key, what="etcdctl has it")
    assert locks.try_acquire("shared") is None
    assert locks.try_acquire("shared") is None  # a second try looks first
    with pytest.raises(LockTimeout, match="other software"):
        locks.acquire("shared", timeout=0.2)
    holder = locks.holder("shared")
    assert holder is not None
    assert holder.owner is None
    assert theirs.key() == f"shared/{holder.token}"
    assert 0 < (holder.remaining or 0) <= 61
    theirs.end()
    with locks.acquire("shared", timeout=2) as lease:
        assert lease.fence > (holder.fence or 0)


def test_what_we_hold_etcdctl_does_not_get(lockers: Any, locks: LockManager) -> None:
    with locks.acquire("shared"):
        theirs = lockers("shared")
        time.sleep(0.5)
        assert not theirs.key()
    wait_until(theirs.key, 2, what="etcdctl is woken by our release")
    assert locks.try_acquire("shared") is None


def test_first_come_first_served_whoever_it_is(
    etcd_server: EtcdServer, lockers: Any, locks: LockManager, tmp_path: Any
) -> None:
    script = tmp_path / "note.sh"
    script.write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/order\n")
    script.chmod(0o755)
    lease = locks.acquire("queue")
    running: list[subprocess.Popen[bytes]] = []
    ours = (
        "import sys; from atomiclock import LockManager\n"
        f"with LockManager({etcd_server.url!r}, namespace='').acquire('queue', timeout=20):\n"
        f"    open('{tmp_path}/order', 'a').write(sys.argv[1] + '\\n')\n"
    )
    import sys

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(4):
        before = len(etcd_server.keys())
        if number % 2:
            running.append(lockers("queue", str(script), str(number)).process)
        else:
            running.append(subprocess.Popen([sys.executable, "-c", ours, str(number)], env=environment))
        wait_until(lambda before=before: len(etcd_server.keys()) > before, what="it is in the queue")
    lease.release()
    for one in running:
        one.wait(20)
    assert (tmp_path / "order").read_text().split() == ["0", "1", "2", "3"]


def test_a_key_that_etcdctl_deleted_is_noticed_at_release(etcd_server: EtcdServer, locks: LockManager) -> None:
    lease = locks.acquire("victim", renew=False)
    etcd_server.ctl("del", "victim/", "--prefix")
    with locks.acquire("victim", timeout=0) as successor:
        with pytest.raises(LockLost):
            lease.release()
        assert locks.holder("victim") is not None
        successor.check()


def test_a_key_that_etcdctl_deleted_is_noticed_within_one_renewal(etcd_server: EtcdServer, locks: LockManager) -> None:
    lost: list[object] = []
    lease = locks.acquire("victim", ttl=3, on_lost=lost.append)
    etcd_server.ctl("del", "victim/", "--prefix")
    wait_until(lambda: lost, 2.5, what="the holder is told, before its ttl is over")
    assert not lease


def test_a_waiter_whose_key_was_deleted_queues_again(etcd_server: EtcdServer, locks: LockManager) -> None:
    from threading import Thread

    lease = locks.acquire("victim")
    got: list[object] = []
    others = LockManager(etcd_server.url, namespace="")  # in the line of `locks`, it would wait in this process
    waiter = Thread(target=lambda: got.append(others.acquire("victim", timeout=20, ttl=4)), daemon=True)
    waiter.start()
    wait_until(lambda: len(etcd_server.keys()) == 2, what="it waits")
    held = etcd_server.ctl("get", "victim/", "--prefix", "--keys-only", "--sort-by=CREATE", "--limit=1").strip()
    etcd_server.ctl("del", next(iter(set(etcd_server.keys()) - {held})))
    wait_until(lambda: len(etcd_server.keys()) == 2, 8, what="it waits again")
    lease.release()
    waiter.join(5)
    assert got
    got[0].release()  # type: ignore[attr-defined]  # a lease
    others.close()


def test_names_with_slashes_are_locks_of_their_own(etcd_server: EtcdServer, locks: LockManager) -> None:
    with locks.acquire("feed/1"), locks.acquire("feed/abc/2"):
        for timeout in (0, 0.5):
            with locks.acquire("feed", timeout=timeout) as lease:
                holder = locks.holder("feed")
                assert holder is not None
                assert holder.token == lease.token
                assert locks.try_acquire("feed") is None
                with pytest.raises(LockTimeout):
                    locks.acquire("feed", timeout=0.2)
    assert etcd_server.keys() == []
    locks.close()
    assert etcd_server.leases() == []


def test_other_data_under_the_name_is_no_holder(etcd_server: EtcdServer, locks: LockManager) -> None:
    etcd_server.ctl("put", "feed/settings", "x")
    etcd_server.ctl("put", "feed/0123456789abcdef0", "x")
    with locks.acquire("feed", timeout=0):
        pass
    with locks.acquire("feed", timeout=1):
        assert locks.try_acquire("feed") is None
    assert etcd_server.ctl("get", "feed/settings", "--print-value-only") == "x"


def test_the_holder_that_peek_shows_of_other_software_can_be_removed(lockers: Any, locks: LockManager) -> None:
    theirs = lockers("shared")
    wait_until(theirs.key, what="etcdctl has it")
    holder = locks.holder("shared")
    assert holder is not None
    assert locks._store.perform(Remove("shared", holder.token, 0, clock() + 5)) is True
    with locks.acquire("shared", timeout=1):
        pass
