"""What is read back from a store may be anybody's: a clear error or somebody's lock, and never a grant."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from hostile import NAME, ids, survives
from servers import EtcdServer, MemcachedServer, RedisServer

from atomiclock import LockManager, LockTimeout

TOKEN = "a" * 32
HUGE = b"x" * 2_000_000
DEEP = b"[" * 200_000


HOSTILE_TEXTS = [
    b"",
    b"\0",
    b"\xff\xfe\xff",
    b"\xff\xfe 12 0 owner",
    b"a\r\nSET x 1\r\n",
    TOKEN.encode(),
    f"{TOKEN} 1 2 owner".encode(),
    b"%s %s 0 owner" % (TOKEN.encode(), b"9" * 16),
    b"%s %s 0 owner" % (TOKEN.encode(), b"9" * 5000),
    b"%s 1 0 \x1b[2J\r\nnot a line of the log" % TOKEN.encode(),
    b"%s 1 0 %s" % (TOKEN.encode(), b"o" * 100_000),
    DEEP,
    HUGE[:1_000_000],
]


@pytest.mark.parametrize("value", HOSTILE_TEXTS, ids=ids)
def test_redis_text(redis_server: RedisServer, value: bytes) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.set(NAME, value)
        client.set("{n}:info", value)
        survives(redis_server.url)
        assert client.get(NAME) == value
        client.set("{n}:info", value + b" " + value)
        client.set(NAME, value[:40])
        survives(redis_server.url)


def _list(client: redis.Redis, key: str) -> None:
    client.rpush(key, "x")


def _hash(client: redis.Redis, key: str) -> None:
    client.hset(key, "x", "y")


def _stream(client: redis.Redis, key: str) -> None:
    client.xadd(key, {"x": "y"})


@pytest.mark.parametrize("plant", [_list, _hash, _stream])
@pytest.mark.parametrize("key", [NAME, "{n}:info"])
def test_redis_type(redis_server: RedisServer, plant: Callable[..., None], key: str) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.set(NAME, "somebody")
        client.delete(key)
        plant(client, key)
        survives(redis_server.url, shown=False)
        assert client.type(key) != b"string"


@pytest.mark.parametrize("value", HOSTILE_TEXTS, ids=ids)
@pytest.mark.parametrize("protocol", ["auto", "classic"])
def test_memcached(memcached_server: MemcachedServer, value: bytes, protocol: str) -> None:
    with memcached_server.connect() as sock:
        sock.sendall(b"set n 4294967295 0 %d\r\n%b\r\n" % (len(value), value))
        assert sock.recv(100) == b"STORED\r\n"
    survives(memcached_server.url + ("?protocol=classic" if protocol == "classic" else ""))


def label(token: Any, owner: Any) -> bytes:
    return json.dumps({"token": token, "owner": owner}).encode()


@pytest.mark.parametrize(
    "value",
    [
        *HOSTILE_TEXTS,
        b"null",
        b"[]",
        label(TOKEN, "forged"),
        label("1", "o" * 500_000),
        label("1", "\x1b[2J\nnot a line of the log"),
        label("\ud800", "\ud800"),
        label(1, None),
        b'{"token": ' + b"9" * 5000 + b', "owner": ""}',
        b'{"token": "1", "owner": ' + DEEP,
    ],
    ids=ids,
)
def test_etcd(etcd_server: EtcdServer, value: bytes) -> None:
    import etcd3

    with etcd3.client(port=etcd_server.port) as client:
        client.put("n/1", value)
        survives(etcd_server.url)


ROW = {
    "key": b"n",
    "token": TOKEN,
    "owner": b"somebody",
    "expires": 1e12,
    "boot": "",
    "space": "?",
    "pid": 1,
    "started": 1,
}


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., str]:
    """A lock file with a row as it should never be."""
    from atomiclock.backends._identity import identity

    url = f"sqlite:///{tmp_path}/locks.db"

    def write(table: str = "locks", **changed: Any) -> str:
        with LockManager(url) as locks:
            locks.holder("made")
        row = {**ROW, "boot": identity().boot, **changed}
        if table == "waiters":
            row = {"since": 0.0, "port": 1, "cookie": b"c", **row}
            del row["owner"], row["expires"]
        marks = ", ".join("?" * len(row))
        with closing(sqlite3.connect(tmp_path / "locks.db")) as db, db:
            db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
        return url

    return write


@pytest.mark.parametrize(
    "changed",
    [
        {"expires": "tomorrow"},
        {"expires": b"\xff"},
        {"expires": float("inf")},
        {"expires": 2**63 - 1},
        {"token": b"\xff\xfe"},
        {"token": "x" * 1_000_000},
        {"owner": "text"},
        {"owner": 5},
        {"owner": b"\x1b[2J\n" + HUGE},
        {"fence": -5},
        {"space": 5},
        {"space": b"\xff"},
        {"pid": "many", "space": None},
        {"pid": -1, "space": None},
        {"pid": 2**62, "space": None},
        {"pid": b"\xff", "space": None},
        {"started": "long ago", "space": None},
        {"started": 1.5, "space": None},
    ],
    ids=ids,
)
def test_sqlite_lock(altered: Callable[..., str], changed: dict[str, Any]) -> None:
    from atomiclock.backends._identity import identity

    if "space" in changed and changed["space"] is None:
        changed = {**changed, "space": identity().space}
    survives(altered(**changed), shown=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"since": "early"},
        {"port": 99999},
        {"port": -1},
        {"port": "http"},
        {"cookie": "text"},
        {"cookie": 5},
        {"cookie": HUGE},
        {"grace": "for ever"},
        {"pid": "many", "space": None},
        {"pid": 2**62, "space": None},
        {"token": b"\xff"},
    ],
    ids=ids,
)
def test_sqlite_waiter(altered: Callable[..., str], changed: dict[str, Any]) -> None:
    """It may keep nobody from releasing, nor from getting the lock for long."""
    from atomiclock.backends._identity import identity

    if "space" in changed and changed["space"] is None:
        changed = {**changed, "space": identity().space}
    url = altered("waiters", **changed)
    with LockManager(url, namespace="") as locks:
        locks.acquire(NAME, timeout=5).release()
    altered("waiters", **{**changed, "token": b"again"})
    with LockManager(url, namespace="") as locks:
        with locks.acquire(NAME, timeout=5):
            with pytest.raises(LockTimeout):
                LockManager(url, namespace="").acquire(NAME, timeout=0.1)
        assert locks.holder(NAME) is None
