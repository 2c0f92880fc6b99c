"""What becomes of a lock when its message comes twice, its process dies, its store goes away or its body is deaf."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import pytest
from conftest import SOON_AGAIN, Shop, Worker, most_at_once, on_redis
from servers import RedisServer, wait_until

from atomiclock import BackendUnavailable, LockLost, LockManager

WITHIN = 40
TRANSPORT = SOON_AGAIN


def holder(shop: Shop, name: str) -> object:
    with LockManager(shop.env["LOCKS"]) as locks:
        return locks.holder(name)


def test_a_healthy_task_that_outlives_the_visibility_timeout_runs_once(shop: Shop, worker: Worker, key: str) -> None:
    result = shop.tasks.late.delay(key, 9)  # the broker delivers again after 4 s
    began = worker.await_event(key, "begin")["at"]
    assert result.get(timeout=WITHIN) == key
    assert worker.events(key, "end")[0]["at"] - began >= 9
    time.sleep(3)  # what was put back comes and finds that it is done
    assert len(worker.events(key, "begin")) == 1
    assert result.state == "SUCCESS"
    assert result.result == key


def test_a_second_call_with_an_id_that_was_chosen_is_no_second_delivery(shop: Shop, worker: Worker, key: str) -> None:
    for count in (1, 2):
        shop.tasks.late.apply_async((key,), task_id=f"feed-{key}")
        worker.await_event(key, "end", count)
        wait_until(lambda count=count: worker.log.read_text().count(f"late[feed-{key}] succeeded") == count, 10, "done")
    shop.tasks.late.apply_async((f"{key}c", 2), task_id=f"feed-{key}c")
    shop.tasks.late.apply_async((f"{key}c",), task_id=f"feed-{key}c")
    worker.await_event(f"{key}c", "end", 2)
    assert most_at_once(worker.events(f"{key}c")) == 1


@pytest.mark.parametrize("more", ["", "x" * 20_000], ids=["short", "long"])
def test_a_killed_child_is_freed_as_soon_as_it_is_dead(shop: Shop, worker: Worker, key: str, more: str) -> None:
    key += more
    shop.tasks.patient.delay(key, 60)  # ttl 30
    victim = worker.await_event(key, "begin")["pid"]
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: holder(shop, f"patient:{key}") is None, 10, "the lock is free")
    assert shop.tasks.patient.delay(key, 0).get(timeout=WITHIN) == key
    assert time.monotonic() - killed < 15
    assert worker.said(f"freed the lock 'patient:{key}'")


def test_the_task_of_a_killed_child_is_done_by_its_second_delivery(shop: Shop, worker: Worker, key: str) -> None:
    result = shop.tasks.stubborn.delay(key, 1.5)
    os.kill(worker.await_event(key, "begin")["pid"], signal.SIGKILL)
    assert result.get(timeout=WITHIN) == key
    assert len(worker.events(key, "begin")) == 2
    assert len(worker.events(key, "end")) == 1


@pytest.mark.parametrize("how", ["SIGTERM", "SIGQUIT", "SIGKILL"])
def test_revoked_with_each_signal_frees_the_lock(shop: Shop, worker: Worker, key: str, how: str) -> None:
    result = shop.tasks.patient.delay(key, 60)
    worker.await_event(key, "begin")
    result.revoke(terminate=True, signal=how)
    wait_until(lambda: holder(shop, f"patient:{key}") is None, 15, "the lock is free")
    assert shop.tasks.patient.delay(key, 0).get(timeout=WITHIN) == key


@pytest.mark.parametrize(
    ("limits", "error"), [({"soft_time_limit": 1}, "SoftTimeLimit"), ({"time_limit": 1}, "TimeLimit")]
)
def test_both_time_limits_free_the_lock(
    shop: Shop, worker: Worker, key: str, limits: dict[str, int], error: str
) -> None:
    result = shop.tasks.patient.apply_async((key, 60), **limits)
    worker.await_event(key, "begin")
    with pytest.raises(Exception, match=error):
        result.get(timeout=WITHIN)
    wait_until(lambda: holder(shop, f"patient:{key}") is None, 10, "the lock is free")
    assert shop.tasks.patient.delay(key, 0).get(timeout=WITHIN) == key


def test_a_body_that_never_lets_go_of_the_interpreter_keeps_its_lock(shop: Shop, worker: Worker, key: str) -> None:
    deaf = shop.tasks.deaf.delay(key, 6)  # ttl 1.5
    worker.await_event(key, "begin")
    while not worker.events(key, "end"):
        assert shop.tasks.deaf.delay(key, 0).get(timeout=WITHIN) is None or worker.events(key, "end")
        time.sleep(0.3)
    assert deaf.get(timeout=WITHIN) is True
    assert most_at_once(worker.events(key)) == 1


@pytest.mark.parametrize("name", ["aborted", "failed", "warned"])
def test_a_lost_lock_ends_its_task_as_it_was_told(shop: Shop, worker: Worker, key: str, name: str) -> None:
    result = getattr(shop.tasks, name).delay(key, 3)
    began = worker.await_event(key, "begin")["at"]
    with LockManager(shop.env["LOCKS"]) as locks:
        held = locks.holder(f"{name}:{key}")
        assert held is not None
        RedisClient(shop).command("-n", "2", "DEL", f"atomiclock:{name}:{key}")
    if name == "warned":
        assert result.get(timeout=WITHIN) == key
        return
    with pytest.raises(LockLost):
        result.get(timeout=WITHIN)
    end = worker.await_event(key, "end")
    assert end["error"] == ("LockLost" if name == "aborted" else None)
    assert (end["at"] - began < 2.5) is (name == "aborted")


class RedisClient:
    def __init__(self, shop: Shop) -> None:
        self.server = shop.env["LOCKS"].rpartition("/")[0].rpartition(":")[2]

    def command(self, *words: str) -> None:
        import subprocess

        subprocess.run(["redis-cli", "-p", self.server, *words], check=True, capture_output=True)


def test_retry_lets_go_between_attempts_and_runs_them_all(shop: Shop, worker: Worker, key: str) -> None:
    assert shop.tasks.again.delay(key).get(timeout=WITHIN) == f"{key} after 2"
    assert len(worker.events(key, "begin")) == 3


def test_a_store_that_is_down_is_never_busy_and_the_task_waits_for_it(
    shop: Shop, celery_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    locks = RedisServer(tmp_path_factory.mktemp("locks")).start()
    other = Shop(tmp_path_factory.mktemp("down"), on_redis(celery_redis, LOCKS=f"{locks.url}", QUEUE="down"))
    try:
        other.app.conf.task_default_queue = "down"
        worker = other.worker("-Q", "down", children=2)
        locks.kill()
        result = other.tasks.skip.delay(key)
        wait_until(lambda: worker.said(" ignored"), 20, "it was put back")
        assert not worker.events(key)
        locks.start()
        assert result.get(timeout=WITHIN) == key
        locks.kill()
        said = {"atomiclock": {"on_backend_error": "raise"}}
        with pytest.raises(BackendUnavailable):
            other.tasks.skip.apply_async((key,), headers=said).get(timeout=WITHIN)
        free = {"atomiclock": {"on_backend_error": "run"}}
        assert other.tasks.skip.apply_async((key,), headers=free).get(timeout=WITHIN) == key
        given_up = {"atomiclock": {"give_up": 0.5, "delay": 0.3}}
        with pytest.raises(BackendUnavailable):
            other.tasks.skip.apply_async((key,), headers=given_up).get(timeout=WITHIN)
        locks.start()
        a_store_that_goes_down_while_a_task_waits(other, worker, locks, f"{key}w")
        a_store_that_goes_down_while_a_task_runs(other, worker, locks, f"{key}r")
    finally:
        other.close()
        with contextlib.suppress(Exception):
            locks.stop()


def a_store_that_goes_down_while_a_task_waits(shop: Shop, worker: Worker, locks: RedisServer, key: str) -> None:
    first = shop.tasks.skip.delay(key, 30)
    worker.await_event(key, "begin")
    rules = {"on_conflict": "wait", "wait": 3}
    second = shop.tasks.skip.apply_async((key,), headers={"atomiclock": rules})
    wait_until(lambda: worker.said(f"{second.id}] received"), 10, "it stands")
    time.sleep(0.5)
    locks.kill()
    wait_until(lambda: worker.said(f"{second.id}] ignored") or second.ready(), 20, "it was put back")
    assert second.state == "PENDING"
    locks.start()
    second.get(timeout=WITHIN)  # the store has forgotten the first's lock, which is no matter here
    first.revoke(terminate=True, signal="SIGKILL")


def a_store_that_goes_down_while_a_task_runs(shop: Shop, worker: Worker, locks: RedisServer, key: str) -> None:
    """Soon it is not known any more who has the lock. If the task ends before that, what it did counts."""
    losing = shop.tasks.aborted.delay(key, 60)  # ttl 1
    ending = shop.tasks.patient.apply_async((f"{key}e", 1.5), lock={"ttl": 300})
    worker.await_event(key, "begin")
    worker.await_event(f"{key}e", "begin")
    locks.kill()
    with pytest.raises(LockLost):
        losing.get(timeout=WITHIN)
    assert ending.get(timeout=WITHIN) == f"{key}e"
    locks.start()


def test_a_soft_limit_that_hits_in_the_release_still_leaves_no_lock(
    celery_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    locks = RedisServer(tmp_path_factory.mktemp("locks")).start()
    shop = Shop(tmp_path_factory.mktemp("limit"), on_redis(celery_redis, LOCKS=f"{locks.url}?io_timeout=60"))
    try:
        worker = shop.worker("-Q", "limit", children=1)
        ending = shop.tasks.patient.apply_async((key, 1.5), lock={"ttl": 300}, soft_time_limit=6, queue="limit")
        worker.await_event(key, "begin")
        with locks.frozen():
            assert worker.await_event(key, "end")["error"] is None, "the body had time enough"
            wait_until(lambda: worker.said(f"Soft time limit (6s) exceeded for patient[{ending.id}]"), 15, "the limit")
        with pytest.raises(Exception, match="SoftTimeLimit"):
            ending.get(timeout=WITHIN)
        wait_until(lambda: holder(shop, f"patient:{key}") is None, 15, "the lock is free, whose ttl is 300")
    finally:
        shop.close()
        locks.stop()


def test_a_machine_that_stood_still_beyond_the_ttl_loses_and_takes_nothing_from_the_next(
    celery_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    shop = Shop(tmp_path_factory.mktemp("frozen"), on_redis(celery_redis))
    try:
        frozen = shop.worker("-Q", "frozen", children=1)
        first = shop.tasks.aborted.apply_async((key, 60), queue="frozen")  # ttl 1
        frozen.await_event(key, "begin")
        os.killpg(frozen.process.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: holder(shop, f"aborted:{key}") is None, 10, "the ttl is over")
            heir = shop.worker("-Q", "heir", children=1)
            second = shop.tasks.aborted.apply_async((key, 3), queue="heir")
            heir.await_event(key, "begin", 2)
        finally:
            os.killpg(frozen.process.pid, signal.SIGCONT)
        with pytest.raises(LockLost):
            first.get(timeout=WITHIN)
        assert second.get(timeout=WITHIN) == key
        assert [event["error"] for event in heir.events(key, "end")] == ["LockLost", None]
    finally:
        shop.close()


def test_memory_with_prefork_ends_the_worker_at_its_start(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> None:
    refused = Shop(tmp_path_factory.mktemp("memory"), {**shop.env, "LOCKS": "memory://"})
    try:
        with pytest.raises(AssertionError, match="excludes only threads of one process"):
            refused.worker("-Q", "none")
    finally:
        refused.close()


def test_memory_of_one_task_alone_is_refused_too(shop: Shop, worker: Worker, key: str) -> None:
    with pytest.raises(Exception, match="excludes only threads of one process"):
        shop.tasks.narrow.delay(key).get(timeout=WITHIN)
    assert not worker.events(key)


def test_the_task_of_a_killed_machine_is_done_by_another_after_the_ttl(
    celery_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    shop = Shop(tmp_path_factory.mktemp("machines"), on_redis(celery_redis, TRANSPORT=json.dumps(SOON_AGAIN)))
    try:
        doomed = shop.worker("-Q", "machines", children=1)
        result = shop.tasks.late.apply_async((key, 0.5), queue="machines")  # ttl 2
        doomed.await_event(key, "begin")
        doomed.kill()
        heir = shop.worker("-Q", "machines", children=1)
        assert result.get(timeout=WITHIN) == key
        heir.await_event(key, "end")
        assert len(heir.events(key, "begin")) == 2
    finally:
        shop.close()
