"""From an alias to a store: what is taken from the settings, and what is refused, with the reason."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from servers import MemcachedServer, RedisServer

from atomiclock import AsyncLockManager, LockManager
from atomiclock._registry import backend_for
from atomiclock.backends import _django_values
from atomiclock.errors import BackendRefused, ConfigurationError

BACKENDS = "django.core.cache.backends."
ENTRIES = {"MAX_ENTRIES": 1_000_000}


def refusal(url: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        backend_for(url)
    return str(raised.value)


def by_key_function(key: str, prefix: str, version: int) -> str:
    return f"{version}/{prefix}/{key.upper()}"


@pytest.mark.parametrize(
    ("options", "query", "key"),
    [
        ({}, "", ":1:feed-7"),
        ({"KEY_PREFIX": "shop"}, "", "shop:1:feed-7"),
        ({"KEY_PREFIX": "shop", "VERSION": 4}, "", "shop:4:feed-7"),
        ({"KEY_PREFIX": "shop", "VERSION": 4}, "&version=9", "shop:9:feed-7"),
        ({"KEY_FUNCTION": by_key_function, "KEY_PREFIX": "shop"}, "", "1/shop/FEED-7"),
        ({"KEY_FUNCTION": by_key_function, "VERSION": 4}, "&version=9", "9//FEED-7"),
    ],
)
def test_the_key_is_that_of_cache_add(
    options: Any, query: str, key: str, caches_are: Callable[..., None], redis_server: RedisServer
) -> None:
    caches_are(Odd_Name={"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": redis_server.url, **options})
    with LockManager(f"django://Odd_Name?namespace={query}") as locks, locks.acquire("feed-7"):
        assert key in redis_server.command("KEYS", "*").split("\n")


def test_without_an_alias_it_is_the_default(django_project: dict[str, Any], redis_server: RedisServer) -> None:
    with LockManager("django://", namespace="") as locks, locks.acquire("a"):
        assert ":1:a" in redis_server.command("KEYS", "*").split("\n")


def test_an_unknown_alias_names_those_there_are(django_project: dict[str, Any]) -> None:
    said = refusal("django://shop_1")
    assert said.startswith("django://shop_1: CACHES has no 'shop_1'; it has Shop_1, database, default, files, memory,")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("django://default/0", "django://ALIAS"),
        ("django://user:secret@default", "django://ALIAS"),
        ("django://default?version=two", "version is a whole number"),
        ("django://default?io_timeout=0", "io_timeout"),
        ("django://default?versoin=2", "did you mean 'version'"),
    ],
)
def test_a_url_with_more_or_other_than_an_alias_is_refused(django_project: dict[str, Any], url: str, says: str) -> None:
    said = refusal(url)
    assert says in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [("", "set DJANGO_SETTINGS_MODULE"), ("no_such_settings", "settings cannot be loaded: No module named 'no_such_")],
)
def test_without_settings_it_says_what_to_do(settings: str, says: str) -> None:
    script = "import atomiclock\ntry: atomiclock.LockManager('django://')\nexcept ValueError as error: print(error)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DJANGO_SETTINGS_MODULE": settings}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert says in done.stdout


@pytest.mark.parametrize(
    ("missing", "cache", "says"),
    [
        ("redis", "redis.RedisCache", "pip install 'atomiclock[redis]'"),
        ("pymemcache", "memcached.PyLibMCCache", "pip install 'atomiclock[memcached]'"),
        ("pymemcache", "memcached.PyMemcacheCache", "pip install 'atomiclock[memcached]'"),
    ],
)
def test_a_missing_driver_says_what_to_install(missing: str, cache: str, says: str) -> None:
    script = f"""
import sys, types, django.conf
sys.modules[{missing!r}] = None
sys.modules["pylibmc"] = types.SimpleNamespace(Client=None, NotFound=KeyError)
django.conf.settings.configure(CACHES={{"default": {{"BACKEND": "{BACKENDS}{cache}", "LOCATION": "redis://x"}}}})
import atomiclock
try: atomiclock.LockManager('django://')
except ValueError as error: print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert says in done.stdout


@pytest.mark.parametrize(("alias", "says"), [("files", "8 of 60"), ("nothing", "everybody gets every lock")])
def test_a_cache_whose_add_lets_two_in_is_refused(django_project: dict[str, Any], alias: str, says: str) -> None:
    said = refusal(f"django://{alias}")
    assert says in said
    assert "redis://" in said, "and says what to use instead"


def test_a_class_derived_from_a_refused_one_is_refused_too(caches_are: Callable[..., None]) -> None:
    from django.core.cache.backends.filebased import FileBasedCache

    caches_are(mine={"BACKEND": f"{__name__}.Derived", "LOCATION": "/tmp"})  # never opened
    sys.modules[__name__].Derived = type("Derived", (FileBasedCache,), {})  # type: ignore[attr-defined]
    assert "8 of 60" in refusal("django://mine")


def test_a_class_that_nobody_knows_is_refused(caches_are: Callable[..., None]) -> None:
    from django.core.cache.backends.base import BaseCache

    class Unknown(BaseCache):  # type: ignore[misc]  # Django has no types
        def __init__(self, location: str, params: dict[str, Any]) -> None:
            super().__init__(params)

    sys.modules[__name__].Unknown = Unknown  # type: ignore[attr-defined]
    caches_are(mine={"BACKEND": f"{__name__}.Unknown"})
    assert "knows RedisCache, PyMemcacheCache" in refusal("django://mine")


@pytest.mark.parametrize(
    "cache",
    [
        {"BACKEND": "no_such.Cache"},
        {"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": "http://localhost"},
        {"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": "redis://x", "OPTIONS": {"pool_class": "no_such.Pool"}},
        {"BACKEND": "django_redis.cache.RedisCache"},
    ],
)
def test_a_cache_that_cannot_be_made_is_a_mistake_in_the_settings(
    cache: dict[str, Any], caches_are: Callable[..., None]
) -> None:
    caches_are(mine=cache)
    assert refusal("django://mine").startswith("django://mine: ")


def test_a_redis_cache_that_chooses_servers_by_itself_is_refused(caches_are: Callable[..., None]) -> None:
    from django.core.cache.backends.redis import RedisCache, RedisCacheClient

    class Sharding(RedisCacheClient):  # type: ignore[misc]  # Django has no types
        def get_client(self, key: Any = None, *, write: bool = False) -> Any: ...

    class Sharded(RedisCache):  # type: ignore[misc]  # Django has no types
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._class = Sharding

    sys.modules[__name__].Sharded = Sharded  # type: ignore[attr-defined]
    caches_are(mine={"BACKEND": f"{__name__}.Sharded", "LOCATION": "redis://localhost"})
    assert "get_client" in refusal("django://mine")


def test_the_first_of_several_redis_servers_is_the_one_that_is_written_to(
    caches_are: Callable[..., None], redis_server: RedisServer
) -> None:
    replica = "redis://127.0.0.1:1/0"
    caches_are(mine={"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": [redis_server.url, replica]})
    with LockManager("django://mine", namespace="") as locks, locks.acquire("a"):
        assert ":1:a" in redis_server.command("KEYS", "*").split("\n")


def test_a_redis_cache_is_reached_with_its_own_settings(
    caches_are: Callable[..., None], redis_server: RedisServer
) -> None:
    where = f"unix://{redis_server.socket}"
    caches_are(mine={"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": where, "OPTIONS": {"db": 5}})
    with LockManager("django://mine", namespace="") as locks, locks.acquire("a"):
        assert ":1:a" in redis_server.command("-n", "5", "KEYS", "*")

    async def in_a_task() -> None:
        async with AsyncLockManager("django://mine", namespace="") as locks, locks.acquire("b"):
            assert ":1:b" in redis_server.command("-n", "5", "KEYS", "*")

    asyncio.run(in_a_task())


@pytest.fixture
def pylibmc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of pylibmc that Django needs to make a cache. Its C library is not for us to test."""
    monkeypatch.setitem(sys.modules, "pylibmc", SimpleNamespace(Client=None, NotFound=KeyError))


@pytest.mark.parametrize("kind", ["PyMemcacheCache", "PyLibMCCache"])
@pytest.mark.parametrize("location", ["127.0.0.1:{port}", ["127.0.0.1:{port}"]])
def test_a_memcached_cache_is_the_server_behind_it(
    kind: str, location: Any, caches_are: Callable[..., None], memcached_server: MemcachedServer, pylibmc: None
) -> None:
    text = json.loads(json.dumps(location).replace("{port}", str(memcached_server.port)))
    caches_are(mine={"BACKEND": f"{BACKENDS}memcached.{kind}", "LOCATION": text, "KEY_PREFIX": "shop"})
    with LockManager("django://mine", namespace="") as locks, locks.acquire("a"):
        assert memcached_server.command("get shop:1:a").startswith("VALUE shop:1:a")
        assert f"memcached 127.0.0.1:{memcached_server.port}" in repr(locks)


def test_a_prefix_that_pymemcache_adds_to_the_keys_is_added(
    caches_are: Callable[..., None], memcached_server: MemcachedServer
) -> None:
    location, options = f"127.0.0.1:{memcached_server.port}", {"key_prefix": b"its-"}
    caches_are(mine={"BACKEND": f"{BACKENDS}memcached.PyMemcacheCache", "LOCATION": location, "OPTIONS": options})
    from django.core.cache import caches

    with LockManager("django://mine", namespace="") as locks, locks.acquire("a"):
        assert memcached_server.command("get its-:1:a").startswith("VALUE its-:1:a")
        assert not caches["mine"].add("a", "django", 60)
        assert caches["mine"].add("b", "django", 60)
        assert locks.try_acquire("b") is None


def test_memcached_is_reached_through_a_socket(caches_are: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "memcached.sock"
    server = MemcachedServer(tmp_path, "-s", str(path)).start()
    try:
        server.wait_until_old_enough()
        caches_are(mine={"BACKEND": f"{BACKENDS}memcached.PyMemcacheCache", "LOCATION": f"unix:{path}"})
        with LockManager("django://mine", namespace="") as locks, locks.acquire("a"):
            assert server.command("get :1:a").startswith("VALUE :1:a")
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("spec", "server"),
    [
        ("cache.example", ("cache.example", 11211)),
        ("10.0.0.1:11212", ("10.0.0.1", 11212)),
        ("10.0.0.1:11212:5", ("10.0.0.1", 11212)),
        ("[::1]:11212", ("::1", 11212)),
        ("[::1]", ("::1", 11211)),
        ("unix:/run/memcached.sock", "/run/memcached.sock"),
        ("/run/memcached.sock", "/run/memcached.sock"),
        (("10.0.0.1", 11212), ("10.0.0.1", 11212)),
    ],
)
def test_a_location_is_read_as_the_client_libraries_do(spec: Any, server: Any) -> None:
    from atomiclock.backends._django_native import _server

    assert _server(spec, "here") == server


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("PyMemcacheCache", {"LOCATION": "10.0.0.1;10.0.0.2"}, "2 servers; a lock must live on one"),
        ("PyMemcacheCache", {"LOCATION": "udp:10.0.0.1:11211"}, "no host:port"),
        ("PyLibMCCache", {"LOCATION": ["10.0.0.1", "10.0.0.2"]}, "2 servers; a lock must live on one"),
        ("PyLibMCCache", {"OPTIONS": {"binary": True}}, "text protocol"),
        ("PyLibMCCache", {"OPTIONS": {"username": "u", "password": "secret", "binary": True}}, "SASL"),
        ("PyLibMCCache", {"OPTIONS": {"behaviors": {"_namespace": "x"}}}, "KEY_PREFIX"),
    ],
)
def test_a_memcached_cache_that_we_cannot_share_is_refused(
    kind: str, change: dict[str, Any], says: str, caches_are: Callable[..., None], pylibmc: None
) -> None:
    caches_are(mine={"BACKEND": f"{BACKENDS}memcached.{kind}", "LOCATION": "10.0.0.1:11211", **change})
    said = refusal("django://mine")
    assert says in said
    assert "secret" not in said


def test_sentinel_is_refused(caches_are: Callable[..., None]) -> None:
    options = {"CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory", "SENTINELS": [("10.0.0.1", 26379)]}
    caches_are(mine={"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://main/0", "OPTIONS": options})
    assert "Sentinel" in refusal("django://mine")


def test_a_connection_class_of_the_applications_own_serves_threads_and_not_tasks(
    caches_are: Callable[..., None], redis_server: RedisServer
) -> None:
    class Own(redis.Connection):
        made = 0

        def __init__(self, **kwargs: Any) -> None:
            Own.made += 1
            super().__init__(**kwargs)

    options = {"connection_class": Own}
    caches_are(mine={"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": redis_server.url, "OPTIONS": options})
    with LockManager("django://mine") as locks:
        locks.acquire("a").release()
    assert Own.made

    async def in_a_task() -> None:
        async with AsyncLockManager("django://mine") as locks:
            await locks.acquire("a")

    with pytest.raises(ConfigurationError, match=r"no twin in redis\.asyncio"):
        asyncio.run(in_a_task())


def test_where_it_is_is_told_without_the_password(caches_are: Callable[..., None]) -> None:
    caches_are(mine={"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": "redis://:secret@10.0.0.1:6380/2"})
    backend, _ = backend_for("django://mine?io_timeout=0.5")
    assert backend.place == "django://mine at redis 10.0.0.1:6380, database 2"
    assert backend.request_bound == 0.5


@pytest.mark.parametrize("vendor", ["postgresql", "mysql", "oracle", "cockroachdb"])
def test_a_database_whose_add_is_not_atomic_is_refused(
    vendor: str, django_project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db.backends.sqlite3.base import DatabaseWrapper

    monkeypatch.setattr(DatabaseWrapper, "vendor", vendor)
    said = refusal("django://database")
    assert vendor in said
    assert ("58 of 60" in said) == (vendor == "postgresql")


def test_a_missing_table_says_how_to_make_it(caches_are: Callable[..., None]) -> None:
    caches_are(mine={"BACKEND": f"{BACKENDS}db.DatabaseCache", "LOCATION": "nowhere", "OPTIONS": ENTRIES})
    with LockManager("django://mine") as locks, pytest.raises(BackendRefused, match="createcachetable"):
        locks.acquire("a")


def test_a_database_in_memory_is_refused_at_first_use(
    django_project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connections

    monkeypatch.setitem(connections.settings["default"], "NAME", ":memory:")
    with LockManager("django://database") as locks, pytest.raises(BackendRefused, match="in memory"):
        locks.acquire("a")


def test_a_cache_of_one_process_warns_once(caches_are: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_django_values, "_warned", set())
    caches_are(mine={"BACKEND": f"{BACKENDS}locmem.LocMemCache", "OPTIONS": ENTRIES})
    with pytest.warns(RuntimeWarning, match="no other process"):
        backend_for("django://mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend_for("django://mine")


@pytest.mark.parametrize("backend", ["locmem.LocMemCache", "db.DatabaseCache"])
@pytest.mark.filterwarnings("ignore:.*no other process:RuntimeWarning")
def test_a_cache_that_drops_entries_soon_warns(
    backend: str, caches_are: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_django_values, "_warned", set())
    caches_are(mine={"BACKEND": BACKENDS + backend, "LOCATION": "cache_entries"})
    with pytest.warns(RuntimeWarning, match="more than 300.*MAX_ENTRIES"):
        backend_for("django://mine")
