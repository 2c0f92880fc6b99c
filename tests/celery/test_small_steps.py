"""Steps between which a process may die: what a mark says meanwhile, and what the main process remembers."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import Ignore
from celery.signals import task_postrun

from atomiclock import LockManager
from atomiclock.celery import LockedTask, exclusive
from atomiclock.celery._board import Board
from atomiclock.celery._conflicts import Where
from atomiclock.celery._done import Done
from atomiclock.celery._marks import Mark
from atomiclock.celery._names import is_own
from atomiclock.celery._rules import Rules
from atomiclock.celery._runner import Attempt, Call
from atomiclock.celery._supervisor import Supervisor


def test_a_message_is_done_only_when_its_result_is_stored(tmp_path: Path) -> None:
    locks = LockManager(f"sqlite:///{tmp_path}/locks.db")
    app = Celery("done", set_as_current=False)
    done = Done(Mark(locks, "done", "task:1:0", None, "1", "host"), 5.0, app.conf)
    other = Done(Mark(locks, "done", "task:1:1", None, "1", "host"), 5.0, app.conf)
    assert done.state() == "none"
    done.put("1")
    assert done.state() == "ending", "whoever comes now waits, and runs it again if no result follows"
    task_postrun.send(sender=None, task_id="1", task=None, args=(), kwargs={}, retval=None, state="SUCCESS")
    assert done.state() == "done"
    assert other.state() == "none", "the next attempt of the same task is another matter"
    app.close()
    locks.close()


def test_the_main_process_forgets_what_is_released_and_frees_what_is_left(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/locks.db"
    locks, board = LockManager(url), Board()
    supervisor = Supervisor(board)
    kept, left = locks.acquire("kept", timeout=0), locks.acquire("left", timeout=0)
    facts = {"url": url, "namespace": None, "task": "t", "id": "1", "ttl": 30.0, "until": None, "seat": None}
    for lease in (kept, left):
        board.tell(say="try", token=lease.token, name=lease.name, **facts)
    supervisor._step(0)
    assert {row["name"] for row in supervisor.held()} == {"kept", "left"}
    assert list(supervisor._children) == [os.getpid()]
    board.tell(say="gone", token=kept.token)
    board.tell(say="left", token=left.token)
    supervisor._step(0)
    assert not supervisor.leases
    assert locks.holder("kept") is not None, "it was told that this one is seen to"
    assert locks.holder("left") is None
    supervisor._forget(os.getpid())
    kept.release()
    locks.close()
    board.close()


def test_the_main_process_counts_max_hold_from_the_grant(tmp_path: Path) -> None:
    board = Board()
    supervisor = Supervisor(board)
    facts = {"url": f"sqlite:///{tmp_path}/locks.db", "namespace": None, "task": "t", "id": "1", "ttl": 30.0}
    board.tell(say="try", token="a", name="x", seat=None, until=100.0, **facts)
    board.tell(say="got", token="a", until=160.0)
    board.tell(say="got", token="another", until=1.0)
    supervisor._step(0)
    assert {token: told.until for token, told in supervisor.leases.items()} == {"a": 160.0}
    supervisor._forget(os.getpid())
    board.close()


@pytest.mark.parametrize("store", ["sqlite", "redis", "memcached", "etcd"])
def test_a_mark_is_its_messages_own_whichever_process_asks(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    url = f"sqlite:///{tmp_path}/locks.db" if store == "sqlite" else request.getfixturevalue(f"{store}_server").url

    def mark(task_id: str) -> Mark:
        return Mark(LockManager(url), "next", "task:key", None, task_id, "host")

    for ttl in (5, 5, 20):
        assert mark("1").put(ttl) is None, "it is ours already"
    found = mark("2").found()
    assert found is not None
    assert found.remaining is not None
    assert found.remaining > 10
    assert is_own(mark("2").put(5), "1")
    assert not mark("2").remove()
    assert mark("1").remove()
    assert not mark("1").remove()
    assert mark("2").put(5) is None


def test_marks_lie_beside_the_locks_that_they_belong_to(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/locks.db"
    places = [(f"{url}?namespace=shop", None), (url, "market"), (f"{url}?namespace=shop", "market"), (url, None)]
    marks = [Mark(LockManager(where), "next", "task:key", namespace, "1", "host") for where, namespace in places]
    assert [mark.put(30) for mark in marks] == [None] * 4
    assert [mark.remove() for mark in marks] == [True, True, False, True], "the third is the second"


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken by another call"])
def test_a_delivery_that_comes_just_as_the_first_one_ends_runs_nothing_and_skips_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    url = f"sqlite:///{tmp_path}/locks.db"
    app = Celery("twice", set_as_current=False)
    app.conf.atomiclock_url = url

    @app.task(name="twice", acks_late=True)
    def twice() -> None: ...

    request = Context(id="1", retries=0, hostname="h", headers={}, delivery_info={"redelivered": True})
    body = pytest.fail
    attempt = Attempt(Call(twice, "twice", "twice:x", Where.WORKER, request, body), Rules(url=url))
    acquire = attempt.manager._acquire
    others = LockManager(url)

    def the_first_one_ends(hold: Any, timeout: Any) -> Any:
        monkeypatch.setattr(attempt.manager, "_acquire", acquire)
        attempt.earlier().put("1")
        task_postrun.send(sender=None, task_id="1", task=None, args=(), kwargs={}, retval=None, state="SUCCESS")
        held.append(others.acquire("twice:x", timeout=0) if taken else None)
        return acquire(hold, timeout)

    held: list[Any] = []
    monkeypatch.setattr(attempt.manager, "_acquire", the_first_one_ends)
    with pytest.raises(Ignore, match="an earlier delivery of this message has done it"):
        attempt.lease()
    assert len(held) == 1
    if taken:
        held[0].release()
    assert others.holder("twice:x") is None
    others.close()
    app.close()


def test_the_rules_of_one_call_travel_in_its_header_whatever_the_base() -> None:
    app = Celery("rules", broker="memory://", set_as_current=False)
    app.conf.task_default_queue = f"rules-{uuid.uuid4().hex}"  # kombu's memory is one for the process
    rules = {"on_conflict": "raise"}

    @app.task(name="plain")
    @exclusive("{x}")
    def plain(x: int) -> int:
        return x

    @app.task(name="locked", base=LockedTask, lock=exclusive("{x}", url="memory://rules"), bind=True)
    def locked(self: Any, x: int) -> Any:
        return self.request.headers["atomiclock"]

    with app.connection() as connection, connection.SimpleQueue(app.conf.task_default_queue) as queue:
        for task in (plain, locked):
            task.apply_async((1,), lock=rules)
            message = queue.get(timeout=5)
            assert message.headers["atomiclock"] == rules
            assert "lock" not in message.properties
            message.ack()
    assert locked.apply((1,), lock=rules).get() == rules
    app.close()
