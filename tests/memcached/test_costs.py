"""What locks cost a memcached, counted by the server itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from pymemcache.client.base import Client
from servers import MemcachedServer

from atomiclock.testing._facade import Locks

COMMANDS = (b"cmd_get", b"cmd_set", b"cmd_touch", b"delete_hits", b"delete_misses")
"""Of which each command that a lock sends is one, also if it is a meta command."""


def stats(server: MemcachedServer) -> dict[bytes, Any]:
    with closing(Client(("127.0.0.1", server.port))) as client:
        return dict(client.stats())


def test_a_cycle_is_two_commands_and_a_name_used_once_leaves_no_item(
    make: Callable[..., Locks], memcached_server: MemcachedServer
) -> None:
    locks = make(memcached_server.url, ttl=20)
    locks.acquire("warm up").release()
    before = stats(memcached_server)
    for number in range(100):
        locks.acquire(f"once {number}", timeout=0).release()
    after = stats(memcached_server)
    assert sum(after[name] - before[name] for name in COMMANDS) == 200
    assert after[b"curr_items"] == before[b"curr_items"]
