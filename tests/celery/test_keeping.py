"""Locks that stand on when a body has ended: from one attempt to the next, or for a time that was set."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from celery import Celery, chord
from celery.result import AsyncResult
from conftest import SOON_AGAIN, Shop, Worker, most_at_once
from servers import wait_until

from atomiclock import ConfigurationError, LockManager
from atomiclock.backends import Holder
from atomiclock.celery import LockedTask, exclusive

WITHIN = 30
TRANSPORT = SOON_AGAIN


def holder(shop: Shop, name: str) -> Holder | None:
    with LockManager(shop.env["LOCKS"]) as locks:
        return locks.holder(name)


def three_attempts_in_a_row(worker: Worker, key: str, task: Any, result: AsyncResult) -> None:
    """Other calls come all the time; and none gets the lock before the last attempt has ended."""
    worker.await_event(key, "end")
    while not result.ready():
        task.delay(key).get(timeout=WITHIN)
    assert result.get(timeout=WITHIN) == f"{key} after 2"
    leases = worker.events(key, "lease")[:3]
    assert [event["id"] for event in leases] == [result.id] * 3
    assert len({event["token"] for event in leases}) == len({event["fence"] for event in leases}) == 1


def test_a_lock_is_kept_from_attempt_to_attempt_and_nobody_comes_between(shop: Shop, worker: Worker, key: str) -> None:
    result = shop.tasks.kept.delay(key, [1, 0])
    three_attempts_in_a_row(worker, key, shop.tasks.kept, result)
    assert holder(shop, f"kept:{key}") is None, "the last attempt gives it back"


def test_an_attempt_that_comes_before_the_last_one_has_ended_waits_for_the_lock_that_it_keeps(
    shop: Shop, worker: Worker, key: str
) -> None:
    result = shop.tasks.kept.delay(key, [0, 0], 0, 1)
    wait_until(lambda: worker.said(f"kept[{result.id}] ignored"), 15, "it has met its own lock")
    assert not worker.events(key, "end")
    three_attempts_in_a_row(worker, key, shop.tasks.kept, result)
    assert most_at_once(worker.events(key)) == 1


@pytest.mark.parametrize("name", ["kept_auto", "kept_outside"])
def test_autoretry_keeps_the_lock_too_and_its_end_gives_it_back(
    shop: Shop, worker: Worker, key: str, name: str
) -> None:
    task = getattr(shop.tasks, name)
    three_attempts_in_a_row(worker, key, task, task.delay(key, 2))
    failed = task.delay(f"{key}f", 9)
    with pytest.raises(ValueError, match=f"{key}f"):
        failed.get(timeout=WITHIN)
    assert holder(shop, f"{name}:{key}f") is None
    assert len(worker.events(f"{key}f", "begin")) == 3


def test_between_two_attempts_the_lock_stands_for_the_countdown_and_the_ttl(
    shop: Shop, worker: Worker, key: str
) -> None:
    result = shop.tasks.kept.delay(key, [40])
    pid = worker.await_event(key, "end")["pid"]
    wait_until(lambda: worker.said(f"kept[{result.id}] retry"), 10, "its child has nothing to do with it any more")
    assert 50 < (holder(shop, f"kept:{key}") or _NOBODY).remaining <= 60
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in worker.children, 10, "the child is replaced")
    assert shop.tasks.told.delay(f"{key}t").get(timeout=WITHIN)
    assert holder(shop, f"kept:{key}") is not None, "it does not belong to the process any more"


_NOBODY = Holder(None, "", None, 0.0)


def test_a_retry_that_is_revoked_gives_the_lock_back_at_once(shop: Shop, worker: Worker, key: str) -> None:
    result = shop.tasks.kept.delay(key, [60])
    worker.await_event(key, "end")
    assert shop.tasks.kept.delay(key).get(timeout=WITHIN) is None
    result.revoke()
    wait_until(lambda: holder(shop, f"kept:{key}") is None, 15, "the lock is free")
    assert shop.tasks.kept.delay(key).get(timeout=WITHIN) == f"{key} after 0"


def test_to_revoke_an_attempt_that_runs_takes_nothing_from_it(shop: Shop, worker: Worker, key: str) -> None:
    result = shop.tasks.kept.delay(key, [0.3], 8)
    worker.await_event(key, "begin", 2)
    result.revoke()
    wait_until(lambda: worker.said(f"flagged as revoked: {result.id}"), 10, "it is known to be revoked")
    assert shop.tasks.kept.delay(key).get(timeout=WITHIN) is None
    worker.await_event(key, "end", 2)
    assert worker.events(key, "end")[1]["error"] is None  # what is stored of it differs from Celery to Celery


def test_a_retry_that_is_delivered_twice_goes_on_with_the_lock_once(shop: Shop, worker: Worker, key: str) -> None:
    result = shop.tasks.kept_late.delay(key, 9)  # the broker delivers the second attempt again after 4 s
    assert result.get(timeout=WITHIN) == f"{key} after 1"
    wait_until(lambda: worker.log.read_text().count(f"kept_late[{result.id}] ignored") >= 1, 15, "it came twice")
    assert most_at_once(worker.events(key)) == 1
    assert len(worker.events(key, "begin")) == 2


def test_a_child_that_is_killed_in_its_second_attempt_leaves_no_lock(shop: Shop, worker: Worker, key: str) -> None:
    shop.tasks.kept.delay(key, [0.3], 60)
    worker.await_event(key, "begin", 2)
    os.kill(worker.events(key, "begin")[1]["pid"], signal.SIGKILL)
    wait_until(lambda: holder(shop, f"kept:{key}") is None, 10, "the lock is free")


def test_a_chord_goes_on_after_members_that_kept_their_lock(shop: Shop, worker: Worker, key: str) -> None:
    same = [shop.tasks.kept.s(key, [0.2]).set(lock={"on_conflict": "retry", "ttl": 2}) for _ in range(3)]
    assert chord(same, shop.tasks.total.s()).delay().get(timeout=WITHIN) == [f"{key} after 1"] * 3
    assert most_at_once(worker.events(key)) == 1
    ids = [event["id"] for event in worker.events(key, "begin")]
    assert ids[0] == ids[1] != ids[2] == ids[3] != ids[4] == ids[5]


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_that_ends_soon_holds_its_lock_for_min_hold(shop: Shop, worker: Worker, key: str, fails: bool) -> None:
    first = shop.tasks.long.delay(key, 0.5, fails)
    assert first.get(timeout=WITHIN, propagate=False) is not None
    began = worker.events(key, "begin")[0]["at"]
    assert shop.tasks.long.delay(key).get(timeout=WITHIN) is None
    stands = holder(shop, f"long:{key}")
    assert stands is not None
    assert stands.remaining is not None
    assert 0 < stands.remaining < 4, "not for the ttl, which is 5"
    waiting = shop.tasks.long.apply_async((key,), lock={"on_conflict": "retry", "min_hold": 0})
    assert waiting.get(timeout=WITHIN) == key
    assert worker.events(key, "begin")[1]["at"] - began >= 3.9
    wait_until(lambda: holder(shop, f"long:{key}") is None, 5, "the second one was to hold it no longer than it ran")


def test_a_task_that_takes_longer_than_min_hold_gives_its_lock_back_at_its_end(
    shop: Shop, worker: Worker, key: str
) -> None:
    assert shop.tasks.long.apply_async((key, 1.2), lock={"min_hold": 1}).get(timeout=WITHIN) == key
    assert holder(shop, f"long:{key}") is None


def test_a_task_that_is_killed_holds_its_lock_no_longer(shop: Shop, worker: Worker, key: str) -> None:
    shop.tasks.long.apply_async((key, 60), lock={"min_hold": 100, "ttl": 50})
    os.kill(worker.await_event(key, "begin")["pid"], signal.SIGKILL)
    wait_until(lambda: holder(shop, f"long:{key}") is None, 10, "the lock is free")


@pytest.fixture
def eager(tmp_path: Any) -> Any:
    app = Celery("eager", set_as_current=False)
    app.conf.update(atomiclock_url=f"sqlite:///{tmp_path}/locks.db", task_always_eager=True)
    yield app
    app.close()


def test_called_eagerly_or_directly_both_hold_as_well(eager: Celery) -> None:
    seen = []

    @eager.task(name="hourly", bind=True, max_retries=3)
    @exclusive("{x}", min_hold=50, hold_on_retry=True)
    def hourly(self: Any, x: int, fails: int = 0) -> str:
        seen.append(x)
        if self.request.retries < fails:
            raise self.retry(countdown=1)
        return f"after {self.request.retries}"

    assert hourly.delay(1, 2).get() == "after 2"
    assert seen == [1, 1, 1]
    assert hourly.delay(1).get() is None
    assert hourly(2) == "after 0"
    assert hourly(2) is None
    with LockManager(eager.conf.atomiclock_url) as locks:
        assert 40 < (locks.holder("hourly:2") or _NOBODY).remaining <= 50


def test_a_retry_keeps_nothing_of_a_call_that_is_no_message_of_its_own(eager: Celery) -> None:
    """The second lock of a task that has two, or a protected function that another task calls."""
    ran = []

    @eager.task(name="two", base=LockedTask, lock=exclusive("out-{x}", hold_on_retry=True), bind=True, max_retries=3)
    @exclusive("in-{x}", hold_on_retry=True)
    def two(self: Any, x: int) -> str:
        ran.append(self.request.retries)
        if not self.request.retries:
            raise self.retry(countdown=60)
        return "done"

    assert two.delay(1).get() == "done"
    assert ran == [0, 1]
    with LockManager(eager.conf.atomiclock_url) as locks:
        assert locks.holder("two:in-1") is None


def test_both_are_settings_too_and_checked_like_the_others() -> None:
    app = Celery("kept", set_as_current=False)
    app.conf.update(atomiclock_url="sqlite://", atomiclock_hold_on_retry=True, atomiclock_min_hold=5)
    rules = exclusive("{x}", min_hold=7).rules(app.conf, None)
    assert (rules.hold_on_retry, rules.min_hold) == (True, 7)
    for wrong in ({"min_hold": -1}, {"min_hold": None}, {"hold_on_retry": "yes"}, {"min_hold": 9, "max_hold": 5}):
        with pytest.raises(ConfigurationError, match="hold"):
            exclusive("{x}", **wrong)
    app.close()


def test_a_time_that_the_store_cannot_keep_is_refused_at_the_call(eager: Celery) -> None:
    eager.conf.atomiclock_url = "memcached://127.0.0.1:1"

    @eager.task(name="yearly")
    @exclusive(min_hold=400 * 86400)
    def yearly() -> None: ...

    with pytest.raises(ConfigurationError, match="is longer than"):
        yearly.apply(throw=True)
