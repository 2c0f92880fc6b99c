"""Servers that lose a lock while it is held: no client can prevent that, but its holder is told and harms nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from colours import Face
from servers import RedisServer, wait_until
from wire import wire_to

from atomiclock import BackendRefused, BackendUnavailable, LockLost
from atomiclock.backends import Unknown
from atomiclock.backends._wire_pool import WireChannel
from atomiclock.backends._wire_tasks import AsyncWireChannel

KEY = "atomiclock:x"
SLACK = 1.5


def test_a_replica_without_the_lock_that_is_promoted_lets_in_another_with_a_higher_fence(
    face: Face, tmp_path: Path
) -> None:
    """Two holders, as the docs say. The first knows it within a renewal, and the fence tells the two apart."""
    (tmp_path / "replica").mkdir()
    primary = RedisServer(tmp_path).start()
    replica = RedisServer(tmp_path / "replica", "--replicaof", f"127.0.0.1 {primary.port}").start()
    try:
        with wire_to(primary.port) as wire:
            locks, others = (face.manager(f"redis://127.0.0.1:{wire.port}") for _ in range(2))
            locks.acquire("earlier").release()
            wait_until(lambda: "master_link_status:up" in replica.command("INFO", "replication"), 10)
            replica.command("REPLICAOF", "127.0.0.1", "1")  # it hears no more of the primary
            lease = locks.acquire("x", ttl=3)
            primary.kill()
            replica.command("REPLICAOF", "NO", "ONE")
            wire.upstream = replica.port
            second = others.acquire("x", timeout=5)
            assert second.fence > lease.fence
            wait_until(lambda: lease.lost, 3 / 3 + SLACK, "the first is told within one renewal interval")
            with pytest.raises(LockLost):
                lease.release()
            assert replica.command("GET", KEY) == second.token
            second.release()
    finally:
        primary.stop()
        replica.stop()


def test_a_lock_counts_only_when_as_many_replicas_have_it_as_must(face: Face, tmp_path: Path) -> None:
    (tmp_path / "replica").mkdir()
    primary = RedisServer(tmp_path).start()
    replica = RedisServer(tmp_path / "replica", "--replicaof", f"127.0.0.1 {primary.port}").start()
    try:
        wait_until(lambda: "master_link_status:up" in replica.command("INFO", "replication"), 10)
        locks, others = (face.manager(f"{primary.url}?replicas=1") for _ in range(2))
        lease = locks.acquire("x", ttl=30, timeout=10)
        assert replica.command("GET", KEY) == lease.token
        lease.extend(60)
        assert int(replica.command("PTTL", KEY)) > 50_000
        assert others.try_acquire("x") is None
        second: list[Any] = []
        waiter = threading.Thread(target=lambda: second.append(others.acquire("x", ttl=60, timeout=30)))
        waiter.start()
        wait_until(lambda: primary.command("EXISTS", "{atomiclock:x}:waiting") == "1", 10)
        lease.release()
        waiter.join()
        assert replica.command("GET", KEY) == second[0].token
        replica.command("REPLICAOF", "127.0.0.1", "1")  # it hears no more of the primary
        with pytest.raises(BackendUnavailable, match="0 replicas have it, where replicas=1 must"):
            locks.try_acquire("y")
        with pytest.raises(BackendUnavailable):
            locks.acquire("y", timeout=1.5)
        wait_until(lambda: primary.command("EXISTS", "atomiclock:y") == "0", 10, "it is taken back")
        with pytest.raises(BackendUnavailable):
            second[0].extend()
        second[0].release()
    finally:
        primary.stop()
        replica.stop()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """A primary and two replicas that follow it."""
    for name in ("primary", "first", "second"):
        (tmp_path / name).mkdir()
    primary = RedisServer(tmp_path / "primary", "--repl-diskless-sync-delay", "0").start()
    to = ("--replicaof", f"127.0.0.1 {primary.port}")
    servers = [primary, *(RedisServer(tmp_path / name, *to).start() for name in ("first", "second"))]
    try:
        wait_until(lambda: primary.command("INFO", "replication").count("state=online") == 2, 20)
        yield servers
    finally:
        for server in servers:
            server.stop()


def test_with_a_replica_too_few_nothing_is_granted_and_all_are_told_why(face: Face, group: list[RedisServer]) -> None:
    primary, first, second = group
    both, more = (face.manager(f"{primary.url}?replicas={number}") for number in (2, 3))
    why = r"\d replicas have it, where replicas={} must"  # in a last short try not even all that could
    for timeout in (0, 0.5, 1.5):
        with pytest.raises(BackendUnavailable, match=why.format(3)):
            more.acquire(f"y {timeout}", timeout=timeout)
    held = both.acquire("x", ttl=6)
    assert first.command("GET", KEY) == second.command("GET", KEY) == held.token
    with second.frozen():
        with pytest.raises(BackendUnavailable, match=why.format(2)):
            held.extend()
        for timeout in (0, 0.5, 1.5):
            with pytest.raises(BackendUnavailable, match=why.format(2)):
                both.acquire(f"z {timeout}", timeout=timeout)
        wait_until(lambda: held.lost, 6 + SLACK, "renewals that are not confirmed are none")
        wait_until(lambda: not [key for key in primary.keys() if key[0] != "{"], 10, "all is taken back")  # noqa: SIM118
    with both.acquire("z", timeout=10):
        assert second.command("EXISTS", "atomiclock:z") == "1"


@pytest.mark.parametrize("timeout", [0, 0.5])
def test_who_may_not_wait_for_replicas_is_refused_and_leaves_no_lock(
    face: Face, own_redis: RedisServer, timeout: float
) -> None:
    """The lock is set by then."""
    allowed = ["evalsha", "eval", "set", "get", "del", "pexpire", "pttl", "exists", "time", "rpush", "blpop"]
    own_redis.command("ACL", "SETUSER", "locker", "on", ">pw", "~*", "-@all", *[f"+{word}" for word in allowed])
    locks = face.manager(f"redis://locker:pw@127.0.0.1:{own_redis.port}?replicas=1")
    with pytest.raises(BackendRefused, match="NOPERM") as caught:
        locks.acquire("x", timeout=timeout)
    wait_until(lambda: own_redis.command("EXISTS", KEY) == "0", 5, "it is taken back")
    assert "WAIT" in str(caught.value)


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_an_acquire_whose_second_request_was_not_sent_leaves_no_lock(
    face: Face, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    """The first has set it: no time was left for a connection to wait for replicas over."""
    channel = WireChannel if face.colour == "sync" else AsyncWireChannel
    call = channel.call

    def fail(self: Any, request: Any, deadline: float) -> Any:
        if isinstance(request, bytes) and b"WAIT" in request:
            raise Unknown("no time was left", sent=False)
        return call(self, request, deadline)

    monkeypatch.setattr(channel, "call", fail)
    locks = face.manager(f"{redis_server.url}?replicas=1")
    with pytest.raises(BackendUnavailable, match="no time was left"):
        locks.acquire("x", timeout=timeout)
    wait_until(lambda: redis_server.command("EXISTS", KEY) == "0", 5, "it is taken back")


def test_contenders_for_a_lock_that_replicas_do_not_confirm_are_told_and_do_not_take_turns_for_ever(
    face: Face, redis_server: RedisServer
) -> None:
    """Each finds it taken while another tries: that is no sign that the store keeps what it grants."""
    told: list[str] = []

    def wait(locks: Any) -> None:
        with pytest.raises(BackendUnavailable) as caught:
            locks.acquire("x")
        told.append(str(caught.value))

    managers = [face.manager(f"{redis_server.url}?replicas=1&io_timeout=1") for _ in range(3)]
    threads = [threading.Thread(target=wait, args=(locks,), daemon=True) for locks in managers]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(told) == 3, 15)
    assert all("0 replicas have it, where replicas=1 must" in text for text in told)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_replica_that_was_cut_off_and_is_promoted_lets_in_another_unless_all_had_to_have_the_lock(
    face: Face, group: list[RedisServer], replicas: int
) -> None:
    primary, first, second = group
    with wire_to(primary.port) as wire:
        locks = face.manager(f"redis://127.0.0.1:{wire.port}?replicas={replicas}")
        second.command("REPLICAOF", "127.0.0.1", "1")  # it hears no more of the primary
        if replicas == 2:
            with pytest.raises(BackendUnavailable):
                locks.try_acquire("x")
        else:
            lease = locks.acquire("x", ttl=6)
            assert first.command("GET", KEY) == lease.token
        primary.kill()
        second.command("REPLICAOF", "NO", "ONE")
        wire.upstream = second.port
        later = face.manager(second.url).acquire("x", timeout=5)
        if replicas == 1:  # two holders
            assert later.fence > lease.fence
            wait_until(lambda: lease.lost, 6 / 3 + SLACK, "told within one renewal interval")
            with pytest.raises(LockLost):
                lease.release()
        later.release()  # which nobody has touched


def test_a_redis_that_evicts_is_told_within_one_renewal_interval(face: Face, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "volatile-lru").start()
    try:
        told = threading.Event()
        lease = face.manager(server.url).acquire("x", ttl=3, on_lost=lambda lease: told.set())
        for number in range(60):
            if not server.command("GET", KEY):
                break
            server.command("SETRANGE", f"filler {number}", "100000", "x")
        assert server.command("GET", KEY) == "", "it evicts"
        assert told.wait(3 / 3 + SLACK)
        with pytest.raises(LockLost):
            lease.release()
    finally:
        server.stop()


@pytest.mark.parametrize("backend", ["redis", "memcached", "etcd"])
def test_a_server_that_is_stopped_and_continued_within_the_ttl_costs_nobody_the_lock(
    face: Face, backend: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(f"own_{backend}")
    locks = face.manager(server.url)
    lease = locks.acquire("x", ttl=6, timeout=10)
    with server.frozen():
        time.sleep(2.3)  # longer than a third of the ttl: a renewal is due
        lease.check()
    wait_until(lambda: lease.remaining > 4.5, 5 + SLACK, "it is renewed after all")
    assert locks.try_acquire("x") is None
    lease.release()
