"""Small locks over the real Redis, each with one mistake that is made in the field: the checker must find it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import redis

from atomiclock import LockLost, LockTimeout

OWN = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease:
    """What a toy grants."""

    def __init__(self, lock: Sound, key: str, token: str, fence: int, until: float) -> None:
        self.lock, self.key, self.token, self.fence, self.until = lock, key, token, fence, until

    def __bool__(self) -> bool:
        return time.monotonic() < self.until

    def release(self) -> None:
        if not self.lock.free(self.key, self.token):
            raise LockLost("gone", name=self.key)


class Sound:
    """SET NX PX, compared delete, validity from before the request, a fence that nobody resets. The mistakes differ."""

    pause = 0.005

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = self.connected()

    def connected(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def acquire(self, name: str, ttl: float, timeout: float, renew: bool) -> Lease:
        token, end = os.urandom(16).hex(), time.monotonic() + timeout
        while True:
            sent = time.monotonic()
            if self.take(name, token, ttl):
                return Lease(self, name, token, self.fence(name), self.valid_until(sent, ttl))
            if time.monotonic() >= end:
                raise LockTimeout("busy", name=name, waited=timeout, owner=None)
            time.sleep(self.pause)

    def take(self, name: str, token: str, ttl: float) -> Any:
        return self.redis.set(name, token, nx=True, px=int(ttl * 1000))

    def fence(self, name: str) -> int:
        return int(self.redis.incr(f"{name}:fence"))

    def valid_until(self, sent: float, ttl: float) -> float:
        return sent + ttl * 0.98

    def free(self, name: str, token: str) -> Any:
        return self.redis.eval(OWN, 1, name, token)

    def close(self) -> None:
        self.redis.close()


class CheckThenSet(Sound):
    """Looks whether it is free, and takes it in a second step (celery/celery#87)."""

    def take(self, name: str, token: str, ttl: float) -> Any:
        return self.redis.get(name) is None and self.redis.set(name, token, px=int(ttl * 1000))


class BlindDelete(Sound):
    """Deletes the key, whoever has it by now (celery/celery#2926)."""

    def free(self, name: str, token: str) -> Any:
        return self.redis.delete(name)


class LateValidity(Sound):
    """Counts the lease from when the reply came (etcd-io/etcd#9921)."""

    def valid_until(self, sent: float, ttl: float) -> float:
        return time.monotonic() + ttl * 0.98


class FenceReset(Sound):
    """Its counter goes with the lock."""

    def fence(self, name: str) -> int:
        fence = super().fence(name)
        self.redis.pexpire(f"{name}:fence", 100)
        return fence


class NoExpiry(Sound):
    """Sets the ttl in a second step, which a dying process never reaches (redis/redis-py#554)."""

    def take(self, name: str, token: str, ttl: float) -> Any:
        taken = self.redis.set(name, token, nx=True)
        time.sleep(0.02 if taken else 0)
        return taken and self.redis.pexpire(name, int(ttl * 1000))


class Greedy(Sound):
    """Lets a waiter sleep for longer and longer, so that whoever comes just in time is first."""

    def acquire(self, name: str, ttl: float, timeout: float, renew: bool) -> Lease:
        self.pause = 0.001
        return super().acquire(name, ttl, timeout, renew)

    def take(self, name: str, token: str, ttl: float) -> Any:
        self.pause = min(2 * self.pause, 2.0)
        return super().take(name, token, ttl)


class LeavesTheLock(Sound):
    """Reports a grant whose reply was lost as a failure, and leaves the lock behind (redis-py, and most others)."""

    def take(self, name: str, token: str, ttl: float) -> Any:
        taken = super().take(name, token, ttl)
        if taken and os.urandom(1)[0] < 32:
            raise ConnectionResetError("the reply was lost")
        return taken


class LeavesConnections(Sound):
    """A connection for each attempt, that nobody closes."""

    def acquire(self, name: str, ttl: float, timeout: float, renew: bool) -> Lease:
        self.others = [*getattr(self, "others", ()), self.redis]
        self.redis = self.connected()
        return super().acquire(name, ttl, timeout, renew)


TOYS: dict[str, Callable[[str], Sound]] = {
    toy.__name__: toy
    for toy in (
        Sound, CheckThenSet, BlindDelete, LateValidity, FenceReset, NoExpiry, Greedy, LeavesTheLock, LeavesConnections,
    )
}  # fmt: skip
