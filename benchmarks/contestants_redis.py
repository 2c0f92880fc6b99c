"""Redis: the raw client, and the locks of other libraries on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from contest import PATIENCE, RAW, Lock, Place, contestant, plain

COMPARE_AND_DELETE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
MANY = 2000
"""Connections a pool may have: the driver's own bound of 100 would end the runs with many waiters."""


def client(place: Place, **options: Any) -> Any:
    import redis

    return redis.Redis(port=place.port("redis"), max_connections=MANY, **options)


def async_client(place: Place) -> Any:
    import redis.asyncio

    return redis.asyncio.Redis(port=place.port("redis"), max_connections=MANY)


def _raw(db: Any, ttl: int) -> Callable[[str], Lock]:
    delete = db.register_script(COMPARE_AND_DELETE)

    def lock(name: str) -> Lock:
        tokens: list[str] = []

        def acquire() -> None:
            tokens.append(uuid.uuid4().hex)
            if not db.set(name, tokens[-1], nx=True, px=ttl * 1000):
                raise RuntimeError("the raw client does not wait")

        return Lock(acquire, lambda: delete(keys=[name], args=[tokens.pop()]))

    return lock


@contestant("raw redis-py", "redis", RAW, needs=("redis",), waits=False)
def raw(place: Place) -> Callable[[str], Lock]:
    return _raw(client(place), place.ttl)


@contestant("raw redis-py, one connection", "redis", RAW, needs=("redis",), waits=False, scenarios=("S1",))
def raw_held(place: Place) -> Callable[[str], Lock]:
    return _raw(client(place, single_connection_client=True), place.ttl)


@contestant("raw redis.asyncio", "redis", RAW, is_async=True, needs=("redis",), waits=False)
async def raw_async(place: Place) -> Callable[[str], Lock]:
    db = async_client(place)
    delete = db.register_script(COMPARE_AND_DELETE)

    def lock(name: str) -> Lock:
        tokens: list[str] = []

        async def acquire() -> None:
            tokens.append(uuid.uuid4().hex)
            if not await db.set(name, tokens[-1], nx=True, px=place.ttl * 1000):
                raise RuntimeError("the raw client does not wait")

        async def release() -> None:
            await delete(keys=[name], args=[tokens.pop()])

        return Lock(acquire, release)

    return lock


@contestant("redis-py Lock", "redis", needs=("redis",), many=True)
def redis_py(place: Place) -> Callable[[str], Lock]:
    db = client(place)

    def lock(name: str) -> Lock:
        return plain(db.lock(name, timeout=place.ttl))

    return lock


@contestant("redis-py asyncio Lock", "redis", is_async=True, needs=("redis",), many=True)
async def redis_py_async(place: Place) -> Callable[[str], Lock]:
    db = async_client(place)

    def lock(name: str) -> Lock:
        one = db.lock(name, timeout=place.ttl)

        async def keep() -> Any:
            await one.acquire()
            return one

        return Lock(one.acquire, one.release, keep)

    return lock


@contestant("python-redis-lock", "redis", needs=("python-redis-lock", "redis"))
def python_redis_lock(place: Place) -> Callable[[str], Lock]:
    import redis_lock

    db = client(place)

    def lock(name: str) -> Lock:
        one = redis_lock.Lock(db, name, expire=place.ttl)
        return Lock(one.acquire, one.release)

    return lock


@contestant(
    "python-redis-lock, auto_renewal", "redis", needs=("python-redis-lock", "redis"), many=True, scenarios=("S4, held",)
)
def python_redis_lock_renewed(place: Place) -> Callable[[str], Lock]:
    import redis_lock

    db = client(place)

    def lock(name: str) -> Lock:
        return plain(redis_lock.Lock(db, name, expire=place.ttl, auto_renewal=True))

    return lock


@contestant("sherlock", "redis", needs=("sherlock", "redis"))
def sherlock(place: Place) -> Callable[[str], Lock]:
    from sherlock import RedisLock

    db = client(place)

    def lock(name: str) -> Lock:
        one = RedisLock(name, client=db, expire=place.ttl, timeout=PATIENCE)
        return Lock(one.acquire, one.release)

    return lock


@contestant("tooz", "redis", needs=("tooz", "redis"))
def tooz(place: Place) -> Callable[[str], Lock]:
    from tooz import coordination

    url = f"redis://127.0.0.1:{place.port('redis')}/0?lock_timeout={place.ttl}"
    coordinator = coordination.get_coordinator(url, uuid.uuid4().bytes)
    coordinator.start()

    def lock(name: str) -> Lock:
        one = coordinator.get_lock(name.encode())
        return Lock(one.acquire, one.release)

    return lock


@contestant("pottery", "redis", slow=True, needs=("pottery", "redis"), without=(("S4, names", "left out for time"),))
def pottery(place: Place) -> Callable[[str], Lock]:
    from pottery import Redlock

    masters = {client(place)}

    def lock(name: str) -> Lock:
        one = Redlock(key=name, masters=masters, auto_release_time=place.ttl)
        return Lock(one.acquire, one.release)

    return lock


PORTALOCKER = (
    ("S3, 100 threads", "a thread and a subscription for each waiter, who all ask each other: no end within 25 s"),
    ("S4, names", "about nine cycles a second"),
)


@contestant("portalocker", "redis", slow=True, needs=("portalocker", "redis"), without=PORTALOCKER)
def portalocker(place: Place) -> Callable[[str], Lock]:
    from portalocker import RedisLock

    db = client(place)

    def lock(name: str) -> Lock:
        made: list[Any] = []

        def acquire() -> None:
            made.append(RedisLock(name, connection=db, timeout=PATIENCE))
            made[-1].acquire()

        return Lock(acquire, lambda: made.pop().release())

    return lock
