"""What a call does whose lock is held, on a prefork worker with four children, and inside canvases."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from conftest import Shop, Worker, most_at_once

from atomiclock.celery import LockBusy

WITHIN = 30


def test_skip_returns_none_at_once_and_says_so(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.skip.delay(key, 1.5)
    worker.await_event(key, "begin")
    assert [shop.tasks.skip.delay(key).get(timeout=WITHIN) for _ in range(3)] == [None] * 3
    assert not worker.events(key, "end")
    assert first.get(timeout=WITHIN) == key
    assert worker.said(f"skip:{key}: already being imported by another worker (celery:{first.id}:")


def test_retry_runs_each_message_once_one_at_a_time_without_using_up_retries(
    shop: Shop, worker: Worker, key: str
) -> None:
    results = [shop.tasks.retry.delay(key, 0.3) for _ in range(4)]
    assert [result.get(timeout=WITHIN) for result in results] == [key] * 4
    assert {event["id"] for event in worker.events(key, "begin")} == {result.id for result in results}
    assert most_at_once(worker.events(key)) == 1


def test_retry_in_spite_of_autoretry_leaves_the_budget_to_the_body(shop: Shop, worker: Worker, key: str) -> None:
    results = [shop.tasks.auto.delay(key, 0.4) for _ in range(3)]  # each fails once, and may fail no second time
    assert [result.get(timeout=WITHIN) for result in results] == [key] * 3
    assert most_at_once(worker.events(key)) == 1
    assert len(worker.events(key, "begin")) == 6


def test_what_a_call_waited_before_its_own_retry_is_not_taken_from_its_patience(
    shop: Shop, worker: Worker, key: str
) -> None:
    first = shop.tasks.calm.delay(key, False, 0.8)
    worker.await_event(key, "begin")
    retried = shop.tasks.calm.delay(key, True)
    worker.await_event(key, "end", 2)  # it has met the conflict, run, and will come again in 3 s
    other = shop.tasks.calm.apply_async((key, False, 1.5), countdown=2)
    worker.await_event(key, "begin", 3)
    assert retried.get(timeout=WITHIN) == first.get(timeout=WITHIN) == other.get(timeout=WITHIN) == key


def test_retry_gives_up_with_lock_busy(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.impatient.delay(key, 2.5)
    worker.await_event(key, "begin")
    with pytest.raises(LockBusy, match="is held by celery:"):
        shop.tasks.impatient.delay(key).get(timeout=WITHIN)
    assert first.get(timeout=WITHIN) == key


def test_coalesce_of_a_storm_makes_two_runs_of_which_the_second_began_after_the_last_call(
    shop: Shop, worker: Worker, key: str
) -> None:
    first = shop.tasks.coalesce.delay(key, 2)
    worker.await_event(key, "begin")
    rest = [shop.tasks.coalesce.delay(key, 0.2) for _ in range(12)]
    answers = [result.get(timeout=WITHIN) for result in rest]
    assert first.get(timeout=WITHIN) == key
    assert sorted(answers, key=str) == [None] * 11 + [key]
    assert most_at_once(worker.events(key)) == 1
    assert len(worker.events(key, "begin")) == 2


def test_coalesce_after_the_waiting_one_began_queues_another(shop: Shop, worker: Worker, key: str) -> None:
    shop.tasks.coalesce.delay(key, 0.5)
    worker.await_event(key, "begin")
    second = shop.tasks.coalesce.delay(key, 1.5)
    worker.await_event(key, "begin", 2)
    third = shop.tasks.coalesce.delay(key, 0)
    assert [second.get(timeout=WITHIN), third.get(timeout=WITHIN)] == [key, key]
    assert len(worker.events(key, "begin")) == 3
    assert most_at_once(worker.events(key)) == 1


def test_wait_stands_still_until_the_holder_ends(shop: Shop, worker: Worker, key: str) -> None:
    results = [shop.tasks.wait.delay(key, 0.3) for _ in range(3)]
    assert [result.get(timeout=WITHIN) for result in results] == [key] * 3
    assert most_at_once(worker.events(key)) == 1


def test_raise_fails_the_call(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.raises.delay(key, 2)
    worker.await_event(key, "begin")
    duplicate = shop.tasks.raises.delay(key)
    with pytest.raises(LockBusy, match=f"the lock 'raises:{key}' is held by celery:{first.id}:"):
        duplicate.get(timeout=WITHIN)
    assert duplicate.state == "FAILURE"
    shop.tasks.raises.apply_async((key,), link_error=shop.tasks.told.si(f"{key}e"))
    worker.await_event(f"{key}e", "told")
    assert not worker.events(key, "end")
    assert first.get(timeout=WITHIN) == key


def test_what_send_task_or_another_service_sends_meets_the_lock_as_well(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.app.send_task("skip", (key, 1.5))
    worker.await_event(key, "begin")
    assert shop.app.send_task("skip", kwargs={"key": key}).get(timeout=WITHIN) is None
    mapped = shop.app.send_task("celery.map", (dict(shop.tasks.skip.s()), [key]))  # calls the function for each
    assert mapped.get(timeout=WITHIN) == [None]
    assert first.get(timeout=WITHIN) == key


def test_a_callable_chooses_by_what_it_is_told(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.chosen.delay(key, 2)
    worker.await_event(key, "begin")
    assert shop.tasks.chosen.delay(key).get(timeout=WITHIN) is None
    asked = worker.events(key, "asked")
    assert [event["tries"] for event in asked] == [0, 1, 2]
    assert asked[0]["holder"].startswith(f"celery:{first.id}:")
    first.get(timeout=WITHIN)


def test_a_header_overrides_the_rules_of_one_call(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.skip.delay(key, 1.2)
    worker.await_event(key, "begin")
    said = {"atomiclock": {"on_conflict": "raise"}}
    with pytest.raises(LockBusy):
        shop.tasks.skip.apply_async((key,), headers=said).get(timeout=WITHIN)
    free = {"atomiclock": {"enabled": False}}
    assert shop.tasks.skip.apply_async((key,), headers=free).get(timeout=WITHIN) == key
    first.get(timeout=WITHIN)


@pytest.mark.parametrize(("name", "runs"), [("skip", 1), ("retry", 3), ("coalesce", 2), ("wait", 3)])
def test_no_canvas_waits_for_ever(shop: Shop, worker: Worker, key: str, name: str, runs: int) -> None:
    task = getattr(shop.tasks, name)
    same = [task.s(key, 0.5) for _ in range(3)]
    together = chord(same, shop.tasks.total.s()).delay().get(timeout=WITHIN)
    assert len(together) == 3
    assert sum(value == key for value in together) >= runs
    assert len(group([task.s(f"{key}g", 0.5) for _ in range(3)]).delay().get(timeout=WITHIN)) == 3
    task.delay(f"{key}c", 0.8)
    worker.await_event(f"{key}c", "begin")
    told = chain(task.s(f"{key}c"), shop.tasks.total.si([name])).delay()
    assert told.get(timeout=WITHIN) == [name]
    linked = task.apply_async((f"{key}l",), link=shop.tasks.told.si(f"{key}l"))
    linked.get(timeout=WITHIN)
    worker.await_event(f"{key}l", "told")
    assert most_at_once(worker.events(key)) == most_at_once(worker.events(f"{key}g")) == 1


def test_raise_ends_a_chord_soon(shop: Shop, worker: Worker, key: str) -> None:
    body = chord([shop.tasks.raises.s(key, 1) for _ in range(3)], shop.tasks.total.s()).delay()
    with pytest.raises(Exception, match="is held by"):
        body.get(timeout=WITHIN)


def test_inside_a_task_the_lease_is_at_hand(shop: Shop, worker: Worker, key: str) -> None:
    name, fence, held = shop.tasks.fence.delay(key).get(timeout=WITHIN)
    assert (name, held) == (f"fence:{key}", True)
    assert shop.tasks.fence.delay(key).get(timeout=WITHIN)[1] > fence
