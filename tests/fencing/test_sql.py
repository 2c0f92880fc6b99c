"""The guard for SQL, on SQLite."""

from __future__ import annotations

import pickle
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from atomiclock import ConfigurationError, LockError, LockManager, StaleFence
from atomiclock.fencing import fence_predicate, fenced_update

BIG = 2**60 + 1  # as those of Redis: a double would take it for 2**60


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE feed (id INTEGER PRIMARY KEY, title TEXT, fence INTEGER)")
        db.execute("INSERT INTO feed VALUES (1, 'first', NULL)")
        yield db


class Styled:
    """A cursor of a driver with another paramstyle, on SQLite."""

    def __init__(self, cursor: sqlite3.Cursor, style: str) -> None:
        self._cursor = cursor
        self._style = style

    def execute(self, sql: str, params: Any) -> None:
        if self._style == "numeric":
            sql, params = re.sub(r":(\d+)", r":n\1", sql), {f"n{i}": value for i, value in enumerate(params, 1)}
        self._cursor.execute(re.sub(r"%\((\w+)\)s", r":\1", sql).replace("%s", "?"), params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


@pytest.mark.parametrize("style", ["qmark", "numeric", "named", "format", "pyformat"])
def test_a_later_fence_is_written_and_an_older_one_refused(db: sqlite3.Connection, style: str) -> None:
    cursor = Styled(db.cursor(), style)

    def write(title: str, fence: int, row: int = 1) -> bool:
        return fenced_update(cursor, "feed", {"title": title}, {"id": row}, fence=fence, paramstyle=style)

    assert write("five", 5)
    assert write("five again", 5), "the same holder writes twice"
    assert write("big", BIG)
    for stale in (0, 5, BIG - 1):
        with pytest.raises(StaleFence, match=rf"feed \(id=1\).*{stale}.*{BIG}") as raised:
            write("late", stale)
        assert (raised.value.fence, raised.value.seen) == (stale, BIG)
    assert write("nobody", BIG, row=2) is False
    assert db.execute("SELECT * FROM feed").fetchall() == [(1, "big", BIG)]
    predicate, params = fence_predicate(BIG - 1, column="feed.fence", paramstyle=style)
    cursor.execute(f"UPDATE feed SET title = 'late' WHERE {predicate}", params)
    assert cursor.rowcount == 0
    predicate, params = fence_predicate(BIG, paramstyle=style)
    cursor.execute(f"UPDATE feed SET title = 'in time' WHERE {predicate}", params)
    assert cursor.rowcount == 1


def test_a_row_that_comes_in_between_is_looked_at_again(db: sqlite3.Connection) -> None:
    class Slow(Styled):
        comes: int | None = 3

        def execute(self, sql: str, params: Any) -> None:
            if sql.startswith("SELECT") and self.comes is not None:
                db.execute("INSERT INTO feed VALUES (2, 'another', ?)", (self.comes,))
                self.comes = None
            super().execute(sql, params)

    assert fenced_update(Slow(db.cursor(), "qmark"), "feed", {"title": "mine"}, {"id": 2}, fence=5)
    db.execute("DELETE FROM feed WHERE id = 2")
    late = Slow(db.cursor(), "qmark")
    late.comes = 9
    with pytest.raises(StaleFence):
        fenced_update(late, "feed", {"title": "mine"}, {"id": 2}, fence=5)


def test_the_holder_that_slept_is_refused_by_a_row_of_real_leases(db: sqlite3.Connection, tmp_path: Path) -> None:
    cursor = db.cursor()
    with LockManager(f"sqlite:///{tmp_path}/locks.db") as locks:
        slow = locks.acquire("feed", ttl=0.05, renew=False)
        with locks.acquire("feed", timeout=10) as lease:
            assert fenced_update(cursor, "feed", {"title": "new"}, {"id": 1}, fence=lease)
            assert fenced_update(cursor, "feed", {"title": "newer"}, {"id": 1}, fence=lease.fence or 0)
        with pytest.raises(StaleFence) as raised:
            fenced_update(cursor, "feed", {"title": "late"}, {"id": 1}, fence=slow)
    assert raised.value.name == "feed"
    copy = pickle.loads(pickle.dumps(raised.value))
    assert isinstance(copy, LockError)
    assert (str(copy), copy.__dict__) == (str(raised.value), raised.value.__dict__)
    assert db.execute("SELECT title FROM feed").fetchone() == ("newer",)


class NoFence:
    name = "feed"
    fence = None


@pytest.mark.parametrize("fence", [None, NoFence(), -1, 2**63, True, 1.5, "7", b"7", object()])
def test_what_is_no_fence_is_refused_and_nothing_sent(db: sqlite3.Connection, fence: Any) -> None:
    with pytest.raises(ConfigurationError, match="fence"):
        fenced_update(db.cursor(), "feed", {"title": "late"}, {"id": 1}, fence=fence)
    with pytest.raises(ConfigurationError, match="fence"):
        fence_predicate(fence)
    assert db.execute("SELECT title FROM feed").fetchone() == ("first",)


@pytest.mark.parametrize("name", ["feed; DROP TABLE feed", 'feed"', "", "a b", "feed--", "f\u00e9ed", "feed\n"])
def test_what_is_no_plain_name_is_refused(db: sqlite3.Connection, name: str) -> None:
    for call in (
        lambda: fenced_update(db.cursor(), name, {"title": "x"}, {"id": 1}, fence=5),
        lambda: fenced_update(db.cursor(), "feed", {name: "x"}, {"id": 1}, fence=5),
        lambda: fenced_update(db.cursor(), "feed", {"title": "x"}, {name: 1}, fence=5),
        lambda: fence_predicate(5, column=name),
    ):
        with pytest.raises(ConfigurationError, match="plain name"):
            call()


def test_a_call_that_would_guard_nothing_is_refused(db: sqlite3.Connection) -> None:
    for values, where in (({"title": "x"}, {}), ({"fence": 99}, {"id": 1})):
        with pytest.raises(ConfigurationError, match="where="):
            fenced_update(db.cursor(), "feed", values, where, fence=5)
    with pytest.raises(ConfigurationError, match="paramstyle"):
        fence_predicate(5, paramstyle="colon")

    class Silent(Styled):
        rowcount = -1

    with pytest.raises(ConfigurationError, match="how many rows"):
        fenced_update(Silent(db.cursor(), "qmark"), "feed", {"title": "x"}, {"id": 1}, fence=5)
