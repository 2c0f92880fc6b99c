"""memcached: the raw clients, other libraries' locks, and the Celery Cookbook's recipe."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from contest import OURS, PATIENCE, RAW, Lock, Place, contestant


@contestant("raw pymemcache", "memcached", RAW, needs=("pymemcache",), waits=False)
def raw(place: Place) -> Callable[[str], Lock]:
    from pymemcache import Client

    db = Client(("127.0.0.1", place.port("memcached")), no_delay=True)

    def lock(name: str) -> Lock:
        def acquire() -> None:
            if not db.add(name, uuid.uuid4().hex, expire=place.ttl, noreply=False):
                raise RuntimeError("the raw client does not wait")

        return Lock(acquire, lambda: db.delete(name, noreply=False))

    return lock


@contestant("raw aiomcache", "memcached", RAW, is_async=True, needs=("aiomcache",), waits=False)
async def raw_async(place: Place) -> Callable[[str], Lock]:
    import aiomcache

    db = aiomcache.Client("127.0.0.1", place.port("memcached"))

    def lock(name: str) -> Lock:
        key = name.encode()

        async def acquire() -> None:
            if not await db.add(key, uuid.uuid4().hex.encode(), exptime=place.ttl):
                raise RuntimeError("the raw client does not wait")

        async def release() -> None:
            await db.delete(key)

        return Lock(acquire, release)

    return lock


@contestant("sherlock", "memcached", needs=("sherlock", "pylibmc"))
def sherlock(place: Place) -> Callable[[str], Lock]:
    try:
        import pylibmc
    except ImportError as error:
        raise RuntimeError(
            "its client pylibmc is not installed; there are wheels for Python 3.10 and 3.11 only"
        ) from error
    from sherlock import MCLock

    def lock(name: str) -> Lock:  # a pylibmc client is not for several threads
        db = pylibmc.Client([f"127.0.0.1:{place.port('memcached')}"], binary=True, behaviors={"tcp_nodelay": True})
        one = MCLock(name, client=db, expire=place.ttl, timeout=PATIENCE)
        return Lock(one.acquire, one.release)

    return lock


@contestant("tooz", "memcached", slow=True, needs=("tooz", "pymemcache"))
def tooz(place: Place) -> Callable[[str], Lock]:
    from tooz import coordination

    url = f"memcached://127.0.0.1:{place.port('memcached')}?lock_timeout={place.ttl}&max_pool_size=400"
    coordinator = coordination.get_coordinator(url, uuid.uuid4().hex.encode())
    coordinator.start()

    def lock(name: str) -> Lock:
        one = coordinator.get_lock(name.encode())
        return Lock(one.acquire, one.release)

    return lock


def _django(place: Place) -> None:
    import django
    from django.conf import settings

    cache = {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": f"127.0.0.1:{place.port('memcached')}",
    }
    settings.configure(CACHES={"default": cache})
    django.setup()


@contestant("the cookbook's recipe", "memcached", needs=("django", "pymemcache"), waits=False)
def cookbook(place: Place) -> Callable[[str], Lock]:
    _django(place)
    from django.core.cache import cache

    expire = 60 * 10

    @contextmanager
    def memcache_lock(lock_id: str, oid: str) -> Any:
        timeout_at = time.monotonic() + expire - 3
        status = cache.add(lock_id, oid, expire)
        try:
            yield status
        finally:
            if time.monotonic() < timeout_at and status:
                cache.delete(lock_id)

    def lock(name: str) -> Lock:
        entered: list[Any] = []

        def acquire() -> None:
            entered.append(memcache_lock(name, "app"))
            if not entered[-1].__enter__():
                raise RuntimeError("the recipe does not wait")

        return Lock(acquire, lambda: entered.pop().__exit__(None, None, None))

    return lock


@contestant("atomiclock, django://", "memcached", OURS, needs=("atomiclock", "django"), scenarios=("S1",))
def ours_behind_django(place: Place) -> Callable[[str], Lock]:
    _django(place)
    from atomiclock import LockManager

    manager = LockManager("django://default", ttl=place.ttl)

    def lock(name: str) -> Lock:
        held: list[Any] = []
        return Lock(lambda: held.append(manager.acquire(name)), lambda: held.pop().release())

    return lock
