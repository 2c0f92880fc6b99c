"""Signals, worker events, and the command line: what one can see of locks from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from conftest import HERE, SOURCES, Shop, on_redis
from servers import RedisServer, wait_until

from atomiclock import LockLost, LockManager
from atomiclock.celery import LockBusy, LockedTask, exclusive, signals, unique

WITHIN = 30
PROJECT = HERE.parents[1] / "pyproject.toml"


@pytest.fixture(scope="module")
def watched(celery_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A worker that sends events."""
    shop = Shop(tmp_path_factory.mktemp("watched"), on_redis(celery_redis))
    shop.worker("-E", children=2)
    yield shop
    shop.close()


def celery_locks(shop: Shop, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`celery -A lockproj locks ...`, with the entry point as it would be installed."""
    info = folder / "atomiclock_commands-1.0.dist-info"
    if not info.exists():
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: atomiclock-commands\nVersion: 1.0\n")
        point = re.search(r'^\[project.entry-points."celery.commands"\]\n(.*)\n', PROJECT.read_text(), re.M)
        assert point is not None
        (info / "entry_points.txt").write_text(f"[celery.commands]\n{point[1].replace(chr(34), '')}\n")
    path = os.pathsep.join([str(folder), str(SOURCES), str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery", "-A", "lockproj", "locks", *words],
        env={**os.environ, **shop.env, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_watchers_get_an_event_for_each_thing_that_happens(watched: Shop, celery_redis: RedisServer, key: str) -> None:
    seen: list[dict[str, Any]] = []
    connection = watched.app.connection()
    receiver = watched.app.events.Receiver(connection, handlers={"*": seen.append})
    watcher = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
    watcher.start()
    try:
        wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in seen) or _ping(watched, seen), 20)
        first = watched.tasks.skip.delay(key, 1)
        watched.started[0].await_event(key, "begin")
        watched.tasks.skip.delay(key).get(timeout=WITHIN)
        first.get(timeout=WITHIN)
        killed = watched.tasks.patient.delay(key, 60)
        pid = watched.started[0].await_event(key, "begin", 2)["pid"]
        os.kill(pid, signal.SIGKILL)
        losing = watched.tasks.aborted.delay(key, 60)
        watched.started[0].await_event(key, "begin", 3)
        celery_redis.command("-n", "2", "DEL", f"atomiclock:aborted:{key}")
        with pytest.raises(LockLost):
            losing.get(timeout=WITHIN)
        kinds = ("acquired", "busy", "released", "lost", "freed")
        wait_until(lambda: {f"task-lock-{kind}" for kind in kinds} <= {event["type"] for event in _of(seen, key)}, 10)
    finally:
        receiver.should_stop = True
        watcher.join(10)
        connection.release()
    by_kind = {event["type"]: event for event in _of(seen, key)}
    assert by_kind["task-lock-busy"]["outcome"] == "skipped"
    assert by_kind["task-lock-released"]["held_for"] >= 1
    assert by_kind["task-lock-released"]["stays_for"] == 0
    assert next(event["uuid"] for event in _of(seen, key) if event["type"] == "task-lock-acquired") == first.id
    assert by_kind["task-lock-acquired"]["fence"]
    freed = by_kind["task-lock-freed"]
    assert (freed["uuid"], freed["child"], freed["reason"]) == (killed.id, pid, "its process is dead")
    assert "the store no longer has it" in by_kind["task-lock-lost"]["reason"]


def _of(seen: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [event for event in seen if key in str(event.get("lock"))]


def _ping(shop: Shop, seen: list[dict[str, Any]]) -> bool:
    shop.tasks.total.delay([]).get(timeout=WITHIN)
    time.sleep(0.2)
    return bool(seen)


@pytest.mark.parametrize("task", ["patient", "elsewhere"])
def test_the_command_line_lists_shows_and_breaks_only_with_the_token_also_in_the_store_of_one_task(
    watched: Shop, tmp_path: Path, key: str, task: str
) -> None:
    result = getattr(watched.tasks, task).delay(key, 60)
    watched.started[0].await_event(key, "begin")
    name = f"{task}:{key}"
    listed = celery_locks(watched, tmp_path, "ls", "--json")
    rows = [row for row in json.loads(listed.stdout) if row["name"] == name]
    assert [row["id"] for row in rows] == [result.id], listed.stderr
    shown = json.loads(celery_locks(watched, tmp_path, "show", name, "--json").stdout)
    assert shown["owner"].startswith(f"celery:{result.id}:")
    wrong = celery_locks(watched, tmp_path, "break", name, "--token", "f" * 32)
    assert wrong.returncode == 1
    assert "was left alone" in wrong.stderr
    right = celery_locks(watched, tmp_path, "break", name, "--token", shown["token"])
    assert right.returncode == 0, right.stderr
    assert celery_locks(watched, tmp_path, "show", name).returncode == 1
    result.revoke(terminate=True, signal="SIGKILL")


def test_break_asks_which_of_two_stores_is_meant(watched: Shop, tmp_path: Path, key: str) -> None:
    name, url = f"elsewhere:{key}", watched.env["LOCKS"]
    with LockManager(url) as usual, LockManager(f"{url}?namespace=elsewhere") as own:
        held = usual.acquire(name, timeout=0), own.acquire(name, timeout=0)
        either = celery_locks(watched, tmp_path, "break", name, "--force")
        assert either.returncode == 1
        assert "say which" in either.stderr
        assert celery_locks(watched, tmp_path, "break", name, "--force", "--url", url).returncode == 0
        assert [locks.holder(name) is None for locks in (usual, own)] == [True, False]
        held[1].release()


def test_a_worker_that_does_not_know_what_is_held_never_says_that_nothing_is(
    celery_redis: RedisServer, tmp_path: Path, key: str
) -> None:
    shop = Shop(tmp_path, on_redis(celery_redis, NO_INSTALL="1"))
    try:
        unaware = shop.worker("-Q", "unaware", children=1)
        shop.tasks.patient.apply_async((key, 8), queue="unaware")
        unaware.await_event(key, "begin")
        listed = celery_locks(shop, tmp_path, "ls")
        assert f"{unaware.name}: nobody knows" in listed.stderr
        assert "nothing is held" not in listed.stderr
        assert listed.returncode == 1
        unaware.kill()
    finally:
        shop.close()


def test_signals_tell_receivers_in_the_process_where_it_happens(tmp_path: Path) -> None:
    app = Celery("signals", set_as_current=True)
    app.conf.update(atomiclock_url=f"sqlite:///{tmp_path}/locks.db", task_always_eager=True, task_eager_propagates=True)
    told: list[tuple[str, Any]] = []

    def hear(kind: str) -> Any:
        def receive(sender: str, **facts: Any) -> None:
            told.append((kind, facts.get("outcome")))
            assert sender == "heard"
            assert facts["name"] == "heard:1"

        return receive

    receivers = {kind: hear(kind) for kind in ("lock_acquired", "lock_busy", "lock_released")}
    for kind, receive in receivers.items():
        getattr(signals, kind).connect(receive)

    @app.task(name="heard")
    @exclusive("{x}", on_conflict="raise")
    def heard(x: int, deep: bool) -> None:
        if deep:
            with pytest.raises(LockBusy):
                heard(x, False)

    heard.delay(1, True)
    app.close()
    assert told == [("lock_acquired", None), ("lock_busy", "raised"), ("lock_released", None)]


def test_signals_tell_of_a_duplicate_and_of_a_store_that_fails_where_a_call_is_enqueued(tmp_path: Path) -> None:
    app = Celery("enqueuing", broker="memory://", set_as_current=False)
    app.conf.update(atomiclock_url=f"sqlite:///{tmp_path}/locks.db", task_default_queue="enqueuing")
    told: list[tuple[Any, ...]] = []

    def duplicate(sender: str, name: str, existing: str, **_: Any) -> None:
        told.append((sender, name, existing))

    def failed(sender: str, name: str, outcome: str, **_: Any) -> None:
        told.append((sender, name, outcome))

    signals.duplicate_enqueue.connect(duplicate)
    signals.backend_error.connect(failed)

    @app.task(name="once", base=LockedTask, unique=unique("{x}", ttl=60))
    def once(x: int) -> None: ...

    first = once.delay(1)
    assert once.delay(1).id == first.id
    app.conf.atomiclock_url = "redis://127.0.0.1:1/0"
    assert once.delay(1).id != first.id, "a call too many is found when it runs"
    app.close()
    assert told == [("once", "once:1", first.id), ("once", "once:1", "run")]
