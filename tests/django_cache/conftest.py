"""One Django for all tests of django://, configured in this process and, by `PRELOAD`, in the children of the suite."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from servers import MemcachedServer, RedisServer

sys.path.append(str(Path(__file__).parents[1] / "faults"))  # for its proxy, and both colours behind one face

BACKENDS = "django.core.cache.backends."
ENTRIES = {"MAX_ENTRIES": 1_000_000}


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file of the project; `django_project` makes it."""
    return tmp_path_factory.mktemp("django") / "project.db"


@pytest.fixture(scope="session")
def django_project(
    redis_session: RedisServer, memcached_session: MemcachedServer, database: Path
) -> Iterator[dict[str, Any]]:
    """A Django project with a cache of each kind. A process can configure Django once only."""
    project: dict[str, Any] = {
        "USE_TZ": True,
        "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(database)}},
        "CACHES": {
            "default": {"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": redis_session.url},
            "Shop_1": {"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": redis_session.url, "KEY_PREFIX": "shop",
                       "VERSION": 3},
            "theirs": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": redis_session.url, "KEY_PREFIX": "its"},
            "pymemcache": {"BACKEND": f"{BACKENDS}memcached.PyMemcacheCache", "KEY_PREFIX": "its",
                           "LOCATION": f"127.0.0.1:{memcached_session.port}"},
            "database": {"BACKEND": f"{BACKENDS}db.DatabaseCache", "LOCATION": "cache_entries", "OPTIONS": ENTRIES},
            "memory": {"BACKEND": f"{BACKENDS}locmem.LocMemCache", "LOCATION": "locks", "OPTIONS": ENTRIES},
            "files": {"BACKEND": f"{BACKENDS}filebased.FileBasedCache", "LOCATION": str(database.parent)},
            "nothing": {"BACKEND": f"{BACKENDS}dummy.DummyCache"},
        },
    }  # fmt: skip
    os.environ["ATOMICLOCK_TEST_DJANGO"] = json.dumps(project)
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connections

    settings.configure(**project)
    django.setup()
    call_command("createcachetable", verbosity=0)
    connections.close_all()
    yield project
    connections.close_all()
    del os.environ["ATOMICLOCK_TEST_DJANGO"]


@pytest.fixture
def rows(django_project: dict[str, Any], database: Path) -> Callable[[], int]:
    """Counts what is in the cache's table."""

    def count() -> int:
        with closing(sqlite3.connect(database)) as db:
            return int(db.execute("SELECT count(*) FROM cache_entries").fetchone()[0])

    return count


@pytest.fixture
def caches_are(django_project: dict[str, Any]) -> Iterator[Callable[..., None]]:
    """Replaces CACHES by those given, alias by alias, for one test."""
    from django.test import override_settings

    overridden: list[Any] = []

    def replace(**aliases: Any) -> None:
        overridden.append(override_settings(CACHES=aliases))
        overridden[-1].enable()

    yield replace
    for one in reversed(overridden):
        one.disable()
