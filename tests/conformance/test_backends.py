"""The conformance suite on every backend of ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import EtcdServer, MemcachedServer, RedisServer

from atomiclock.backends import memory
from atomiclock.testing import BackendSuite
from atomiclock.testing._exclusion import ExclusionLaws
from atomiclock.testing._failures import FailureLaws
from atomiclock.testing._verbs import VerbLaws


class TestMemory(BackendSuite):
    @pytest.fixture
    def url(self, name: str) -> str:
        return f"memory://{name}"

    @pytest.fixture
    def leftovers(self, name: str) -> Callable[[], int]:
        def count() -> int:
            space = memory._spaces[name]
            return len(space.locks) + len(space.waiters)

        return count


class TestSQLite(BackendSuite):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/locks.db"

    @pytest.fixture
    def leftovers(self, tmp_path: Path) -> Callable[[], int]:
        def count() -> int:
            with sqlite3.connect(tmp_path / "locks.db") as db:
                rows = sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("locks", "waiters"))
            db.close()
            return rows

        return count


class TestRedis(BackendSuite):
    @pytest.fixture
    def url(self, redis_session: RedisServer) -> str:
        return redis_session.url  # not emptied each time: every law has names of its own

    @pytest.fixture
    def leftovers(self, redis_server: RedisServer) -> Callable[[], int]:
        return lambda: len(redis_server.keys())


class TestEtcd(BackendSuite):
    @pytest.fixture
    def url(self, etcd_session: EtcdServer) -> str:
        return etcd_session.url

    @pytest.fixture
    def leftovers(self, etcd_server: EtcdServer) -> Callable[[], int]:
        return lambda: len(etcd_server.keys()) + len(etcd_server.leases())


class TestMemcached(BackendSuite):
    @pytest.fixture
    def url(self, memcached_session: MemcachedServer) -> str:
        return memcached_session.url

    @pytest.fixture
    def brief(self) -> float:
        return 0.3  # the server keeps it for up to 3 s, and a longer one for a second more

    @pytest.fixture
    def short(self) -> float:
        return 1.0

    @pytest.fixture
    def leftovers(self, memcached_server: MemcachedServer) -> Callable[[], int]:
        return lambda: len(memcached_server.keys())


class TestMemcachedClassic(VerbLaws, FailureLaws, ExclusionLaws):
    """With the classic commands, as for a server that has no meta commands: the laws that depend on what is said."""

    brief = TestMemcached.brief
    short = TestMemcached.short

    @pytest.fixture
    def url(self, memcached_session: MemcachedServer) -> str:
        return f"{memcached_session.url}?protocol=classic"
