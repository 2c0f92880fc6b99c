"""`doctor` and `bench`, on real servers that are set up well and badly."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from program import Program
from servers import EtcdServer, MemcachedServer, RedisServer


def texts(report: dict[str, Any], *levels: str) -> str:
    return "\n".join(one["text"] for one in report["findings"] if one["level"] in levels)


def test_a_redis_that_forgets_and_evicts(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru").start()
    try:
        report = program.json("doctor", server.url)
    finally:
        server.stop()
    assert report["fit"]
    assert "allkeys-lru" in texts(report, "warn")
    assert "a restart forgets" in texts(report, "warn")
    assert texts(report, "ok").count("self-test") == 4


def test_a_redis_that_is_set_up_well_and_its_replica(program: Program, tmp_path: Path) -> None:
    primary, replica = tmp_path / "primary", tmp_path / "replica"
    primary.mkdir()
    replica.mkdir()
    server = RedisServer(
        primary, "--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"
    ).start()
    follower = RedisServer(replica, "--replicaof", "127.0.0.1", str(server.port))
    try:
        assert texts(program.json("doctor", server.url), "warn", "bad") == ""
        follower.start()
        while "master_link_status:up" not in follower.command("INFO", "replication"):
            pass
        assert "1 replicas" in texts(program.json("doctor", server.url), "warn")
        assert "1 replicas are connected" in texts(program.json("doctor", f"{server.url}?replicas=2"), "bad")
        done = program("doctor", follower.url)
        assert done.returncode == 1
        assert "give the URL of the primary" in done.stdout
    finally:
        follower.stop()
        server.stop()


def test_a_lock_file_that_others_may_change(program: Program) -> None:
    report = program.json("doctor", f"sqlite:///{program.folder}/locks.db")
    assert report["fit"]
    assert texts(report, "warn", "bad") == ""
    assert "file system" in texts(report, "ok", "note")
    (program.folder / "locks.db").chmod(0o666)
    assert "other users" in texts(program.json("doctor", f"sqlite:///{program.folder}/locks.db"), "warn")


def test_an_etcd_of_one_member_and_one_that_is_full(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "etcd"
    folder.mkdir()
    server = EtcdServer(folder, "--quota-backend-bytes", "200000").start()
    try:
        report = program.json("doctor", server.url)
        assert report["fit"], report
        assert "one member" in texts(report, "note")
        assert "a majority" in texts(report, "ok")
        assert texts(report, "ok").count("self-test") == 4
        _fill(server)
        done = program("doctor", server.url)
    finally:
        server.stop()
    assert done.returncode == 1
    assert "NOSPACE" in done.stdout


def _fill(server: EtcdServer) -> None:
    full = False
    for number in range(100):
        try:
            server.ctl("put", f"fill{number}", "x" * 20000)
        except subprocess.CalledProcessError:
            full = True
            break
    assert full


def test_a_memcached_that_may_evict_and_one_that_may_not(
    program: Program, memcached_server: MemcachedServer, tmp_path: Path
) -> None:
    report = program.json("doctor", memcached_server.url)
    assert report["fit"], report
    assert "evicts items" in texts(report, "note")
    folder = tmp_path / "memcached"
    folder.mkdir()
    strict = MemcachedServer(folder, "-M").start()
    try:
        assert "evicts nothing" in texts(program.json("doctor", strict.url), "ok")
    finally:
        strict.stop()


def test_it_is_read_by_people_too(program: Program) -> None:
    done = program("doctor", "memory://")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("memory://\nok    a request takes")
    assert "self-test" in done.stdout


def test_bench_tells_both_kinds(program: Program) -> None:
    report = program.json("bench", "--seconds", "0.1", "--threads", "3")
    assert report["free"]["cycles_per_second"] > 0
    assert report["contended"]["threads"] == 3
    assert 0 < report["free"]["p50_ms"] <= report["free"]["p99_ms"]
    assert "cycles/s" in program("bench", "memory://", "--seconds", "0.1").stdout
