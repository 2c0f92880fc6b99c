"""Two processes that share a lock's token or a call's id, step by step: what one says or does just before the other."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Retry
from servers import wait_until

from atomiclock import BackendUnavailable, ConfigurationError, LockManager, observe
from atomiclock.backends import Extend, Peek, Remove, Unknown
from atomiclock.celery import LockBusy, exclusive
from atomiclock.celery._board import Board
from atomiclock.celery._conflicts import Where
from atomiclock.celery._done import Done
from atomiclock.celery._keeping import decide_later, token_in
from atomiclock.celery._marks import Mark
from atomiclock.celery._report import reporter
from atomiclock.celery._rules import HEADER, STATE, Rules
from atomiclock.celery._runner import Attempt, Call, run
from atomiclock.celery._supervisor import Supervisor


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/locks.db"


@pytest.fixture
def app(url: str) -> Iterator[Celery]:
    app = Celery("between", broker="memory://", set_as_current=False)
    app.conf.update(atomiclock_url=url, task_default_queue=url)
    app.task(name="t", acks_late=True)(_nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Celery gives each app the tasks of all others, and other tests have namesakes
        app.finalize()
    yield app
    app.close()


def _nothing() -> None: ...


def call(app: Celery, body: Callable[[], Any], state: dict[str, Any] | None = None, retries: int = 0) -> Call:
    """A delivery of the message 1."""
    headers = {} if state is None else {STATE: state}
    request = Context(id="1", retries=retries, hostname="h", headers=headers, delivery_info={}, args=(), kwargs={})
    return Call(app.tasks["t"], "t", "t:x", Where.WORKER, request, body)


def retried(app: Celery, rules: Rules) -> dict[str, Any]:
    """The state that the next attempt is given, of one that has ended with a retry. Celery has not said so yet."""

    def body() -> None:
        raise Retry(when=20)

    first = call(app, body)
    with pytest.raises(Retry):
        run(first, rules)
    return dict(first.request.headers[STATE])


def say_retried(app: Celery) -> None:
    signals.task_retry.send(sender=app.tasks["t"], request=Context(id="1"), reason=Retry(when=20), einfo=None)


# A lock that is handed on from one process to the next


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """Of a worker whose children are played by this process."""
    board = Board()
    monkeypatch.setattr(Board, "in_child", True)
    monkeypatch.setattr(reporter, "board", board)
    supervisor = Supervisor(board)
    yield supervisor
    for pid in list(supervisor._children):
        supervisor._forget(pid)
    board.close()


def test_a_lock_that_was_handed_on_is_supervised_for_who_has_it_now(
    app: Celery, url: str, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt may begin in another child before the first one has said all that it has to say."""
    rules = Rules(url=url, hold_on_retry=True)
    state, put, next_ones = retried(app, rules), Mark.put, []

    def put_and_pause(mark: Mark, ttl: float) -> Any:
        answer = put(mark, ttl)
        next_ones.append(Attempt(call(app, _nothing, dict(state), retries=1), rules).lease())
        return answer

    monkeypatch.setattr(Mark, "put", put_and_pause)
    say_retried(app)
    [lease] = next_ones
    assert f"{lease.token}:1" == state["kept"]
    supervisor._step(0)
    assert list(supervisor.leases) == [lease.token], "else nobody frees it if its process is killed"
    lease.release()


@pytest.mark.parametrize("seated", [True, False])
def test_a_lock_is_not_handed_on_by_a_child_that_cannot_say_so(
    app: Celery, url: str, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, seated: bool
) -> None:
    """The main process would go on to renew it, and at the child's death it would free what is another's."""
    monkeypatch.setattr("atomiclock.celery._supply.seat_number", lambda: 0 if seated else None)
    rules, tell = Rules(url=url, hold_on_retry=True), Board.tell
    state = retried(app, rules)
    monkeypatch.setattr(Board, "tell", lambda board, **facts: facts["say"] != "gone" and tell(board, **facts))
    say_retried(app)
    supervisor._step(0)
    told = supervisor.leases[token_in(state["kept"])]
    seat = supervisor.board.seat(told.seat)
    assert (seat is not None) is seated
    assert seat is None or seat.own(told.token) == float("-inf"), "so it is not renewed"
    with pytest.raises(Ignore):
        Attempt(call(app, _nothing, dict(state), retries=1), rules).lease()


def test_what_could_not_be_taken_over_is_removed_as_soon_as_the_store_answers(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = LockManager(url)
    for deaf in (Peek, Extend):
        locks, token = LockManager(url), "ab" * 16
        locks._acquire(locks._adopt("x", token, {"ttl": 60, "renew": False}), 0)._hold.released(False, False)
        perform, broken = locks._store.perform, threading.Event()
        broken.set()

        def fail(ask: Any, deaf: Any = deaf, broken: Any = broken, perform: Any = perform) -> Any:
            if broken.is_set() and isinstance(ask, (deaf, Remove)):
                raise Unknown("no answer")
            return perform(ask)

        monkeypatch.setattr(locks._store, "perform", fail)
        with pytest.raises(BackendUnavailable, match="take over"):
            locks._take_over(locks._adopt("x", token, {"ttl": 60}))
        assert others.holder("x") is not None
        broken.clear()
        wait_until(lambda: others.holder("x") is None, 5, "it is free")
        locks.close()
    others.close()


def test_a_short_time_for_which_a_lock_is_left_standing_is_no_loss(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    locks, lost = LockManager(url), []
    lease = locks.acquire("x", timeout=0, on_lost=lost.append)
    extend = locks._extend

    def and_pause(hold: Any, seconds: Any) -> None:
        try:
            extend(hold, seconds)
        finally:
            time.sleep(0.3)  # the thread that keeps leases has all the time to look

    monkeypatch.setattr(locks, "_extend", and_pause)
    locks._leave_standing(lease._hold, 1e-5)
    assert not lost
    assert not lease.lost
    locks.close()


def test_a_countdown_longer_than_a_store_can_keep_is_kept_as_long_as_it_can(
    app: Celery, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Rules(url=url, hold_on_retry=True)
    attempt = Attempt(call(app, _nothing), rules)
    backend = attempt.manager._core.backend
    monkeypatch.setattr(backend, "traits", backend.traits._replace(longest_ttl=40.0))
    state = retried(app, rules)
    say_retried(app)
    with LockManager(url) as others:
        held = others.holder("t:x")
        assert held is not None
        assert held.remaining is not None
        assert 30 < held.remaining <= 40
    lease = Attempt(call(app, _nothing, state, retries=1), rules).lease()
    assert f"{lease.token}:1" == state["kept"]
    lease.release()


# The place of the call that waits


def word(*words: str) -> Callable[[Any], str]:
    """An `on_conflict` that says one after the other."""
    rest = list(words)
    return lambda _: rest.pop(0)


def test_a_call_that_waits_no_more_leaves_its_place_whatever_it_does_instead(app: Celery, url: str) -> None:
    """Else the next ones skip, in favour of nobody, and what has changed is never worked on."""
    others = LockManager(url)
    held = others.acquire("t:x", timeout=0)
    for last, ends in (("raise", LockBusy), ("skip", None), ("retry", LockBusy)):
        rules = Rules(url=url, on_conflict=word("coalesce", last), give_up=0)
        with pytest.raises(Ignore):
            run(waits := call(app, pytest.fail), rules)
        mark = Attempt(waits, rules).waiting()
        assert mark.found() is not None
        again = call(app, pytest.fail, {"waits": True, "since": 0.0, "tries": 1})
        if ends is None:
            assert run(again, rules) is None
        else:
            with pytest.raises(ends):
                run(again, rules)
        assert mark.found() is None, last
    held.release()
    others.close()


@pytest.mark.parametrize("outcome", ["raise", "run"])
def test_a_call_that_waits_and_meets_a_store_that_fails_once_leaves_its_place(
    app: Celery, url: str, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    seen, rules = [], Rules(url=url, on_conflict="coalesce", on_backend_error=outcome)
    again = call(app, lambda: seen.append(mark.found()), {"waits": True, "tries": 1})
    attempt = Attempt(again, rules)
    mark = attempt.waiting()
    mark.put(30)

    def fail(*_: Any) -> None:
        monkeypatch.undo()
        raise BackendUnavailable("no answer")

    monkeypatch.setattr(attempt.manager, "_acquire", fail)
    if outcome == "raise":
        with pytest.raises(BackendUnavailable):
            run(again, rules)
        assert mark.found() is None
    else:
        run(again, rules)
        assert seen == [None]


def test_a_call_that_waits_by_its_header_alone_and_is_revoked_leaves_its_place(app: Celery, url: str) -> None:
    @app.task(name="mostly_skips")
    @exclusive("{x}", on_conflict="skip")
    def mostly_skips(x: int) -> None: ...

    mark = Mark(LockManager(url), "next", "mostly_skips:7", None, "1", "h")
    mark.put(30)
    headers = {HEADER: {"on_conflict": "coalesce"}, STATE: {"waits": True}}
    request = Context(id="1", args=[7], kwargs={}, headers=headers)
    task = app.tasks["mostly_skips"]
    signals.task_revoked.send(sender=task, request=request, terminated=False, signum=None, expired=False)
    assert mark.found() is None


def test_a_mark_that_ends_by_itself_is_no_loss_to_those_who_observe(url: str, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []
    stop = observe(events.append)
    mark = Mark(LockManager(url), "done", "t:1:0", None, "1", "h")
    mark.put(0.2)
    wait_until(lambda: mark.found() is None, 5, "it has ended")
    time.sleep(0.1)
    stop()
    assert [event.kind for event in events] == ["acquired", "released"]
    assert "lost" not in caplog.text


# What Celery says of one delivery


def test_a_message_whose_result_could_not_be_stored_is_not_done(app: Celery, url: str) -> None:
    """A second delivery would leave the result alone, and whoever waits for it would wait for ever."""

    @app.task(name="stored", acks_late=True)
    @exclusive("x", ttl=5)
    def stored() -> int:
        return 1

    def down(*_: Any, **__: Any) -> None:
        raise ConnectionError("the result store is down")

    first, second = (Done(Mark(LockManager(url), "done", f"stored:{n}:0", None, n, "h"), 5.0, app.conf) for n in "12")
    stored.backend.mark_as_done = down
    stored.backend.mark_as_failure = lambda *_, **__: None
    request = {"retries": 0, "hostname": "h", "delivery_info": {}, "is_eager": False}
    with pytest.warns(RuntimeWarning, match="result store"):
        build_tracer("stored", stored, app=app)("1", (), {}, {**request, "id": "1"})
    assert first.state() == "ending", "whoever comes now runs it again when that is over"
    del stored.backend.mark_as_done
    build_tracer("stored", stored, app=app)("2", (), {}, {**request, "id": "2"})
    assert second.state() == "done"


def elsewhere(say: Callable[[], Any]) -> None:
    thread = threading.Thread(target=say)
    thread.start()
    thread.join()


def test_the_end_of_another_delivery_in_another_thread_decides_nothing(app: Celery, url: str) -> None:
    """It is put back, while the first one is on its way from its body's end to its result."""
    facts: dict[str, Any] = {"task_id": "1", "task": None, "args": (), "kwargs": {}, "retval": None, "state": "IGNORED"}
    done = Done(Mark(LockManager(url), "done", "t:1:0", None, "1", "h"), 5.0, app.conf)
    settled: list[BaseException] = []
    done.put("1")
    decide_later("1", settled.append, error := ValueError())
    elsewhere(lambda: signals.task_postrun.send(sender=None, **facts))
    assert not settled
    assert done.state() == "ending"
    signals.task_postrun.send(sender=None, **facts)
    assert settled == [error]
    assert done.state() == "done"


# Rules that come from several places


def test_a_min_hold_beyond_max_hold_is_refused_wherever_the_two_come_from() -> None:
    app = Celery("contradiction", set_as_current=False)
    app.conf.atomiclock_min_hold = 9
    lock, request = exclusive("x", min_hold=3, max_hold=5), Context(headers={HEADER: {"min_hold": 6}})
    with pytest.raises(ConfigurationError, match="the call's header: min_hold=6 is longer than max_hold=5"):
        lock.rules(app.conf, request)
    assert lock.rules(app.conf, None).min_hold == 3
    with pytest.raises(ConfigurationError, match="min_hold=9 is longer than max_hold=5"):
        exclusive("x", max_hold=5).rules(app.conf, None)
    app.close()
