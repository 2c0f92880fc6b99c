"""The same short story on every pool, broker and store."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery.result import AsyncResult
from conftest import Shop, Worker, most_at_once, on_redis
from servers import EtcdServer, MemcachedServer, RabbitServer, RedisServer, wait_until

from atomiclock import LockManager

WITHIN = 30


@contextmanager
def opened(folder: Path, env: dict[str, str], *options: str, **more: object) -> Iterator[tuple[Shop, Worker]]:
    shop = Shop(folder, env)
    try:
        yield shop, shop.worker(*options, **more)
    finally:
        shop.close()


def story(shop: Shop, worker: Worker, key: str, children_of_one_task: bool = False) -> None:
    """Held by somebody else: one skips, one comes again; then free, and one at a time."""
    with LockManager(shop.env["LOCKS"]) as locks:
        with locks.acquire(f"skip:{key}", timeout=0):
            assert shop.tasks.skip.delay(key).get(timeout=WITHIN) is None
        with locks.acquire(f"retry:{key}", timeout=0):
            waiting = shop.tasks.retry.delay(key)
            wait_until(lambda: worker.said(" ignored"), WITHIN, "it was put back")
        assert waiting.get(timeout=WITHIN) == key
        if not children_of_one_task:  # Celery takes up to five seconds to see that such a child has gone
            one_waits_and_keeps_its_place(shop, worker, locks, f"{key}q")
            one_that_was_revoked_waits_no_more(shop, worker, locks, f"{key}r")
        results = [shop.tasks.retry.delay(key, 0.3) for _ in range(3)]
        assert [result.get(timeout=WITHIN) for result in results] == [key] * 3
        assert most_at_once(worker.events(key)) == 1
        assert len(worker.events(key, "begin")) == 4
        assert locks.holder(f"retry:{key}") is None
    assert shop.tasks.kept.delay(f"{key}h", [0.2]).get(timeout=WITHIN) == f"{key}h after 1"
    first, second = worker.events(f"{key}h", "lease")
    assert (first["token"], first["fence"]) == (second["token"], second["fence"])


def one_waits_and_keeps_its_place(shop: Shop, worker: Worker, locks: LockManager, key: str) -> None:
    """However often it comes in vain: the place that it finds is its own."""
    with locks.acquire(f"coalesce:{key}", timeout=0):
        waiting = shop.tasks.coalesce.delay(key)
        again = f"coalesce[{waiting.id}] ignored"
        wait_until(lambda: worker.log.read_text().count(again) >= 3, WITHIN, "it was put back three times")
        assert shop.tasks.coalesce.delay(key).get(timeout=WITHIN) is None
    assert waiting.get(timeout=WITHIN) == key


def one_that_was_revoked_waits_no_more(shop: Shop, worker: Worker, locks: LockManager, key: str) -> None:
    """It would come in 20 s, and its place would last for 80 s: the next call takes it long before."""

    def waits(call: AsyncResult) -> bool:
        wait_until(lambda: worker.said(f"coalesce[{call.id}] ignored") or call.ready(), WITHIN, "it has met the lock")
        return not call.ready()

    with locks.acquire(f"coalesce:{key}", timeout=0):
        first = shop.tasks.coalesce.apply_async((key,), lock={"ttl": 60, "delay": 20})
        assert waits(first)
        assert not waits(shop.tasks.coalesce.delay(key))
        first.revoke()
        calls: list[AsyncResult] = []
        wait_until(lambda: calls.append(shop.tasks.coalesce.delay(key)) or waits(calls[-1]), 15, "another one waits")
    assert calls[-1].get(timeout=WITHIN) == key


def a_killed_child(shop: Shop, worker: Worker, key: str) -> None:
    """The ttl is 30 s: it is the main process that frees it."""
    shop.tasks.patient.delay(key, 60)
    os.kill(worker.await_event(key, "begin")["pid"], signal.SIGKILL)
    killed = time.monotonic()
    with LockManager(shop.env["LOCKS"]) as locks:
        wait_until(lambda: locks.holder(f"patient:{key}") is None, 15, "the lock is free")
    assert time.monotonic() - killed < 15


@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet", "solo"])
def test_each_pool(celery_redis: RedisServer, tmp_path: Path, key: str, pool: str) -> None:
    celery_redis.command("FLUSHALL")
    with opened(tmp_path, on_redis(celery_redis), pool=pool) as (shop, worker):
        story(shop, worker, key)


def test_prefork_on_memcached(
    celery_redis: RedisServer, memcached_server: MemcachedServer, tmp_path: Path, key: str
) -> None:
    celery_redis.command("FLUSHALL")
    with opened(tmp_path, on_redis(celery_redis, LOCKS=memcached_server.url)) as (shop, worker):
        story(shop, worker, key)
        a_killed_child(shop, worker, f"{key}k")


def test_prefork_on_etcd(celery_redis: RedisServer, etcd_server: EtcdServer, tmp_path: Path, key: str) -> None:
    celery_redis.command("FLUSHALL")
    with opened(tmp_path, on_redis(celery_redis, LOCKS=etcd_server.url)) as (shop, worker):
        story(shop, worker, key)
        a_killed_child(shop, worker, f"{key}k")


def test_prefork_on_etcd_with_children_of_one_task_each(
    celery_redis: RedisServer, etcd_server: EtcdServer, tmp_path: Path, key: str
) -> None:
    """Each task is the first in its process, which was forked from one with a thread that may just use etcd."""
    celery_redis.command("FLUSHALL")
    env = on_redis(celery_redis, LOCKS=etcd_server.url, SETTINGS='{"worker_max_tasks_per_child": 1}')
    with opened(tmp_path, env, children=2) as (shop, worker):
        story(shop, worker, key, children_of_one_task=True)
        a_killed_child(shop, worker, f"{key}k")


def test_prefork_on_sqlite_with_the_filesystem_broker_and_children_of_one_task_each(tmp_path: Path, key: str) -> None:
    for folder in ("queue", "control", "processed", "results"):
        (tmp_path / folder).mkdir()
    transport = {"data_folder_in": f"{tmp_path}/queue", "data_folder_out": f"{tmp_path}/queue",
                 "control_folder": f"{tmp_path}/control", "processed_folder": f"{tmp_path}/processed",
                 "store_processed": True, "polling_interval": 0.05}  # fmt: skip
    env = {
        "BROKER": "filesystem://",
        "RESULTS": f"file://{tmp_path}/results",
        "LOCKS": f"sqlite:///{tmp_path}/locks.db",
        "TRANSPORT": json.dumps(transport),
        "SETTINGS": '{"worker_max_tasks_per_child": 1}',
    }
    with opened(tmp_path, env) as (shop, worker):
        story(shop, worker, key, children_of_one_task=True)
        a_killed_child(shop, worker, f"{key}k")


def test_prefork_on_rabbitmq_also_with_a_second_delivery(celery_redis: RedisServer, tmp_path: Path, key: str) -> None:
    celery_redis.command("FLUSHALL")
    (tmp_path / "rabbit").mkdir()
    rabbit = RabbitServer(tmp_path / "rabbit")
    try:
        rabbit.start()
        with opened(tmp_path, on_redis(celery_redis, BROKER=rabbit.url, TRANSPORT="{}")) as (shop, worker):
            story(shop, worker, key)
            result = shop.tasks.stubborn.delay(key, 1)
            os.kill(worker.await_event(key, "begin", 5)["pid"], signal.SIGKILL)
            assert result.get(timeout=WITHIN) == key
    finally:
        rabbit.stop()
