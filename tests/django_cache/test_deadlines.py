"""A store behind a cache that hangs at connect or at the reply, drips or is locked: every call ends in time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from colours import COLOURS, Face
from servers import wait_until
from wire import nobody_accepts, wire_to

from atomiclock import BackendUnavailable

BACKENDS = "django.core.cache.backends."
CACHES: dict[str, Callable[[int], dict[str, Any]]] = {
    "redis": lambda port: {"BACKEND": f"{BACKENDS}redis.RedisCache", "LOCATION": f"redis://127.0.0.1:{port}/0"},
    "memcached": lambda port: {"BACKEND": f"{BACKENDS}memcached.PyMemcacheCache", "LOCATION": f"127.0.0.1:{port}"},
}
BOUND, MARGIN, STALL = 0.7, 1.0, 0.5
"""What is asked for; by how much a call may be late, and the loop stand still, on a busy machine."""


@pytest.fixture(params=COLOURS)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param)
    yield face
    face.close()


@pytest.mark.parametrize("hang", ["nobody accepts", "never answers", "reply never", "drip"])
@pytest.mark.parametrize("store", CACHES)
def test_every_call_ends_in_time_and_the_loop_goes_on_when(
    caches_are: Callable[..., None], face: Face, store: str, hang: Any, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(f"{store}_server")
    with wire_to(server.port) as wire, ExitStack() as trouble:
        caches_are(locks=CACHES[store](wire.port))
        locks = face.manager(f"django://locks?io_timeout={BOUND}")
        lease = locks.acquire("held", renew=False)
        if hang == "nobody accepts":
            wire.strike("refused")
            trouble.enter_context(nobody_accepts(wire.port))
        else:
            wire.strike(hang)
        for call in (lambda: locks.acquire("x", timeout=BOUND), lease.extend, lease.release):
            face.longest_stall()
            begun = face.clock()
            answered = succeeds(call)
            assert face.clock() - begun < BOUND + MARGIN
            assert face.longest_stall() < STALL
            assert not answered or hang == "drip", "a reply of few bytes may drip in in time"
        trouble.close()
        wire.heal()
        with locks.acquire("x", timeout=10), locks.acquire("held", timeout=10):
            pass
        wait_until(lambda: locks.holder("x") is None and locks.holder("held") is None, 10, "nothing stays behind")


def test_every_call_ends_in_time_and_the_loop_goes_on_while_another_writes_for_ever(
    django_project: Any, face: Face, database: Path
) -> None:
    locks = face.manager(f"django://database?io_timeout={BOUND}")
    lease = locks.acquire("held", renew=False)
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for call in (lambda: locks.acquire("x", timeout=BOUND), lease.extend, lease.release):
            face.longest_stall()
            begun = face.clock()
            assert not succeeds(call)
            assert face.clock() - begun < BOUND + MARGIN
            assert face.longest_stall() < STALL
        writer.execute("ROLLBACK")
    with locks.acquire("x", timeout=10), locks.acquire("held", timeout=10):
        pass


def succeeds(call: Callable[[], Any]) -> bool:
    with suppress(BackendUnavailable):
        call()
        return True
    return False
