"""The public API as an application uses it. Never run: mypy --strict and pyright check it (`nox -s typing`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import redis
import redis.asyncio
from typing_extensions import assert_type

from atomiclock import (
    AsyncLease,
    AsyncLock,
    AsyncLockManager,
    BackendRefused,
    BackendUnavailable,
    ConfigurationError,
    Event,
    Holder,
    Lease,
    Lock,
    LockError,
    LockLost,
    LockManager,
    LockTimeout,
    NotHeld,
    StaleFence,
    Traits,
    acquire_lock,
    configure,
    log_event,
    observe,
    try_lock,
)
from atomiclock.celery import current_lease, exclusive
from atomiclock.fencing import async_fenced_set, fence_predicate, fenced_set, fenced_update


def told(lease: Lease) -> None: ...


def observers() -> None:
    stop = observe(log_event)
    assert_type(stop(), None)
    observe(lambda event: event.waited)

    def heard(event: Event) -> None:
        assert_type(event.held, float | None)
        assert_type(event.backend, str)

    observe(heard)


def with_a_lease() -> None:
    with acquire_lock("invoice:42", "redis://localhost:6379/0", ttl=30, timeout=5) as lease:
        assert_type(lease, Lease)
        assert_type(lease.name, str)
        assert_type(lease.token, str)
        assert_type(lease.fence, "int | None")
        assert_type(lease.ttl, float)
        assert_type(lease.owner, str)
        assert_type(lease.remaining, float)
        assert_type(lease.lost, bool)
        assert_type(lease.lost_reason, "str | None")
        assert_type(lease.check(), None)
        assert_type(lease.extend(), None)
        assert_type(lease.extend(ttl=10), None)
        assert_type(lease.release(), None)
    with acquire_lock(
        "all", None, ttl=1.5, timeout=None, renew=False, max_hold=60, namespace="", owner="me", on_lost=told
    ):
        pass


def with_or_without() -> None:
    with try_lock("feed", ttl=30, renew=True, max_hold=None, namespace="shop", owner=None, on_lost=None) as lease:
        assert_type(lease, "Lease | None")
        if lease is not None:
            assert_type(lease, Lease)


async def in_async_code() -> None:
    async with acquire_lock("invoice:42", "sqlite://", on_lost="cancel") as lease:
        assert_type(lease, AsyncLease)
        assert_type(lease.fence, "int | None")
        assert_type(await lease.extend(5), None)
        assert_type(await lease.release(), None)
    async with try_lock("feed") as maybe:
        assert_type(maybe, "AsyncLease | None")


@acquire_lock("nightly-report", timeout=0)
def nightly_report(day: str, *, copies: int = 1) -> list[str]:
    return [day] * copies


@acquire_lock("nightly-report", timeout=0)
async def nightly_report_async(day: str) -> list[str]:
    return [day]


assert_type(nightly_report("monday", copies=2), "list[str]")


async def decorated() -> None:
    assert_type(await nightly_report_async("monday"), "list[str]")


def managers(client: redis.Redis) -> None:
    with LockManager("sqlite:///locks.db", ttl=30, namespace="shop") as locks:
        assert_type(locks, LockManager)
        lease = locks.acquire("invoice:42", timeout=5)
        assert_type(lease, Lease)
        with lease, locks.acquire("invoice:43") as other:
            assert_type(other, Lease)
        assert_type(locks.try_acquire("invoice:42"), "Lease | None")
        lock: Lock = locks.lock("invoice:42", ttl=10)
        assert_type(lock.acquire(), bool)
        assert_type(lock.acquire(True, 1.5), bool)
        assert_type(lock.acquire(blocking=False), bool)
        assert_type(lock.locked(), bool)
        assert_type(lock.name, str)
        assert_type(lock.lease, "Lease | None")
        assert_type(lock.release(), None)
        with lock as held:
            assert_type(held, Lease)
        holder = locks.holder("invoice:42")
        if holder is not None:
            assert_type(holder, Holder)
            assert_type(holder.owner, "str | None")
            assert_type(holder.token, str)
            assert_type(holder.fence, "int | None")
            assert_type(holder.remaining, "float | None")
    LockManager(client).close()
    LockManager(client=client).close()


async def async_managers(client: redis.asyncio.Redis) -> None:
    async with AsyncLockManager("redis://localhost", ttl=30) as locks:
        assert_type(locks, AsyncLockManager)
        assert_type(await locks.acquire("invoice:42", timeout=5), AsyncLease)
        async with locks.acquire("invoice:42", timeout=5) as lease:
            assert_type(lease, AsyncLease)
        assert_type(await locks.try_acquire("invoice:42"), "AsyncLease | None")
        async with locks.try_acquire("invoice:42") as maybe:
            assert_type(maybe, "AsyncLease | None")
        lock: AsyncLock = locks.lock("invoice:42", ttl=10)
        assert_type(await lock.acquire(), bool)
        assert_type(await lock.acquire(True, 1.5), bool)
        assert_type(lock.locked(), bool)
        assert_type(lock.lease, "AsyncLease | None")
        assert_type(await lock.release(), None)
        async with lock as held:
            assert_type(held, AsyncLease)
        assert_type(await locks.holder("invoice:42"), "Holder | None")
    await AsyncLockManager(client).aclose()
    await AsyncLockManager(client=client).aclose()


def takes_what_a_lock_can_do(guard: Lock) -> None:
    """A lock of ours goes where one of these is asked for, and they say the same."""
    guard.acquire()
    guard.release()


takes_what_a_lock_can_do(LockManager("memory://").lock("a"))


async def tasks_may_acquire_side_by_side(locks: AsyncLockManager) -> None:
    first, second = await asyncio.gather(locks.acquire("a"), locks.acquire("b"))
    assert_type(first, AsyncLease)
    assert_type(second, AsyncLease)
    work: Coroutine[Any, Any, AsyncLease] = locks.acquire("c")
    assert_type(await work, AsyncLease)


def errors() -> None:
    try:
        configure(url="redis://localhost", ttl=30, timeout=None, renew=True, max_hold=None, namespace=None, owner=None)
    except LockTimeout as error:
        assert_type(error.waited, float)
        assert_type(error.owner, "str | None")
        as_timeout: TimeoutError = error
        print(as_timeout)
    except LockLost as error:
        assert_type(error.reason, str)
    except NotHeld as error:
        as_runtime: RuntimeError = error
        print(as_runtime)
    except BackendRefused as error:
        print(error)
    except BackendUnavailable as error:
        as_connection: ConnectionError = error
        print(as_connection)
    except ConfigurationError as error:
        as_value: ValueError = error
        print(as_value)
    except LockError as error:
        assert_type(error.name, "str | None")


def traits(found: Traits) -> None:
    print(found.scope, found.fence, found.waits, found.survives_restart, found.ttl_step, found.longest_ttl, found.loses)


@exclusive("{feed_url}", ttl=60, on_conflict="skip")
def import_feed(feed_url: str) -> str:
    return feed_url


assert_type(import_feed("https://example.org/rss"), str)


def delayed(locks: LockManager) -> None:
    configure(lock_delay=5)
    with acquire_lock("x", lock_delay=1.5) as lease, locks.acquire("y", lock_delay=2) as other:
        assert_type(fenced_update(object(), "t", {"a": 1}, {"id": 1}, fence=lease), bool)
        fence_predicate(other.fence or 0, paramstyle="pyformat")
        fenced_set(object(), "key", "value", fence=other, ttl=5)
    running = current_lease()
    if running is not None:
        assert_type(running.fence, "int | None")


async def delayed_async(locks: AsyncLockManager) -> None:
    async with locks.acquire("x", lock_delay=1) as lease:
        await async_fenced_set(object(), b"key", b"value", fence=lease)


def refused(error: StaleFence) -> None:
    assert_type(error.seen, "int | None")


def same_calls(mine: threading.Lock, ours: Lock) -> None:
    for lock in (mine, ours):
        lock.acquire(blocking=True, timeout=1)
        lock.release()
        lock.locked()


def mistakes_that_a_type_checker_sees(locks: LockManager) -> None:
    """Each `type: ignore` is needed: mypy complains about one that is not."""
    with try_lock("feed") as lease:
        lease.check()  # type: ignore[union-attr]  # forgot `if lease is None`
    with locks.try_acquire("feed") as other:  # type: ignore[union-attr]  # None cannot be entered
        print(other)
    acquire_lock("feed").release()  # type: ignore[attr-defined]  # entered by nobody
    acquire_lock("feed", 5)  # type: ignore[arg-type]  # a timeout where the URL belongs
    acquire_lock(42)  # type: ignore[arg-type]
    locks.acquire("feed", 5)  # type: ignore[call-arg]


async def mistakes_in_async_code(locks: LockManager, async_locks: AsyncLockManager) -> None:
    async with locks:  # type: ignore[attr-defined]
        pass
    async with locks.acquire("feed"):  # type: ignore[attr-defined]
        pass
    with async_locks.acquire("feed"):  # type: ignore[attr-defined]
        pass
    await acquire_lock("feed")  # type: ignore[misc]
    async_locks.acquire("feed").fence  # type: ignore[attr-defined]  # noqa: B018  # forgot await
