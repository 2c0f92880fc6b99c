"""Fixtures of memcached's own tests: both colours, and a scripted proxy before the real server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mcproxy import Proxy, proxy_to
from servers import MemcachedServer

from atomiclock.testing._facade import Locks, open_locks


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Locks]]:
    """Makes managers of one colour, for a URL or a client."""
    made: list[Locks] = []

    def make(where: Any, **options: Any) -> Locks:
        made.append(open_locks(request.param, where, **options))
        return made[-1]

    yield make
    for locks in made:
        locks.close()


@pytest.fixture
def proxy(memcached_server: MemcachedServer) -> Iterator[Proxy]:
    with proxy_to(memcached_server.port) as proxy:
        yield proxy
