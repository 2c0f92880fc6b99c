"""What a stranger writes over a lock by hand: its holder is told, and what was written is left alone.

On etcd a key keeps its place whoever puts it again, so there the lock is kept, and its lease is put right.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from colours import Face
from servers import EtcdServer, MemcachedServer, RedisServer, wait_until

from atomiclock import LockLost, LockManager, LockTimeout
from atomiclock.backends import Remove, clock

KEY = "atomiclock:x"
SLACK = 1.5


def overwrite_redis(server: RedisServer, _: Path, *words: str) -> Callable[[], Any]:
    server.command("SET", KEY, "foreign", *words)
    return lambda: server.command("GET", KEY)


def overwrite_memcached(server: MemcachedServer, _: Path, seconds: int) -> Callable[[], Any]:
    server.command(f"set {KEY} 0 {seconds} 7\r\nforeign")
    return lambda: server.command(f"get {KEY}", "END\r\n").split("\r\n")[1]


def overwrite_sqlite(_: None, folder: Path) -> Callable[[], Any]:
    def query(*statement: Any) -> Any:
        with closing(sqlite3.connect(folder / "locks.db", timeout=10)) as db, db:
            return db.execute(*statement).fetchall()

    query("UPDATE locks SET token = ?, expires = expires + 60", ("foreign",))
    return lambda: query("SELECT token FROM locks")[0][0]


def replace_etcd(server: EtcdServer, _: Path) -> Callable[[], Any]:
    (key,) = server.keys()
    server.ctl("del", key)
    server.ctl("put", key, "foreign")
    return lambda: server.ctl("get", key, "--print-value-only")


OVERWRITES: dict[str, tuple[Callable[..., Callable[[], Any]], tuple[Any, ...]]] = {
    "redis, for ever": (overwrite_redis, ()), "redis, for a while": (overwrite_redis, ("PX", "60000")),
    "memcached, for ever": (overwrite_memcached, (0,)), "memcached, for a while": (overwrite_memcached, (60,)),
    "sqlite": (overwrite_sqlite, ()), "etcd": (replace_etcd, ()),
}  # fmt: skip


class Scene:
    """A lock, and hands that overwrite it."""

    def __init__(self, how: str, folder: Path, request: pytest.FixtureRequest) -> None:
        backend = how.partition(",")[0]
        self.server = None if backend == "sqlite" else request.getfixturevalue(f"{backend}_server")
        self.url = self.server.url if self.server else f"sqlite:///{folder}/locks.db"
        self._overwrite, self._words = OVERWRITES[how]
        self._folder = folder

    def overwrite(self) -> Callable[[], Any]:
        """What it returns reads what is there."""
        return self._overwrite(self.server, self._folder, *self._words)


@pytest.fixture(params=OVERWRITES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(request.param, tmp_path, request)


def test_a_lock_that_a_stranger_overwrites_is_told_and_left_alone(face: Face, scene: Scene) -> None:
    lease = face.manager(scene.url).acquire("x", ttl=3, timeout=10)
    seen = scene.overwrite()
    wait_until(lambda: lease.lost, 3 / 3 + SLACK, "told within one renewal interval")
    with pytest.raises(LockLost):
        lease.release()
    time.sleep(0.3)
    assert seen() == "foreign", "neither the renewal nor the release touched it"


@pytest.mark.parametrize("first", ["extend", "release"])
def test_a_call_that_meets_what_a_stranger_wrote_says_so_and_leaves_it_alone(
    face: Face, scene: Scene, first: str
) -> None:
    lease = face.manager(scene.url).acquire("x", ttl=30, timeout=10, renew=False)
    seen = scene.overwrite()
    for call in (getattr(lease, first), lease.extend, lease.release):
        with pytest.raises(LockLost):
            call()
    time.sleep(0.3)
    assert seen() == "foreign"


@pytest.mark.parametrize("how", [how for how in OVERWRITES if how != "etcd"])
def test_what_a_stranger_wrote_keeps_waiters_out_and_they_leave_it_alone(
    face: Face, how: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    scene, outcomes = Scene(how, tmp_path, request), []
    lease = face.manager(scene.url).acquire("x", ttl=9, timeout=10)
    others = face.manager(scene.url)

    def wait() -> None:
        try:
            outcomes.append(others.acquire("x", timeout=1.5))
        except LockTimeout as error:
            outcomes.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)  # most likely it waits by now; if not, the same holds
    seen = scene.overwrite()
    waiter.join(15)
    assert [type(outcome) for outcome in outcomes] == [LockTimeout]
    with pytest.raises(LockLost):
        lease.release()
    time.sleep(0.3)
    assert seen() == "foreign"


def foreign_lease(server: EtcdServer, seconds: int) -> str:
    """A lease with something of its owner's on it."""
    lease = server.ctl("lease", "grant", str(seconds)).split()[1]
    server.ctl("put", "foreign/data", "x", "--lease", lease)
    return lease


def entry(server: EtcdServer, key: str) -> Any:
    """What is in the store of `key`."""
    return json.loads(server.ctl("get", key, "-w", "json"))["kvs"][0]


def lease_of(server: EtcdServer, key: str) -> str:
    """The lease that `key` is on, in hex; "0" if on none."""
    return f"{entry(server, key).get('lease', 0):x}"


def queue(server: EtcdServer) -> list[str]:
    """The keys of the lock, as they came."""
    said = server.ctl("get", KEY + "/", "--prefix", "--keys-only", "--sort-by", "CREATE")
    return [line for line in said.split("\n") if line]


def put_again(server: EtcdServer, key: str, seconds: int | None) -> str:
    """Put `key` on a foreign lease of so many seconds, or on none. Returns that lease."""
    if seconds is None:
        server.ctl("put", key, "foreign")
        return "0"
    lease = foreign_lease(server, seconds)
    server.ctl("put", key, "foreign", "--lease", lease)
    return lease


def has_foreign_data(server: EtcdServer, seconds: int | None) -> bool:
    return seconds is None or "foreign/data" in server.keys()  # noqa: SIM118  # no dict


@pytest.mark.parametrize("seconds", [None, 4, 300])
def test_a_key_of_etcd_that_a_stranger_put_again_is_ours_and_gets_a_lease_of_ours_back(
    face: Face, etcd_server: EtcdServer, seconds: int | None
) -> None:
    """On a shorter lease it would end while its holder believes in it, and on none it would outlive its holder."""
    lease = face.manager(etcd_server.url).acquire("x", ttl=6)
    (key,) = queue(etcd_server)
    foreign = put_again(etcd_server, key, seconds)
    wait_until(lambda: lease_of(etcd_server, key) != foreign, 6 / 3 + SLACK, "put right within one renewal interval")
    lease.check()
    granted = etcd_server.ctl("lease", "timetolive", lease_of(etcd_server, key), "-w", "json")
    assert json.loads(granted)["granted-ttl"] >= 6
    lease.release()
    wait_until(lambda: queue(etcd_server) == [], what="nothing of ours is left")
    assert has_foreign_data(etcd_server, seconds), "the lease of somebody else is not ours to end"


@pytest.mark.parametrize("seconds", [None, 4, 300])
@pytest.mark.parametrize("call", ["release", "extend"])
def test_a_call_puts_a_key_of_etcd_right_and_leaves_the_lease_of_a_stranger_alone(
    face: Face, etcd_server: EtcdServer, seconds: int | None, call: str
) -> None:
    locks = face.manager(etcd_server.url)
    lease = locks.acquire("x", ttl=30, renew=False)
    put_again(etcd_server, *queue(etcd_server), seconds)
    if call == "extend":
        lease.extend(60)
        assert lease.remaining > 50
        assert (locks.holder("x").remaining or 0) > 50
    lease.release()
    wait_until(lambda: queue(etcd_server) == [], what="nothing of ours is left")
    assert has_foreign_data(etcd_server, seconds)


@pytest.mark.parametrize("seconds", [None, 300])
def test_a_place_in_the_queue_of_etcd_that_a_stranger_put_again_is_kept(
    face: Face, etcd_server: EtcdServer, seconds: int | None
) -> None:
    lease = face.manager(etcd_server.url).acquire("x", ttl=30)
    others, got = face.manager(etcd_server.url), []
    waiter = threading.Thread(target=lambda: got.append(others.acquire("x", ttl=3, timeout=20)))
    waiter.start()
    wait_until(lambda: len(queue(etcd_server)) == 2, what="it waits")
    place = queue(etcd_server)[1]
    foreign, revision = put_again(etcd_server, place, seconds), entry(etcd_server, place)["create_revision"]
    lease.release()
    waiter.join(10)
    assert got[0].fence == revision
    wait_until(lambda: lease_of(etcd_server, place) != foreign, 3 / 3 + SLACK, "put right within one renewal interval")
    got[0].release()
    wait_until(lambda: queue(etcd_server) == [], what="nothing of ours is left")
    assert has_foreign_data(etcd_server, seconds)


def test_to_break_a_key_of_etcd_that_a_stranger_put_again_ends_no_lease_of_his(
    face: Face, etcd_server: EtcdServer
) -> None:
    """By its token alone, as `atomiclock break` does."""
    locks = face.manager(etcd_server.url)
    lease = locks.acquire("x", ttl=30, renew=False)
    put_again(etcd_server, *queue(etcd_server), 300)
    manager = LockManager(etcd_server.url)
    holder = locks.holder("x")
    assert manager._store.perform(Remove(KEY, holder.token, 0, clock() + 5)) is True
    manager.close()
    assert queue(etcd_server) == []
    assert has_foreign_data(etcd_server, 300)
    with pytest.raises(LockLost):
        lease.release()
