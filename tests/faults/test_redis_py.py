"""redis-py's own Lock and ours exclude each other on one key."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from colours import Face
from redis.exceptions import LockNotOwnedError
from servers import RedisServer

from atomiclock import LockLost, LockTimeout


@pytest.fixture
def ours(face: Face, redis_server: RedisServer) -> Any:
    return face.manager(redis_server.url, namespace="")


@pytest.fixture
def raw(redis_session: RedisServer) -> Any:
    with redis.Redis(port=redis_session.port) as client:
        yield client


def later(seconds: float, call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=lambda: (time.sleep(seconds), call()))
    thread.start()
    return thread


def test_key_is_a_plain_string_with_our_token_and_an_expiry(ours: Any, raw: redis.Redis) -> None:
    with ours.acquire("x", ttl=20) as lease:
        assert raw.type("x") == b"string"
        assert raw.get("x") == lease.token.encode()
        assert 15_000 < raw.pttl("x") <= 20_000


def test_ours_keeps_theirs_out(ours: Any, raw: redis.Redis) -> None:
    with ours.acquire("x"):
        assert raw.lock("x", timeout=5).acquire(blocking=False) is False
    assert raw.lock("x", timeout=5).acquire(blocking=False) is True


def test_theirs_keeps_ours_out(ours: Any, raw: redis.Redis) -> None:
    theirs = raw.lock("x", timeout=5)
    theirs.acquire()
    assert ours.try_acquire("x") is None
    with pytest.raises(LockTimeout):
        ours.acquire("x", timeout=0.3)
    assert theirs.owned()
    theirs.release()
    ours.acquire("x", timeout=0).release()


def test_our_waiter_gets_in_soon_after_their_release(ours: Any, raw: redis.Redis) -> None:
    theirs = raw.lock("x", timeout=20, thread_local=False)
    theirs.acquire()
    thread = later(0.3, theirs.release)
    begun = time.monotonic()
    lease = ours.acquire("x", timeout=10)
    assert 0.25 < time.monotonic() - begun < 1
    thread.join()
    lease.release()


def test_their_waiter_gets_in_after_our_release(ours: Any, raw: redis.Redis) -> None:
    lease = ours.acquire("x")
    thread = later(0.3, lease.release)
    theirs = raw.lock("x", timeout=20, sleep=0.02)
    begun = time.monotonic()
    assert theirs.acquire(blocking_timeout=5)
    assert 0.25 < time.monotonic() - begun < 1
    thread.join()
    theirs.release()


def test_neither_releases_what_the_other_holds(ours: Any, raw: redis.Redis) -> None:
    theirs = raw.lock("x", timeout=0.2)
    theirs.acquire()
    lease = ours.acquire("x", timeout=5)
    with pytest.raises(LockNotOwnedError):
        theirs.release()
    lease.check()
    raw.delete("x")
    theirs.acquire()
    with pytest.raises(LockLost):
        lease.release()
    assert raw.exists("x")


def test_lock_of_theirs_without_an_expiry_keeps_ours_out_and_is_shown(ours: Any, raw: redis.Redis) -> None:
    raw.lock("x", timeout=None).acquire()
    with pytest.raises(LockTimeout, match="other software"):
        ours.acquire("x", timeout=0.2)
    assert ours.holder("x").remaining is None
