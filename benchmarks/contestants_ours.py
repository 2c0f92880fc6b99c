"""Ours, on every store, by the public face: `LockManager` and `AsyncLockManager`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contest import OURS, Contestant, Lock, Place, enter

SENDS = ("eval", "evalsha", "blpop", "publish", "subscribe")
"""On Redis all but the waiting is scripts of ours."""
NAME = "atomiclock"
STORE_ONLY = "atomiclock, handover=False"
"""Every grant comes from the store; see `handover` of `LockManager`. Without threads it makes no difference."""

URLS: dict[str, Callable[[Place], str]] = {
    "memory": lambda _: "memory://bench",
    "file": lambda place: f"sqlite:///{place.folder}/ours.db",
    "redis": lambda place: f"redis://127.0.0.1:{place.port('redis')}/0",
    "memcached": lambda place: f"memcached://127.0.0.1:{place.port('memcached')}",
    "etcd": lambda place: f"etcd://127.0.0.1:{place.port('etcd')}",
}


def _opener(store: str, **options: Any) -> Callable[[Place], Callable[[str], Lock]]:
    def open_manager(place: Place) -> Callable[[str], Lock]:
        from atomiclock import LockManager

        manager = LockManager(URLS[store](place), ttl=place.ttl, **options)

        def lock(name: str) -> Lock:
            held: list[Any] = []
            acquire, release = lambda: held.append(manager.acquire(name)), lambda: held.pop().release()
            return Lock(acquire, release, lambda: manager.acquire(name))

        return lock

    return open_manager


def _async_opener(store: str, **options: Any) -> Callable[[Place], Any]:
    async def open_manager(place: Place) -> Callable[[str], Lock]:
        from atomiclock import AsyncLockManager

        manager = AsyncLockManager(URLS[store](place), ttl=place.ttl, **options)

        def lock(name: str) -> Lock:
            held: list[Any] = []

            async def acquire() -> None:
                held.append(await manager.acquire(name))

            async def release() -> None:
                await held.pop().release()

            return Lock(acquire, release, lambda: manager.acquire(name))

        return lock

    return open_manager


DRIVERS = {"redis": ("redis",), "memcached": ("pymemcache",), "etcd": ("hpack",)}

for _store in URLS:
    _needs = ("atomiclock", *DRIVERS.get(_store, ()))
    for _is_async, _open in ((False, _opener), (True, _async_opener)):
        enter(Contestant(NAME, _store, OURS, _open(_store), _is_async, _needs, sends=SENDS, many=True))
        if _store in ("redis", "memcached", "etcd", "file"):
            _only = Contestant(
                STORE_ONLY,
                _store,
                OURS,
                _open(_store, handover=False),
                _is_async,
                _needs,
                sends=SENDS,
                scenarios=("S3, 10 threads", "S3, 100 threads"),
            )
            enter(_only)
