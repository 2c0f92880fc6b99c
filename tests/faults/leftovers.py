"""What is left in a store when all locks were released, beyond what the documentation says may stay."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from servers import EtcdServer, MemcachedServer, RedisServer

BACKENDS = ("memory", "sqlite", "redis", "memcached", "etcd")


def url_of(request: pytest.FixtureRequest) -> str:
    """The URL of the store that is the request's parameter, and empty."""
    if request.param == "memory":
        return "memory://left"
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/locks.db"
    server: Any = request.getfixturevalue(f"{request.param}_server")
    return str(server.url)


def left_in(url: str, request: pytest.FixtureRequest) -> list[str]:
    backend = url.partition(":")[0]
    if backend == "memory":
        return []  # its locks are all that it has, and those were looked for
    if backend == "sqlite":
        folder: Path = request.getfixturevalue("tmp_path")
        return in_sqlite(folder / "locks.db")
    looks: dict[str, Any] = {"redis": in_redis, "memcached": in_memcached, "etcd": in_etcd}
    found: list[str] = looks[backend](request.getfixturevalue(f"{backend}_server"))
    return found


def in_sqlite(file: Path) -> list[str]:
    with closing(sqlite3.connect(file, timeout=10)) as db:
        return [row[0] for row in db.execute("SELECT token FROM locks")]


def in_redis(server: RedisServer) -> list[str]:
    """Keys but tombstones, which are of an attempt's token and stay for ten minutes."""
    every = server.keys()
    tombs = [key for key in every if len(key.rpartition(":")[2]) == 32]
    forever = [key for key in tombs[:3] if not 0 < int(server.command("PTTL", key)) <= 600_000]
    return [*forever, *[key for key in every if key not in tombs]]


def in_memcached(server: MemcachedServer) -> list[str]:
    return server.keys()


def in_etcd(server: EtcdServer, ttl: float = 30) -> list[str]:
    """Keys, and leases but empty ones that end with the `ttl`, which is as long as one may stay."""
    left = [server.ctl("lease", "timetolive", lease, "--keys") for lease in server.leases()]
    return [*server.keys(), *[line for line in left if "already expired" not in line and not harmless(line, ttl)]]


def harmless(lease: str, ttl: float) -> bool:
    """By what etcdctl says of it. A lease is asked for a second more than its lock's ttl."""
    granted = int(lease.partition("TTL(")[2].partition("s)")[0])
    return granted <= ttl + 1 and lease.endswith("attached keys([])")
