"""The queue of the lock file: a release offers the lock to who is first, and whoever does not come is passed over."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from atomiclock import _process
from atomiclock.backends import Add, Busy, Granted, Remove, Unknown, Wait, verbs_of
from atomiclock.backends import sqlite as adapter
from atomiclock.backends._identity import identity
from atomiclock.backends._sqlite_io import Listening, Mailbox


class Queue:
    """A lock file, and who of us holds and waits for one lock in it, by the adapter's own verbs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backend = adapter.SQLiteBackend(str(path))
        self.channel = self.backend.channel()
        self.notes: dict[str, dict[str, Any]] = {}
        self.mailboxes: dict[str, Mailbox] = {}

    def perform(self, ask: Any) -> Any:
        steps, value = verbs_of(self.backend)[type(ask)](ask), None
        while True:
            try:
                request = steps.send(value)
            except StopIteration as done:
                return done.value
            value = self.reply(request, ask)

    def reply(self, request: Any, ask: Any) -> Any:
        if not isinstance(request, Listening):
            return self.channel.call(request, ask.deadline)
        box = self.mailboxes[ask.token]
        self.watched = self.channel.call(lambda db: request.register(db, box.port, box.cookie), ask.deadline)
        return box.rung()

    def add(self, token: str, outlives: bool = False) -> Granted | Busy:
        notes = self.notes.setdefault(token, {})
        answer = self.perform(Add("x", token, 30.0, token, True, _process.clock() + 5, notes, outlives))
        assert isinstance(answer, (Granted, Busy))
        return answer

    def wait(self, token: str) -> None:
        """Register; nobody sleeps here."""
        box = self.mailboxes.get(token)
        if box is None:
            box = self.mailboxes[token] = Mailbox()
        now = _process.clock()
        since = float(list(self.mailboxes).index(token))
        self.perform(Wait("x", token, since, now, True, now + 5, self.notes.setdefault(token, {})))

    def remove(self, token: str) -> bool:
        return bool(self.perform(Remove("x", token, 0, _process.clock() + 5, self.notes.setdefault(token, {}))))

    def query(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            return [row[0] for row in db.execute(statement).fetchall()]

    @property
    def owner(self) -> list[Any]:
        return self.query("SELECT token FROM locks")

    @property
    def waiting(self) -> list[Any]:
        return self.query("SELECT token FROM waiters ORDER BY since")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """`a` holds the lock; `b` and `c` wait for it, in that order."""
    queue = Queue(tmp_path / "locks.db")
    assert isinstance(queue.add("a"), Granted)
    for token in ("b", "c"):
        assert isinstance(queue.add(token), Busy)
        queue.wait(token)
    yield queue
    queue.channel.close()
    for box in queue.mailboxes.values():
        box.sock.close()


def test_a_release_offers_the_lock_to_who_is_first_for_a_moment(queue: Queue) -> None:
    before = _process.clock()
    assert queue.remove("a")
    assert (queue.owner, queue.waiting) == (["b"], ["c"])
    (expires,) = queue.query("SELECT expires FROM locks")
    assert before < expires <= _process.clock() + adapter.GRACE
    assert (queue.mailboxes["b"].rung(), queue.mailboxes["c"].rung()) == (True, False)


@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("rung", [True, False])
def test_who_comes_has_it_for_the_whole_ttl(
    queue: Queue, rung: bool, returning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "RETURNING", returning and adapter.RETURNING)
    (old,) = queue.query("SELECT fence FROM locks")
    queue.remove("a")
    if rung:
        queue.wait("b")  # that hears the bell
    before = _process.clock()
    answer = queue.add("b")
    assert isinstance(answer, Granted)
    assert (answer.fence or 0) > old
    assert queue.query("SELECT owner FROM locks") == [b"b"]
    assert queue.query("SELECT expires FROM locks")[0] >= before + 30
    assert (queue.owner, queue.waiting) == (["b"], ["c"])


def test_who_is_to_outlive_its_process_does_so_from_when_it_comes(queue: Queue) -> None:
    queue.remove("a")
    assert queue.query("SELECT space FROM locks") == [identity().space], "nobody would notice that it has died"
    assert isinstance(queue.add("b", outlives=True), Granted)
    assert queue.query("SELECT space FROM locks") == [adapter.UNKNOWN_SPACE]


def test_who_does_not_come_is_passed_over(queue: Queue) -> None:
    queue.remove("a")
    assert isinstance(queue.add("c"), Busy)
    time.sleep(adapter.GRACE + 0.01)
    assert isinstance(queue.add("c"), Granted)
    assert isinstance(queue.add("b"), Busy), "it came too late"
    assert (queue.owner, queue.waiting) == (["c"], [])


def test_who_comes_late_has_it_all_the_same_if_nobody_took_it(queue: Queue) -> None:
    queue.remove("a")
    time.sleep(adapter.GRACE + 0.01)
    assert isinstance(queue.add("b"), Granted)


def test_who_gives_up_when_it_is_offered_the_lock_hands_it_on(queue: Queue) -> None:
    queue.remove("a")
    assert queue.remove("b")
    assert (queue.owner, queue.waiting) == (["c"], [])
    assert queue.mailboxes["c"].rung()


def test_who_gives_up_before_leaves_the_queue(queue: Queue) -> None:
    assert not queue.remove("b")
    queue.remove("a")
    assert (queue.owner, queue.waiting) == (["c"], [])


def test_who_is_offered_the_lock_while_it_looked_around_does_not_wait_for_itself(queue: Queue) -> None:
    """1. `b` looks, and finds `a`. 2. `a` releases. 3. `b` registers again, and must not stay in the queue."""
    assert isinstance(queue.add("b"), Busy)
    queue.remove("a")
    queue.wait("b")
    assert queue.watched is None, "there is nobody to wait for"
    assert queue.waiting == ["c"]
    assert isinstance(queue.add("b"), Granted)


def test_who_is_not_there_is_forgotten_at_once(queue: Queue) -> None:
    queue.mailboxes["b"].sock.close()
    queue.remove("a")
    assert (queue.owner, queue.waiting) == (["c"], [])


def test_a_lock_that_another_has_is_neither_removed_nor_offered(queue: Queue) -> None:
    assert not queue.remove("stranger")
    assert (queue.owner, queue.waiting) == (["a"], ["b", "c"])


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_release_that_is_interrupted_while_it_writes_has_done_nothing(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_insert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        queue.remove("a")
    monkeypatch.undo()
    assert (queue.owner, queue.waiting) == (["a"], ["b", "c"])
    assert queue.remove("a")
    assert (queue.owner, queue.waiting) == (["b"], ["c"])


def test_a_release_that_is_interrupted_before_it_rings_does_so_when_it_is_repeated(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "ring", interrupted)
    with pytest.raises(KeyboardInterrupt):
        queue.remove("a")
    monkeypatch.undo()
    assert queue.owner == ["b"]
    assert not queue.mailboxes["b"].rung()
    assert queue.remove("a"), "it was, by the one before"
    assert queue.mailboxes["b"].rung()
    assert (queue.owner, queue.waiting) == (["b"], ["c"])


def test_who_is_not_heard_but_has_come_keeps_it(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked around just when it was offered the lock, and had no mailbox then."""

    def comes_first(*_: object) -> bool:
        monkeypatch.undo()
        assert isinstance(queue.add("b"), Granted)
        return False

    monkeypatch.setattr(adapter, "ring", comes_first)
    assert queue.remove("a")
    assert (queue.owner, queue.waiting) == (["b"], ["c"])


def test_a_release_is_known_to_have_happened_though_the_file_is_busy_when_the_first_is_not_there(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. `a` is removed, and the lock offered to `b`. 2. It is not there, and the file is busy. 3. It is repeated."""
    queue.mailboxes["b"].sock.close()

    def busy(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(adapter, "_offer_to_next", busy)
    with pytest.raises(Unknown) as caught:
        queue.perform(Remove("x", "a", 0, _process.clock() + 0.1, queue.notes["a"]))
    assert not caught.value.sent
    monkeypatch.undo()
    assert queue.remove("a"), "else its holder would hear that it was lost"
    assert (queue.owner, queue.waiting) == (["c"], [])
    assert queue.mailboxes["c"].rung()


def test_a_release_that_is_interrupted_before_it_rings_the_second_does_so_when_it_is_repeated(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.mailboxes["b"].sock.close()
    ring = adapter.ring

    def once(*of: Any) -> bool:
        monkeypatch.setattr(adapter, "ring", interrupted)
        return ring(*of)

    monkeypatch.setattr(adapter, "ring", once)
    with pytest.raises(KeyboardInterrupt):
        queue.remove("a")
    monkeypatch.undo()
    assert (queue.owner, queue.waiting) == (["c"], [])
    queue.remove("a")
    assert queue.mailboxes["c"].rung()
