"""Fixtures of the fault injector: a scripted proxy before the real Redis, both colours, an eye on the server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

sys.path.insert(0, str(Path(__file__).parent))

from colours import COLOURS, Face
from proxy import Proxy, proxy_to
from servers import RedisServer


@pytest.fixture(params=COLOURS)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param)
    yield face
    face.close()


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with proxy_to(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def look(redis_session: RedisServer) -> Iterator[redis.Redis]:
    """Direct eyes and hands on the session's Redis, past the proxy."""
    with redis.Redis(port=redis_session.port, decode_responses=True) as client:
        yield client


@pytest.fixture
def warm(redis_server: RedisServer) -> Callable[[object], None]:
    """Runs each script once, so that the digests are known and a late EVALSHA can act."""

    def run(manager: object) -> None:
        lease = manager.acquire("warm up", renew=False, namespace="warm")  # type: ignore[attr-defined]
        lease.extend()
        lease.release()
        manager.holder("warm up")  # type: ignore[attr-defined]

    return run
