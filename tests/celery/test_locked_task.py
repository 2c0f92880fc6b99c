"""`LockedTask`: the lock outside autoretry, and one place in the queue for calls with the same key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from celery import Celery, chain, chord
from conftest import Shop, Worker, most_at_once
from servers import wait_until

from atomiclock import ConfigurationError, LockManager
from atomiclock.celery import LockBusy, LockedTask, exclusive, unique

WITHIN = 30


def place(shop: Shop, name: str) -> object:
    with LockManager(shop.env["LOCKS"], namespace="atomiclock.unique") as locks:
        return locks.holder(name)


def test_a_lock_outside_autoretry_is_let_go_between_attempts_and_lock_busy_is_not_retried(
    shop: Shop, worker: Worker, key: str
) -> None:
    assert shop.tasks.outside.delay(key, 0, 2).get(timeout=WITHIN) == f"{key} after 2"
    first = shop.tasks.outside.delay(key, 1.5)
    worker.await_event(key, "begin", 4)
    began = time.monotonic()
    with pytest.raises(LockBusy):
        shop.tasks.outside.delay(key).get(timeout=WITHIN)
    assert time.monotonic() - began < 1.4
    first.get(timeout=WITHIN)
    assert len(worker.events(key, "begin")) == 4


def test_a_call_overrides_the_rules_of_its_lock(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.outside.delay(key, 1)
    worker.await_event(key, "begin")
    assert (
        shop.tasks.outside.apply_async((key,), lock={"on_conflict": "skip", "skip_result": 7}).get(timeout=WITHIN) == 7
    )
    first.get(timeout=WITHIN)


def test_until_start_the_queue_has_one_and_a_change_after_the_start_gets_another(
    shop: Shop, worker: Worker, key: str
) -> None:
    first = shop.tasks.one.apply_async((key, 1.0), countdown=1.5)
    duplicates = [shop.tasks.one.delay(key, 1.0) for _ in range(3)]
    assert {result.id for result in duplicates} == {first.id}
    worker.await_event(key, "begin")
    wait_until(lambda: place(shop, f"one:{key}") is None, 5, "the place is free")
    after = shop.tasks.one.delay(key)
    assert after.id != first.id
    assert after.get(timeout=WITHIN) == first.get(timeout=WITHIN) == key
    assert len(worker.events(key, "begin")) == 2


def test_until_done_the_place_is_kept_through_a_retry(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.one_done.delay(key, 0.3, True)
    worker.await_event(key, "begin", 2)
    assert shop.tasks.one_done.delay(key, 0.3, True).id == first.id
    assert first.get(timeout=WITHIN) == key
    wait_until(lambda: place(shop, f"one_done:{key}") is None, 5, "the place is free")


def test_a_retry_is_sent_although_another_call_has_the_place_by_now(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.one_again.delay(key)
    worker.await_event(key, "begin")
    wait_until(lambda: place(shop, f"one_again:{key}") is None, 5, "the place is free")
    shop.tasks.one_again.apply_async((key, False), countdown=3)
    assert first.get(timeout=WITHIN) == key


def test_with_a_lock_too_the_place_is_given_back_when_the_work_begins(shop: Shop, worker: Worker, key: str) -> None:
    first = shop.tasks.both.delay(key, 1)
    worker.await_event(key, "begin")
    second, third = shop.tasks.both.delay(key), shop.tasks.both.delay(key)
    assert third.id == second.id != first.id
    assert second.get(timeout=WITHIN) == key
    assert most_at_once(worker.events(key)) == 1
    assert place(shop, f"both:{key}") is None


def test_a_canvas_gets_all_its_members(shop: Shop, worker: Worker, key: str) -> None:
    same = [shop.tasks.one.s(key), shop.tasks.one.s(key), shop.tasks.one.s(f"{key}9")]
    assert chord(same, shop.tasks.total.s()).delay().get(timeout=WITHIN) == [key, key, f"{key}9"]
    waiting = shop.tasks.one.apply_async((f"{key}c",), countdown=2)
    assert chain(shop.tasks.one.s(f"{key}c"), shop.tasks.total.si(["end"])).delay().get(timeout=WITHIN) == ["end"]
    waiting.get(timeout=WITHIN)


def test_the_end_of_a_chain_and_the_body_of_a_chord_are_sent_although_their_like_is_enqueued(
    shop: Shop, worker: Worker, key: str
) -> None:
    waiting = shop.tasks.one.apply_async((key,), countdown=8)
    ends = shop.tasks.one.si(key)
    assert chain(shop.tasks.total.si([]), ends).delay().get(timeout=6) == key
    assert chord([shop.tasks.total.si([]), shop.tasks.total.si([])], ends).delay().get(timeout=6) == key
    assert shop.tasks.one.delay(key).id == waiting.id, "what nobody counts on still finds the one that waits"
    waiting.revoke()


@pytest.mark.parametrize("how", ["revoked", "expired", "killed"])
def test_a_call_that_never_runs_to_its_end_leaves_no_place(shop: Shop, worker: Worker, key: str, how: str) -> None:
    task = shop.tasks.one_done
    if how == "killed":
        task.delay(key, 30)
        os.kill(worker.await_event(key, "begin")["pid"], signal.SIGKILL)
    elif how == "expired":
        task.apply_async((key,), countdown=1, expires=0.5)
    else:
        task.apply_async((key,), countdown=2).revoke()
    wait_until(lambda: place(shop, f"one_done:{key}") is None, 10, "the place is free")


def test_a_cold_shutdown_leaves_no_place_and_no_lock(shop: Shop, key: str) -> None:
    leaving = shop.worker("-Q", "cold", children=2)
    shop.tasks.one_done.apply_async((key, 30), queue="cold")
    shop.tasks.patient.apply_async((f"{key}p", 30), queue="cold")
    leaving.await_event(key, "begin")
    leaving.await_event(f"{key}p", "begin")
    leaving.process.send_signal(signal.SIGQUIT)
    leaving.process.wait(30)
    wait_until(lambda: place(shop, f"one_done:{key}") is None, 5, "the place is free")
    with LockManager(shop.env["LOCKS"]) as locks:
        wait_until(lambda: locks.holder(f"patient:{key}p") is None, 5, "the lock is free, whose ttl is 30")


def test_a_publication_that_fails_leaves_no_place(shop: Shop, key: str) -> None:
    with pytest.raises(Exception, match=r"(?i)serializ|encod"):
        shop.tasks.one.apply_async((key, object()))
    assert place(shop, f"one:{key}") is None


def test_mistakes_are_refused_when_the_task_is_made() -> None:
    app = Celery("mistakes", set_as_current=False)

    def work(x: int) -> None: ...

    with pytest.raises(ConfigurationError, match="names 'y', which is no parameter"):
        app.task(base=LockedTask, lock=exclusive("{y}"), name="m1", lazy=False, shared=False)(work)
    with pytest.raises(ConfigurationError, match="unique needs ttl"):
        unique("{x}")
    with pytest.raises(ConfigurationError, match="until is"):
        unique("{x}", ttl=5, until="over")
    app.close()


def test_direct_and_eager_calls_take_the_lock(tmp_path: Path) -> None:
    app = Celery("direct", set_as_current=False)
    app.conf.update(atomiclock_url=f"sqlite:///{tmp_path}/locks.db", task_always_eager=True, task_eager_propagates=True)

    @app.task(base=LockedTask, lock=exclusive("{x}", on_conflict="retry"), name="nested", bind=True)
    def nested(self: object, x: int, deep: bool = False) -> str:
        if deep:
            with pytest.raises(LockBusy):
                nested(x)
        return "done"

    assert nested(1, deep=True) == nested.delay(1, deep=True).get() == "done"
    app.close()


def test_without_locks_the_queue_is_not_looked_at_either() -> None:
    app = Celery("unlocked", broker="memory://", set_as_current=False)
    app.conf.update(
        task_default_queue="unlocked",  # other tests read what lies in the usual one
        atomiclock_url="redis://127.0.0.1:1/0",
        atomiclock_enabled=False,
        atomiclock_on_backend_error="raise",
    )

    @app.task(base=LockedTask, unique=unique("{x}", ttl=9), name="unlocked")
    def unlocked(x: int) -> None: ...

    assert unlocked.delay(1).id != unlocked.delay(1).id
    app.close()


def test_djangos_delay_on_commit_is_kept(tmp_path: Path) -> None:
    code = (
        "import django; from django.conf import settings; settings.configure(); django.setup()\n"
        "from atomiclock.celery import LockedTask\n"
        "from celery import Celery\n"
        "app = Celery('d')\n"
        "@app.task(base=LockedTask)\n"
        "def f(): ...\n"
        "print(hasattr(f, 'delay_on_commit'), f.apply_async_on_commit.__name__)\n"
    )
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": f"{tmp_path}:{os.pathsep.join(sys.path)}"}
    (tmp_path / "settings.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["True", "apply_async_on_commit"], done.stderr
