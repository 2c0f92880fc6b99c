"""Lost leases: their holders know in time, and nobody else's lease suffers."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from colours import Face
from proxy import Fault, Proxy
from servers import RedisServer, wait_until

from atomiclock import LockLost

TTL = 2.0
KEY = "atomiclock:x"


def test_holder_knows_of_its_loss_before_the_server_lets_others_in(face: Face, proxy: Proxy, look: redis.Redis) -> None:
    told = threading.Event()
    locks = face.manager(proxy.url, on_lost=lambda lease: told.set())
    for _ in range(2):
        told.clear()
        lease = locks.acquire("x", ttl=TTL)
        proxy.script(Fault("extend", times=9**9, forward="no", reply="never"))
        noticed = believed_until(lease, look, told)
        assert noticed > 0
        with pytest.raises(LockLost):
            lease.check()
        proxy.clear()
        with pytest.raises(LockLost):
            lease.release()


def believed_until(lease: Any, look: redis.Redis, told: threading.Event) -> float:
    """Watches the holder and the server at once. Seconds that lay between the loss and the end at the server."""
    while True:
        held, told_before = bool(lease), told.is_set()
        left = look.pttl(KEY)  # asked after: if it is over now, it was not yet when `held` was read
        if left < 0:
            assert not held, "the holder believes, and another could have it"
            assert told_before or told.wait(0.3)
            return 1.0
        if not held:
            assert told.wait(left / 1000 + 0.2)
            return 1.0
        time.sleep(0.001)


def test_renewal_that_the_server_obeyed_unheard_is_taken_back(face: Face, proxy: Proxy, look: redis.Redis) -> None:
    locks = face.manager(proxy.url)
    lease = locks.acquire("x", ttl=TTL)
    proxy.script(Fault("extend", times=9**9, reply="never"))
    wait_until(lambda: lease.lost, TTL + 1)
    proxy.clear()
    wait_until(lambda: not look.exists(KEY), 0.75 * TTL, "free before the unheard renewal ends")


def test_frozen_server_does_not_cost_the_leases_of_another(
    face: Face, own_redis: RedisServer, redis_server: RedisServer
) -> None:
    healthy = face.manager(redis_server.url)
    frozen = face.manager(own_redis.url)
    doomed = [frozen.acquire(f"doomed {index}", ttl=2 * TTL) for index in range(5)]
    kept = [healthy.acquire(f"kept {index}", ttl=2 * TTL) for index in range(5)]
    with own_redis.frozen():
        end = time.monotonic() + 4 * TTL
        while time.monotonic() < end:
            for lease in kept:
                lease.check()
            time.sleep(0.01)
        assert all(lease.lost for lease in doomed)
    for lease in kept:
        lease.release()


def test_lease_with_a_long_ttl_does_not_put_off_the_renewal_of_a_short_one(
    face: Face, redis_server: RedisServer
) -> None:
    locks = face.manager(redis_server.url)
    short = locks.acquire("short", ttl=TTL)
    longer = [locks.acquire(f"long {ttl}", ttl=ttl) for ttl in (30, 60, 5)]
    end = time.monotonic() + 2 * TTL
    while time.monotonic() < end:
        short.check()
        time.sleep(0.02)
    for lease in [short, *longer]:
        lease.release()


def test_flush_is_told_within_one_renewal_interval(face: Face, redis_server: RedisServer, look: redis.Redis) -> None:
    told = threading.Event()
    lease = face.manager(redis_server.url).acquire("x", ttl=3, on_lost=lambda lease: told.set())
    look.flushall()
    assert told.wait(3 / 3 + 1.5)
    assert "the store no longer has it" in lease.lost_reason
    look.set(KEY, "next")
    with pytest.raises(LockLost):
        lease.release()
    assert look.get(KEY) == "next"


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_key_that_was_taken_by_hand_is_told_and_left_alone(
    face: Face, redis_server: RedisServer, look: redis.Redis, how: str
) -> None:
    lease = face.manager(redis_server.url).acquire("x", ttl=3)
    look.delete(KEY) if how == "deleted" else look.set(KEY, "other")
    wait_until(lambda: lease.lost, 3 / 3 + 1.5, "told within one renewal interval")
    assert look.get(KEY) == (None if how == "deleted" else "other")
    assert look.pttl(KEY) < 0


def test_server_killed_while_held_lets_others_in_and_tells_the_holder(face: Face, own_redis: RedisServer) -> None:
    locks, others = face.manager(own_redis.url), face.manager(own_redis.url)
    lease = locks.acquire("x", ttl=3)
    own_redis.restart()
    next_lease = others.acquire("x", timeout=5)
    assert next_lease.fence > lease.fence
    wait_until(lambda: lease.lost, 3 / 3 + 1.5)
    with pytest.raises(LockLost):
        lease.release()
    assert own_redis.command("GET", KEY) == next_lease.token
    next_lease.release()


def test_waiter_survives_a_restart_within_its_timeout(face: Face, own_redis: RedisServer) -> None:
    locks = face.manager(own_redis.url)
    locks.acquire("x", ttl=30, renew=False)
    restart = threading.Timer(0.3, own_redis.restart)
    restart.start()
    begun = time.monotonic()
    lease = face.manager(own_redis.url).acquire("x", timeout=10)
    assert time.monotonic() - begun < 3
    restart.join()
    lease.release()


def test_stale_connections_after_a_restart_cost_nobody_an_error(face: Face, own_redis: RedisServer) -> None:
    locks = face.manager(own_redis.url)
    leases = [locks.acquire(f"name {index}", renew=False) for index in range(3)]
    own_redis.restart()
    locks.acquire("x", timeout=0).release()
    assert locks.holder("name 0") is None
    own_redis.restart()
    with contextlib.suppress(LockLost):  # or a success: the request on the stale connection may have been obeyed
        leases[0].release()
    own_redis.restart()
    with pytest.raises(LockLost):
        leases[1].extend()


def test_release_after_a_restart_that_forgot_the_lock_is_not_called_a_success(
    face: Face, own_redis: RedisServer
) -> None:
    """The pooled connection ended with the server. Nothing is sent over it: it could not be told from a lost answer."""
    manager = face.manager(own_redis.url, ttl=20, renew=False)
    lease = manager.acquire("k")
    own_redis.restart()
    with pytest.raises(LockLost):
        lease.release()


def test_server_with_its_data_on_disk_keeps_the_lock_over_a_restart(face: Face, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always").start()
    try:
        locks = face.manager(server.url)
        lease = locks.acquire("x", ttl=30)
        server.restart()
        assert face.manager(server.url).try_acquire("x") is None
        lease.extend()
        lease.release()
    finally:
        server.stop()


def test_lease_whose_last_reference_is_dropped_is_not_renewed_for_ever(
    face: Face, redis_server: RedisServer, look: redis.Redis
) -> None:
    import gc

    face.manager(redis_server.url).acquire("x", ttl=0.6)
    gc.collect()
    wait_until(lambda: not look.exists(KEY), 0.6 + 0.5)
