"""The recorded history of many processes under faults breaks no law, and the checker would see it if it did."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pytest
import redis
from history import History, Hold, Wait, fences, leaks, overlaps, starved, stuck, untold, without
from scene import Scene, cut_off, killed, slow_replies, stopped
from servers import MemcachedServer, RedisServer, Server, wait_until
from tally import chosen, note
from wire import Wire, wire_to

from atomiclock import BackendUnavailable, LockManager

MARGIN = 3.0
"""Seconds beyond the ttl: the store's own rounding, a Python that starts, a busy machine."""
TTLS = {"sqlite": 0.8, "redis": 0.8, "memcached": 1.0, "etcd": 2.0}
STEPS = {"memcached": 3.0, "etcd": 1.5}
"""Seconds for which a store keeps a lock beyond its ttl."""


@pytest.fixture(params=TTLS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(backend: str, request: pytest.FixtureRequest) -> Any:
    return None if backend == "sqlite" else request.getfixturevalue(f"{backend}_server")


@pytest.fixture
def url(backend: str, server: Any, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/locks.db" if server is None else f"{backend}://127.0.0.1:{server.port}/"


@pytest.fixture
def wire(backend: str, server: Any) -> Iterator[Wire | None]:
    if server is None:
        yield None
        return
    with wire_to(server.port, http2=backend == "etcd") as wire:
        yield wire


def test_under_every_fault_no_two_hold_and_nobody_is_stuck(
    tmp_path: Path, url: str, backend: str, wire: Wire | None
) -> None:
    ttl = TTLS[backend]
    for seed in range(chosen(1, 5)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        where = url if backend == "sqlite" else f"{url}?io_timeout=0.8".replace("/?", "?")
        scene = Scene(folder, where, seed, wire, ttl=ttl, renew=0.8, works=[0.0, 0.01, 0.1, ttl * 1.5])
        history = scene.play(chosen(5, 15), 4, (stopped, killed, *([cut_off] if wire else [])))
        assert overlaps(history) == []
        assert fences(history) == []
        assert stuck(history, ttl + STEPS.get(backend, 0) + MARGIN, places=backend == "etcd") == []
        assert leaks(history, [], 8 if backend == "etcd" else 3) == []  # whose streams have threads, up to so many
        assert len(history.holds) > 4, "it went on"
        note(f"history of {backend}, seed {seed}: {history}, {len(history.waits)} acquires: clean")
        with LockManager(url) as locks:
            wait_until(lambda locks=locks: locks.holder("x") is None, ttl + STEPS.get(backend, 0) + MARGIN)


def test_with_late_replies_a_lease_ends_before_the_next_begins(tmp_path: Path, redis_server: RedisServer) -> None:
    with wire_to(redis_server.port) as wire:
        scene = Scene(tmp_path, redis_server.url, 0, wire, ttl=0.8, renew=0.0, works=[1.0], rests=[0.5])
        history = scene.play(chosen(5, 15), 2, (slow_replies,))  # replies to one of the two are late
    assert overlaps(history) == fences(history) == []
    assert any(hold.fate == "lost" for hold in history.holds), "the replies were not late"
    note(f"history of redis with late replies: {history}: clean")


@pytest.mark.parametrize("backend", [name for name in TTLS if name != "memcached"], indirect=True)
def test_where_the_store_has_an_order_nobody_is_overtaken_often(tmp_path: Path, url: str, backend: str) -> None:
    history = Scene(tmp_path, url, works=[0.0, 0.003], rests=[0.0], ttl=5.0).play(chosen(2, 10))
    assert overlaps(history) == fences(history) == []
    assert starved(history, 8) == []
    assert len(history.holds) > 50
    note(f"order of {backend}: {len(history.holds)} holds of 4 processes, nobody overtaken more than 8 times")


def forget(backend: str, server: Any, folder: Path) -> tuple[float, float]:
    """The store loses all locks, as by a flush, or by somebody's hand. Between which times."""
    begun = time.monotonic()
    if backend == "sqlite":
        with closing(sqlite3.connect(folder / "locks.db", timeout=10)) as db, db:
            db.execute("DELETE FROM locks")
    elif backend == "etcd":
        server.ctl("del", "", "--from-key")
    else:
        server.command({"redis": "FLUSHALL", "memcached": "flush_all"}[backend])
    return begun, time.monotonic()


def is_held(witness: LockManager) -> bool:
    with suppress(BackendUnavailable):
        return witness.holder("x") is not None
    return False


def told_in_time(scene: Scene, forget: Callable[[], tuple[float, float]], rounds: int, rest: float) -> History:
    """The history of `rounds` in which the store forgets and then has a `rest`. It shows that whoever held is told,
    that the next holder is left alone and that nobody else loses anything."""
    ttl, times = scene.orders["ttl"], []

    def lose(*_: Any) -> None:
        with LockManager(scene.url) as witness:
            wait_until(lambda: is_held(witness), 20, "somebody holds it")
        times.append(forget())
        time.sleep(rest)

    history = scene.play((rounds + 1) * rest, 3, (lose,))
    within = ttl / 3 + 1.0
    assert times
    for loss in times:
        assert untold(history, loss, within) == []
    assert overlaps(history, [(since, until + within) for since, until in times]) == []
    assert fences(history) == []
    innocent = [hold for hold in history.holds if not any(a <= hold.over and hold.invoked <= b for a, b in times)]
    assert [hold for hold in innocent if hold.fate != "released"] == []
    assert any(hold.fate == "lost" for hold in history.holds), "nobody lost anything"
    note(f"{scene.url.partition(':')[0]} forgot all {len(times)} times: {history}, each told within {within:.2f} s")
    return history


def test_a_store_that_forgets_is_told_in_time_and_the_next_holder_is_left_alone(
    tmp_path: Path, url: str, backend: str, server: Any
) -> None:
    ttl = 1.5 * TTLS[backend]
    scene = Scene(tmp_path, url, ttl=ttl, works=[ttl * 1.2], rests=[0.0])
    told_in_time(scene, lambda: forget(backend, server, tmp_path), chosen(2, 7), ttl)


def restart(server: Server) -> tuple[float, float]:
    begun = time.monotonic()
    server.restart()
    return begun, time.monotonic()


def evict_from_redis(server: RedisServer) -> tuple[float, float]:
    """Let its memory be full, so that it drops what has a ttl."""
    begun, fillers = time.monotonic(), [f"filler {number}" for number in range(60)]
    with redis.Redis(port=server.port) as client:
        for filler in fillers:
            if not client.exists("atomiclock:x"):
                break
            with suppress(redis.exceptions.OutOfMemoryError):
                client.setrange(filler, 100_000, "x")
        client.delete(*fillers)
    return begun, time.monotonic()


def evict_from_memcached(server: MemcachedServer) -> tuple[float, float]:
    """Fill it with items of the size that the lock's has, so that it drops the oldest."""
    begun = time.monotonic()
    size = len(server.command("mg atomiclock:x v").split("\r\n")[-1])
    with server.connect() as sock:
        for number in range(0, 200_000, 500):
            lines = [b"ms s%d %d T900 q\r\n%b\r\n" % (number + one, size, b"x" * size) for one in range(500)]
            sock.sendall(b"".join(lines) + b"mn\r\n")
            while not sock.recv(65536).endswith(b"MN\r\n"):
                pass
            if server.command("mg atomiclock:x u") == "EN":  # u: a look that does not count as use
                break
    return begun, time.monotonic()


LOSSES: dict[str, tuple[type[Server], tuple[str, ...], Callable[[Any], tuple[float, float]], float]] = {
    "a Redis without persistence restarts": (RedisServer, (), restart, 0.0),
    "a Redis evicts": (
        RedisServer, ("--maxmemory", "3mb", "--maxmemory-policy", "volatile-lru"), evict_from_redis, 0.0,
    ),
    "a memcached restarts": (MemcachedServer, (), restart, 4.5),  # then it grants nothing until it is four seconds old
    "a memcached evicts": (MemcachedServer, ("-m", "2", "-o", "no_lru_maintainer"), evict_from_memcached, 0.0),
}  # fmt: skip
"""What loses locks, and for how long nobody gets one after it."""


@pytest.mark.parametrize("what", LOSSES)
def test_it_is_told_in_time_and_the_next_holder_is_left_alone_when(tmp_path: Path, what: str) -> None:
    kind, options, lose, pause = LOSSES[what]
    (tmp_path / "server").mkdir()
    server = kind(tmp_path / "server", *options)  # type: ignore[call-arg]  # both take options
    server.start()
    try:
        scene = Scene(tmp_path, server.url, ttl=1.5, works=[1.8], rests=[0.0])  # type: ignore[attr-defined]
        told_in_time(scene, lambda: lose(server), chosen(2, 6), 1.5 + pause)
    finally:
        server.stop()


TOYS: dict[str, tuple[Callable[[History], list[str]], float, tuple[Any, ...], dict[str, Any]]] = {
    "CheckThenSet": (overlaps, 3, (), {"works": [0.01]}),
    "BlindDelete": (overlaps, 3, (), {"ttl": 0.2, "works": [0.01, 0.3], "stubborn": True}),
    "LateValidity": (overlaps, 5, (slow_replies,), {"ttl": 0.4, "works": [0.3], "rests": [0.2, 0.6]}),
    "FenceReset": (fences, 3, (), {"rests": [0.05, 0.3], "works": [0.02]}),
    "NoExpiry": (lambda history: stuck(history, 2.5), 3, (killed,), {"ttl": 0.5, "timeout": 4.0, "works": [0.0]}),
    "Greedy": (lambda history: starved(history, 8), 3, (), {"works": [0.003], "rests": [0.0], "ttl": 5.0}),
    "LeavesConnections": (lambda history: leaks(history, []), 3, (), {}),
}
"""Each with the law that it breaks, for how long it runs, what befalls it, and what its clients do."""


PATIENCE = 100
"""Seconds for which a mistake that needs bad luck is looked for, in at least six histories."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("toy", TOYS)
def test_a_lock_with_a_mistake_is_found_out(tmp_path: Path, redis_server: RedisServer, toy: str) -> None:
    law, seconds, faults, orders = TOYS[toy]
    end = time.monotonic() + PATIENCE
    for seed in takewhile(lambda seed: seed < 6 or time.monotonic() < end, count()):
        folder = tmp_path / str(seed)
        folder.mkdir()
        redis_server.command("FLUSHALL")
        with wire_to(redis_server.port) as wire:
            history = Scene(folder, redis_server.url, seed, wire, toy=toy, **orders).play(seconds, 4, faults)
        if wrong := law(history):
            found = f"{len(wrong)} times in {len(history.holds)} holds of history {seed + 1}"
            note(f"toy {toy} found out {found}, such as: {wrong[0]}")
            return
    pytest.fail(f"{toy} went unnoticed, at last in {history}")


def test_a_lock_that_is_left_behind_is_found_out(tmp_path: Path, redis_server: RedisServer) -> None:
    orders: dict[str, Any] = {"toy": "LeavesTheLock", "ttl": 30.0, "timeout": 0.3}
    history = Scene(tmp_path, redis_server.url, **orders).play(3)
    wrong = leaks(history, sorted({"x"}.intersection(redis_server.keys())))
    assert wrong
    note(f"toy LeavesTheLock found out: {wrong[0]}")


@pytest.mark.parametrize("faults", [(), (slow_replies,), (stopped, killed)], ids=["calm", "slow", "stopped"])
def test_a_lock_without_a_mistake_passes(tmp_path: Path, redis_server: RedisServer, faults: Any) -> None:
    orders: dict[str, Any] = {"toy": "Sound", "ttl": 0.4, "works": [0.01, 0.3, 0.5], "stubborn": True}
    with wire_to(redis_server.port) as wire:
        history = Scene(tmp_path, redis_server.url, 2, wire, **orders).play(chosen(2, 8), 4, faults)
    assert overlaps(history) == stuck(history, 0.4 + MARGIN) == leaks(history, []) == []
    assert faults == (slow_replies,) or fences(history) == []
    assert len(history.holds) > 3


def test_the_laws_by_hand() -> None:
    """What overlaps, by how much, and what only touches."""
    one, two = Hold("a", 0, 1, 2, 2, fence=1), Hold("b", 0, 1.5, 3, 3, fence=1)
    assert overlaps(History([one, two])) == ["a and b both held for 0.5000 s"]
    assert overlaps(History([one, two]), [(1.4, 2.1)]) == []
    assert overlaps(History([one, Hold("b", 0, 2, 3, 3)])) == []
    glance, late = Hold("b", 0, 1.5, 1.5, 1.6, fence=1), Hold("b", 0, 1.5, 1.5, 1.6, believed=False, fence=1)
    assert overlaps(History([one, glance])) == ["a and b both held for 0.0000 s"]
    assert len(fences(History([one, glance]))) == 1
    assert overlaps(History([one, late])) == fences(History([one, late])) == [], "it came when the lease was over"
    assert len(fences(History([one, two]))) == 1
    assert without((0, 10), [(1, 2), (1.5, 3), (9, 12)]) == [(0, 1), (3, 9)]
    assert len(stuck(History([one], [Wait("b", 2, 9, "granted")]), 5)) == 1
    assert stuck(History([one], [Wait("b", 2, 9, "granted")], stops=[("b", 4, 8)]), 5) == []
    two_waits = History([one], [Wait("b", 2, 9, "granted"), Wait("c", 2, 4.5, "died")], killed={"c": 4.5})
    assert len(stuck(two_waits, 5)) == 1
    assert stuck(two_waits, 5, places=True) == [], "it is told from when the other died"
    assert len(stuck(two_waits, 4, places=True)) == 1
    assert len(stuck(History([one], two_waits.waits[:1], killed={"c": 4.5}), 5, places=True)) == 1, "c did not wait"
    assert len(untold(History([one]), (1.2, 1.3), 0.5)) == 1
    assert untold(History([one]), (0.9, 1.3), 0.5) == [], "it may have been granted after the loss"
    waits = [Wait("b", 0, 9, "granted")]
    twice = [Hold("a", 3, 4, 5), Hold("a", 6, 7, 8)]
    assert starved(History(twice, waits), 1) == [], "it may have connected meanwhile"
    assert len(starved(History(twice, [Wait("b", 0, 0, "granted"), *waits]), 1)) == 1
    soon = [Hold("a", 0.5, 4, 5), *twice[1:]]
    assert starved(History(soon, [Wait("b", 0, 0, "granted"), *waits]), 1) == [], "it may have been sent before"
