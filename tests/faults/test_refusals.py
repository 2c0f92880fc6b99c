"""A server that is there and cannot serve us: a clear error, and nothing left behind."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from colours import Face
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import RedisServer, wait_until

from atomiclock import BackendUnavailable, ConfigurationError, LockLost
from atomiclock.errors import BackendRefused

SECRET = "hunter2-and-more"


@pytest.fixture
def other_server() -> Iterator[int]:
    """Something that is not Redis: answers every line as a web server does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client = server.accept()[0]
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_wrong_password_is_refused_at_once_and_not_shown(face: Face, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--requirepass", "right").start()
    try:
        for url in (f"redis://:{SECRET}@127.0.0.1:{server.port}", f"redis://127.0.0.1:{server.port}"):
            locks = face.manager(url)
            begun = time.monotonic()
            with pytest.raises(BackendRefused) as caught:
                locks.acquire("x", timeout=5)
            assert time.monotonic() - begun < 1
            assert isinstance(caught.value, BackendUnavailable)
            assert isinstance(caught.value, ConfigurationError)
            assert SECRET not in f"{caught.value}{locks!r}{caught.value!r}"
            assert "password" in str(caught.value)
            assert caught.value.name == "x"
        with face.manager(f"redis://:right@127.0.0.1:{server.port}").acquire("x", timeout=5) as lease:
            assert lease
    finally:
        server.stop()


def test_server_that_is_not_redis_is_unavailable(face: Face, other_server: int) -> None:
    locks = face.manager(f"redis://127.0.0.1:{other_server}")
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable):
        locks.acquire("x", timeout=0.5)
    assert time.monotonic() - begun < 1.5
    with pytest.raises(BackendUnavailable):
        locks.holder("x")


@pytest.mark.parametrize("kind", ["hash", "list"])
def test_key_that_holds_other_data_is_refused_and_untouched(
    face: Face, redis_server: RedisServer, look: redis.Redis, kind: str
) -> None:
    if kind == "hash":
        look.hset("x", "field", "value")
    else:
        look.rpush("x", "value")
    locks = face.manager(redis_server.url, namespace="")
    begun = time.monotonic()
    with pytest.raises(ConfigurationError, match="other data"):
        locks.acquire("x", timeout=5)
    assert time.monotonic() - begun < 1
    assert look.type("x") == kind
    assert look.keys("*") == ["x"]


def test_lock_that_was_overwritten_by_other_data_is_lost(
    face: Face, redis_server: RedisServer, look: redis.Redis
) -> None:
    locks = face.manager(redis_server.url, namespace="")
    lease = locks.acquire("x", ttl=3)
    look.delete("x")
    look.hset("x", "field", "value")
    wait_until(lambda: lease.lost, 3 / 3 + 1.5, "told within one renewal interval")
    with pytest.raises(LockLost):
        lease.release()
    assert look.type("x") == "hash"
    other = locks.acquire("y", renew=False)
    look.delete("y")
    look.rpush("y", "value")
    with pytest.raises(LockLost):
        other.release()
    assert look.type("y") == "list"


def test_replica_is_refused(face: Face, redis_server: RedisServer, own_redis: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    own_redis.command("REPLICAOF", "127.0.0.1", str(redis_server.port))
    wait_until(lambda: "master_link_status:up" in own_redis.command("INFO", "replication"), 10)
    locks = face.manager(own_redis.url)
    with pytest.raises(BackendRefused, match="primary"):
        locks.acquire("x", timeout=5)


def test_server_that_is_loading_is_waited_for_within_the_timeout(face: Face, tmp_path: Path) -> None:
    slowly = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no")
    server = RedisServer(tmp_path, *slowly).start()
    try:
        with redis.Redis(port=server.port) as client:
            client.mset({f"fill:{index}": "x" * 1000 for index in range(5000)})
            client.save()
        locks = face.manager(server.url)
        server.kill()
        loading = threading.Thread(target=server.start)
        loading.start()
        wait_until(lambda: answer(server) is not None, 10)
        assert answer(server) == "loading"
        with pytest.raises(BackendUnavailable, match=r"(?i)loading"):
            locks.try_acquire("x")
        before = refused(server)
        hurry = threading.Thread(target=let_it_load, args=(server, before + 2))
        hurry.start()
        with locks.acquire("x", timeout=30) as lease:
            assert lease
        assert refused(server) >= before + 2
        hurry.join()
        loading.join()
    finally:
        server.stop()


def refused(server: RedisServer) -> int:
    """How often the server has refused one of our scripts."""
    return sum(map(int, re.findall(r"cmdstat_eval.*rejected_calls=(\d+)", server.command("INFO", "commandstats"))))


def let_it_load(server: RedisServer, refusals: int) -> None:
    """Once it has refused so many scripts, let it load as fast as it can."""
    wait_until(lambda: refused(server) >= refusals, 20)
    server.command("CONFIG", "SET", "key-load-delay", "0")


def answer(server: RedisServer) -> str | None:
    """What the server says of itself: ready, loading, or nothing."""
    try:
        with redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as client:
            client.get("x")
    except redis.BusyLoadingError:
        return "loading"
    except redis.ConnectionError:
        return None
    return "ready"


def test_flushed_script_cache_goes_unnoticed(face: Face, redis_server: RedisServer, look: redis.Redis) -> None:
    locks = face.manager(redis_server.url)
    look.script_flush()
    lease = locks.acquire("x")
    for call in (lease.extend, lambda: locks.holder("x"), lambda: locks.try_acquire("x"), lease.release):
        look.script_flush()
        call()
    assert look.exists("atomiclock:x") == 0
