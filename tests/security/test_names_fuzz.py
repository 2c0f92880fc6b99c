"""Any name and owner against the real servers: the keys that are expected and no others, and a connection in sync."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import etcd3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import EtcdServer, MemcachedServer, RedisServer

from atomiclock.testing._facade import Colour, Locks, open_locks

BITS = [
    "\r\n", "\n", "\0", " ", "\t", "/", "{", "}", "~", ":", "*", "$", "%", "'", '"', "\\", "\x7f", "\ud800", "é",
    "\u2028", "SET x 1\r\n", "*1\r\n$8\r\nFLUSHALL\r\n", "flush_all\r\n", "set x 0 0 1\r\n1\r\n",
    "mn\r\n", "..", "a", "x" * 300, "'; DROP TABLE locks; --",
]  # fmt: skip
HOSTILE = st.lists(st.sampled_from(BITS) | st.text(max_size=5), min_size=1, max_size=5).map("".join)
ANY = (HOSTILE | st.text(min_size=1, max_size=400)).filter(bool)
EXAMPLES = 60


PATIENT = "?io_timeout=30"
"""How long to wait for an answer: names are tried here, not deadlines."""


class Store(NamedTuple):
    """A real store, and what is in it."""

    url: str
    keys: Callable[[], int]
    """How many keys it has, in all."""
    each: int
    """How many of them belong to one lock that is held."""


@pytest.fixture
def etcd_client(etcd_server: EtcdServer) -> Iterator[etcd3.Etcd3Client]:
    with etcd3.client(port=etcd_server.port) as client:
        yield client


@pytest.fixture(params=["redis", "memcached", "memcached classic", "etcd", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    kind: str = request.param
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        return Store(f"{redis.url}{PATIENT}", lambda: int(redis.command("DBSIZE")), 2)
    if kind == "etcd":
        etcd: EtcdServer = request.getfixturevalue("etcd_server")
        client: etcd3.Etcd3Client = request.getfixturevalue("etcd_client")
        return Store(f"{etcd.url}{PATIENT}", lambda: len(list(client.get_all())), 1)
    if kind == "sqlite":

        def rows() -> int:
            with closing(sqlite3.connect(tmp_path / "locks.db")) as db:
                return sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("locks", "waiters"))

        return Store(f"sqlite:///{tmp_path}/locks.db", rows, 1)
    memcached: MemcachedServer = request.getfixturevalue("memcached_server")
    url = memcached.url + PATIENT + ("&protocol=classic" if "classic" in kind else "")
    return Store(url, lambda: len(memcached.keys()), 1)


@pytest.fixture(params=["sync", "async"])
def locks(request: pytest.FixtureRequest, store: Store) -> Iterator[Locks]:
    colour: Colour = request.param
    locks = open_locks(colour, store.url)
    yield locks
    locks.close()


FEW = settings(
    max_examples=EXAMPLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


NAMESPACES = st.sampled_from(["", "shop", "a b\r\n{x}"])


@FEW
@given(names=st.lists(ANY, min_size=2, max_size=4, unique=True), owner=ANY, namespace=NAMESPACES)
def test_names_and_owners_are_data_and_nothing_else(
    store: Store, locks: Locks, names: list[str], owner: str, namespace: str
) -> None:
    options: dict[str, Any] = {"ttl": 20, "renew": False, "namespace": namespace}
    with ExitStack() as held:
        leases = []
        for name in names:
            lease = locks.try_acquire(name, owner=owner, **options)
            assert lease is not None, "another name has it"
            leases.append(held.enter_context(lease))
        assert store.keys() == store.each * len(names)
        for lease, name in zip(leases, names, strict=True):
            assert locks.try_acquire(name, **options) is None
            holder = locks.holder(name, namespace=namespace)
            assert holder is not None, "the reply belongs to the request"
            assert holder.token == lease.token
            expected = owner.encode("utf-8", "replace").decode()
            assert holder.owner == owner or (holder.owner and expected.startswith(holder.owner)), "perhaps cut"
    assert store.keys() == 0
