"""Wall clocks that are set while locks are held: the server's, which matters to Redis alone, and a client's.

etcd is not among the servers: a Go program asks the kernel for the time itself, so nobody can tell it another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import HOUR, WallClock
from colours import COLOURS, Face
from servers import EtcdServer, MemcachedServer, RedisServer, wait_until

import atomiclock
from atomiclock import LockLost, LockManager, LockTimeout

KEY = "atomiclock:x"
TTL = 3
SLACK = 1.5
SOURCE = str(Path(atomiclock.__file__).parents[1])


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def redis_by_clock(tmp_path: Path, clock: WallClock) -> Iterator[RedisServer]:
    """A Redis that keeps its data and goes by `clock`."""
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    server.environment = clock.environment
    yield server.start()
    server.stop()


def step(server: RedisServer, clock: WallClock, how: str, seconds: int) -> None:
    """Set the server's clock while it runs, or while it is down."""
    if how == "restarted":
        server.kill()
    clock.set(seconds)
    if how == "restarted":
        server.start()
    assert abs(int(server.command("TIME").split()[0]) - time.time() - seconds) < 60, "it goes by that clock"


@pytest.mark.parametrize("how", ["running", "restarted"])
def test_a_redis_whose_clock_steps_forward_ends_locks_and_the_holder_is_told_and_harms_nobody(
    face: Face, redis_by_clock: RedisServer, clock: WallClock, how: str
) -> None:
    locks, others = (face.manager(redis_by_clock.url) for _ in range(2))
    lease = locks.acquire("x", ttl=TTL)
    begun = time.monotonic()
    step(redis_by_clock, clock, how, HOUR)
    second = others.acquire("x", timeout=5)
    took = time.monotonic() - begun
    wait_until(lambda: lease.lost, TTL / 3 + SLACK, "told within one renewal interval")
    with pytest.raises(LockLost):
        lease.release()
    assert redis_by_clock.command("GET", KEY) == second.token, "neither renewal nor release touched the next holder"
    assert second.fence > lease.fence
    second.release()
    assert took < TTL, "that is early: two leases at once, as the docs say"


@pytest.mark.parametrize("how", ["running", "restarted"])
def test_a_redis_whose_clock_steps_back_keeps_locks_and_a_renewal_mends_their_ttl(
    face: Face, redis_by_clock: RedisServer, clock: WallClock, how: str
) -> None:
    locks, others = (face.manager(redis_by_clock.url) for _ in range(2))
    lease = locks.acquire("x", ttl=TTL)
    dead = locks.acquire("dead", ttl=1, renew=False)
    step(redis_by_clock, clock, how, -HOUR)
    assert others.try_acquire("x") is None
    wait_until(lambda: 0 < int(redis_by_clock.command("PTTL", KEY)) <= TTL * 1000, TTL / 3 + SLACK, "renewed")
    lease.check()
    wait_until(lambda: dead.lost, 2)
    begun = time.monotonic()
    with pytest.raises(LockTimeout):
        others.acquire("dead", timeout=1)
    assert time.monotonic() - begun < 1 + SLACK
    assert int(redis_by_clock.command("PTTL", "atomiclock:dead")) > (HOUR - 60) * 1000, "an hour late, as the docs say"
    lease.release()
    later = others.acquire("x", timeout=5)
    assert later.fence < lease.fence, "fences go back with the clock, as the docs say"
    later.release()


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_who_waits_at_a_redis_whose_clock_steps_is_served_when_the_lock_is_free(
    face: Face, redis_by_clock: RedisServer, clock: WallClock, seconds: int
) -> None:
    locks, others = (face.manager(redis_by_clock.url) for _ in range(2))
    lease = locks.acquire("x", ttl=30)
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(others.acquire("x", timeout=20)))
    waiter.start()
    wait_until(lambda: "blocked_clients:1" in redis_by_clock.command("INFO", "clients"), 10, "it waits")
    step(redis_by_clock, clock, "running", seconds)
    if seconds < 0:
        time.sleep(0.3)
        assert not got
        lease.release()
    waiter.join(5)
    assert got, "served at once, by the release or by the early end"
    got[0].release()


def test_a_memcached_whose_clock_steps_notices_nothing(tmp_path: Path, clock: WallClock) -> None:
    server = MemcachedServer(tmp_path)
    server.environment = clock.environment
    try:
        server.start().wait_until_old_enough()
        with LockManager(server.url) as locks, LockManager(server.url) as others:
            lease = locks.acquire("x", ttl=TTL)
            for seconds in (HOUR, -HOUR):
                locks.acquire("short", ttl=1, renew=False)
                begun = time.monotonic()
                clock.set(seconds)
                taken = others.acquire("short", timeout=10)
                assert 0.9 < time.monotonic() - begun < 1 + 3 + SLACK, "in its time"
                taken.release()
                time.sleep(max(0.0, begun + TTL - time.monotonic()))  # it is renewed meanwhile
                lease.check()
                assert others.try_acquire("x") is None
            lease.release()
            assert others.acquire("x", timeout=5).fence > lease.fence
    finally:
        server.stop()


CLIENT = """
import json, select, sys, threading, time
time.sleep = lambda seconds: select.select([], [], [], seconds)  # libfaketime breaks the call that 3.11 sleeps with
from atomiclock import LockTimeout
from atomiclock.testing._facade import open_locks
colour, url, ttl = sys.argv[1], sys.argv[2], float(sys.argv[3])
locks = open_locks(colour, url)

def wait(said):
    said["lease"] = locks.acquire("awaited", timeout=60)
    said["at"] = time.monotonic()

def give_up(said):
    begun = time.monotonic()
    try:
        locks.acquire("taken", timeout=ttl)
    except LockTimeout:
        said["waited"] = time.monotonic() - begun

held = locks.acquire("held", ttl=2 * ttl)  # which is over before both steps are
patient, impatient = {}, []
waiter = threading.Thread(target=wait, args=(patient,))
waiter.start()
while sys.stdin.readline() == "wait\\n":
    impatient.append({})
    other = threading.Thread(target=give_up, args=(impatient[-1],))
    other.start()
    time.sleep(0.2)
    print(time.time(), flush=True)
    sys.stdin.readline()  # the clock has stepped
    time.sleep(1.2 * ttl)
    other.join(30)
    held.check()
    print(time.time(), flush=True)
waiter.join(30)
held.check()
held.release()
patient.pop("lease").release()
print(json.dumps([patient, impatient]), flush=True)
"""


class Client:
    """A process that waits, holds and renews, and goes by `clock`."""

    def __init__(self, colour: str, url: str, clock: WallClock) -> None:
        self.url = url
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CLIENT, colour, url, "2"],
            env={**os.environ, **clock.environment, "PYTHONPATH": SOURCE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.url}: {self.process.communicate()[1]}"
        return line

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def urls(
    tmp_path: Path, redis_server: RedisServer, memcached_server: MemcachedServer, etcd_server: EtcdServer
) -> list[str]:
    return [redis_server.url, memcached_server.url, etcd_server.url, f"sqlite:///{tmp_path}/locks.db"]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_client_whose_clock_steps_while_it_waits_holds_and_renews_notices_nothing(
    urls: list[str], clock: WallClock, colour: str
) -> None:
    witnesses = [LockManager(url) for url in urls]
    mine = [[locks.acquire(name, ttl=30) for name in ("awaited", "taken")] for locks in witnesses]
    clients = [Client(colour, url, clock) for url in urls]
    try:
        for seconds, before in ((HOUR, 0), (-HOUR, HOUR)):
            all_say_the_time(clients, "wait", before)
            clock.set(seconds)
            all_say_the_time(clients, "go on", seconds)  # and the lease that it renews is longer held than its ttl
        for locks, leases in zip(witnesses, mine, strict=True):
            assert locks.try_acquire("held") is None
            leases[0].release()
        freed = time.monotonic()
        for client in clients:
            client.tell("end")
        for client in clients:
            check(client, freed)
    finally:
        for client in clients:
            client.end()
        for locks, leases in zip(witnesses, mine, strict=True):
            leases[1].release()
            locks.close()


def all_say_the_time(clients: list[Client], line: str, seconds: int) -> None:
    """Each does what `line` tells it, and then by its clock it is so many `seconds` later than by ours."""
    for client in clients:
        client.tell(line)
    for client in clients:
        assert abs(float(client.line()) - time.time() - seconds) < 60


def check(client: Client, freed: float) -> None:
    patient, impatient = json.loads(client.line())
    assert patient["at"] < freed + 2 + SLACK, f"{client.url}: it was served"
    for one in impatient:
        assert 1.9 < one["waited"] < 2 + SLACK, f"{client.url}: its timeout was no shorter and no longer"
    assert client.process.wait(10) == 0, client.process.communicate()[1]
