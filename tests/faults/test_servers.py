"""Servers that lose a lock while it is held: no client can prevent that, but its holder is told and harms nobody."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from colours import Face
from servers import RedisServer, wait_until
from wire import wire_to

from atomiclock import BackendUnavailable, LockLost

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
