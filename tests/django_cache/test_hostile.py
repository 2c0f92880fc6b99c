"""Values in a cache that nobody of ours has put there."""

from __future__ import annotations

import base64
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hostile import NAME, ids, survives

TOKEN = "a" * 32


def deep_list() -> bytes:
    """A pickle of a list in a list and so on, which nobody can print."""
    return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."


PICKLES = [
    b"",
    b"\x80\x05.",
    deep_list(),
    pickle.dumps(10**10_000),
    pickle.dumps("x" * 1_000_000),
    pickle.dumps({"a": 1}),
    pickle.dumps(None),
    pickle.dumps(f"atomiclock {TOKEN} \x1b[2J\nnot a line"),
    pickle.dumps(f"atomiclock {TOKEN} " + "o" * 1_000_000),
]


@pytest.mark.filterwarnings("ignore:django.*LocMemCache:RuntimeWarning")
@pytest.mark.parametrize("value", PICKLES, ids=ids)
@pytest.mark.parametrize("alias", ["database", "memory", "default", "pymemcache"])
def test_django(django_project: Any, database: Path, alias: str, value: bytes) -> None:
    from django.core.cache import caches

    cache = caches[alias]
    cache.clear()
    cache.add(NAME, "to be replaced", 60)
    if alias == "memory":
        cache._cache[":1:n"] = value
    elif alias == "database":
        with closing(sqlite3.connect(database)) as db, db:
            db.execute("UPDATE cache_entries SET value = ?", (base64.b64encode(value).decode(),))
    elif alias == "default":
        cache._cache.get_client(write=True).set(":1:n", value)
    else:
        cache._cache.set(":1:n" if not cache.key_prefix else "its:1:n", value[:500_000])
    survives(f"django://{alias}", shown=False)
    cache.clear()


@pytest.mark.parametrize("expires", ["never", "", "9999-99-99 00:00:00", 5, b"\xff", None])
def test_django_table(django_project: Any, database: Path, expires: Any) -> None:
    from django.core.cache import caches

    cache = caches["database"]
    cache.clear()
    cache.add(NAME, "to be replaced", 60)
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        try:
            db.execute("UPDATE cache_entries SET expires = ?", (expires,))
        except sqlite3.IntegrityError:
            assert expires is None
    survives("django://database", shown=False)
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("DELETE FROM cache_entries")
    caches.close_all()
