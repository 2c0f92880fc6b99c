"""The conformance suite on every backend of ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import RedisServer

from atomiclock.backends import memory
from atomiclock.testing import BackendSuite


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
