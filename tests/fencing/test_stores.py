"""The guards for Redis and etcd, on real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import etcd3
import pytest
import redis
import redis.asyncio
from servers import EtcdServer, RedisServer, wait_until

from atomiclock import AsyncLockManager, ConfigurationError, LockManager, StaleFence
from atomiclock.fencing import async_fenced_set, etcd_guard, etcd_key, fenced_set

BIG = 2**60 + 1


@pytest.fixture(params=[True, False], ids=["text", "bytes"])
def client(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port, decode_responses=request.param) as client:
        yield client


@pytest.mark.parametrize("key", ["feed:1", "shop{7}:x", b"\xff\r\n", "{", "a b\r\nFLUSHALL\r\n"])
def test_redis_takes_a_later_fence_and_refuses_an_older_one(client: redis.Redis, key: str | bytes) -> None:
    for fence in (0, 9, 10, 10, BIG, BIG + 1):
        fenced_set(client, key, f"by {fence}", fence=fence)
    for stale in (0, 10, BIG):
        with pytest.raises(StaleFence) as raised:
            fenced_set(client, key, "late", fence=stale)
        assert (raised.value.fence, raised.value.seen) == (stale, BIG + 1)
    assert client.get(key) in (f"by {BIG + 1}", f"by {BIG + 1}".encode())
    assert client.dbsize() == 2


def test_a_guarded_value_may_expire_and_its_fence_stays(client: redis.Redis) -> None:
    fenced_set(client, "feed", "new", fence=7, ttl=0.05)
    wait_until(lambda: not client.exists("feed"), 5)
    with pytest.raises(StaleFence):
        fenced_set(client, "feed", "late", fence=6)
    assert client.ttl("{feed}:fence") == -1
    assert not client.exists("feed")


@pytest.mark.parametrize("planted", ["9", "9" * 20, "x" * 19, "", "18446744073709551616", "1234567890123456 89"])
def test_what_is_no_fence_in_redis_lets_nobody_write(client: redis.Redis, planted: str) -> None:
    client.set("{feed}:fence", planted)
    with pytest.raises(redis.ResponseError, match="not one of atomiclock"):
        fenced_set(client, "feed", "x", fence=5)
    assert not client.exists("feed")


def test_leases_of_redis_guard_its_values_in_both_colours(redis_server: RedisServer) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis(port=redis_server.port) as client, AsyncLockManager(redis_server.url) as locks:
            slow = await locks.acquire("feed", ttl=0.05, renew=False)
            async with locks.acquire("feed", timeout=10) as lease:
                assert (lease.fence or 0) > 2**53
                await async_fenced_set(client, "feed", "new", fence=lease)
            with pytest.raises(StaleFence) as raised:
                await async_fenced_set(client, "feed", "late", fence=slow)
            assert raised.value.name == "feed"
            assert await client.get("feed") == b"new"

    asyncio.run(main())


def test_etcd_writes_only_while_the_lock_is_held(etcd_server: EtcdServer) -> None:
    with etcd3.client(port=etcd_server.port) as client, LockManager(etcd_server.url) as locks:

        def write(lease: object, value: str) -> bool:
            put = [client.transactions.put("data", value)]
            return bool(client.transaction(compare=[etcd_guard(client, lease)], success=put, failure=[])[0])

        slow = locks.acquire("feed", ttl=20, renew=False)
        assert client.get(etcd_key(slow))[1].create_revision == slow.fence
        assert write(slow, "first")
        slow.extend(30)  # which moves its key to another lease of etcd
        assert write(slow, "second")
        client.delete(etcd_key(slow))
        assert not write(slow, "late, and nobody has followed")
        with LockManager(etcd_server.url) as others, others.acquire("feed") as lease:
            assert write(lease, "new")
            assert not write(slow, "late")
        assert not write(lease, "released")
        assert client.get("data")[0] == b"new"


def test_a_key_that_was_made_anew_is_not_that_of_the_lease(etcd_server: EtcdServer) -> None:
    with etcd3.client(port=etcd_server.port) as client, LockManager(etcd_server.url) as locks:
        lease = locks.acquire("feed", ttl=20, renew=False)
        client.delete(etcd_key(lease))
        client.put(etcd_key(lease), "by hand")
        put = [client.transactions.put("data", "late")]
        assert not client.transaction(compare=[etcd_guard(client, lease)], success=put, failure=[])[0]


def test_a_lease_of_another_store_is_no_guard_in_etcd() -> None:
    with LockManager("memory://").acquire("feed") as lease:
        for other in (lease, 7, None):
            with pytest.raises(ConfigurationError, match="etcd"):
                etcd_key(other)
