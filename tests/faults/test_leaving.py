"""Who is next in a process asks for the lock when the release has left, before its answer: what may come of that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from colours import Face
from proxy import Fault, Proxy
from servers import wait_until


@contextmanager
def one_waits(locks: Any) -> Iterator[tuple[Any, list[Any]]]:
    """A lease, and where another of this process, which waits for the lock, puts its own."""
    first, got = locks.acquire("x"), []
    thread = threading.Thread(target=lambda: got.append(locks.acquire("x", timeout=20)))
    thread.start()
    wait_until(lambda: locks_line(locks) == 1)
    yield first, got
    thread.join()
    for lease in got:
        lease.release()


def locks_line(locks: Any) -> int:
    """How many wait in this process."""
    manager = getattr(locks, "_target", locks)
    return sum(
        len(getattr(line, "waiting", ())) for lines in lines_of(manager._store) for line in list(lines._lines.values())
    )


def lines_of(store: Any) -> list[Any]:
    return store._lines.values() if hasattr(store, "_lines") else [store.lines]


def test_the_next_has_the_lock_before_the_release_is_answered(face: Face, proxy: Proxy, warm: Any) -> None:
    locks = face.manager(proxy.url, handover=False)
    warm(locks)
    slow = proxy.script(Fault("remove", reply_delay=1.0))
    with one_waits(locks) as (first, got):
        release = threading.Thread(target=first.release)
        release.start()
        wait_until(lambda: bool(got))
        assert slow.hits == 1
        assert release.is_alive(), "its answer was on its way still"
        release.join()
        assert got[0]
        assert got[0].fence > first.fence


def test_a_release_that_comes_after_the_next_has_asked_wakes_it(
    face: Face, proxy: Proxy, warm: Any, look: redis.Redis
) -> None:
    locks = face.manager(proxy.url, handover=False)
    warm(locks)
    proxy.script(Fault("remove", delay=0.5))
    with one_waits(locks) as (first, got):
        proxy.seen.clear()
        first.release()
        wait_until(lambda: bool(got))
        seen = [verb for verb in proxy.seen if verb != "handshake"]
        assert seen == ["remove", "add", "wait", "add"], "the request came to the proxy first, and left it last"
        assert got[0].fence > first.fence
        assert look.get("atomiclock:x") == got[0].token


def test_a_release_whose_answer_is_lost_is_repeated_and_takes_nothing_from_the_next(
    face: Face, proxy: Proxy, warm: Any, look: redis.Redis
) -> None:
    locks = face.manager(proxy.url, handover=False)
    warm(locks)
    proxy.script(Fault("remove", reply="reset"))
    with one_waits(locks) as (first, got):
        first.release()
        wait_until(lambda: bool(got))
        assert look.get("atomiclock:x") == got[0].token
        assert got[0]
    assert look.get("atomiclock:x") is None
