"""The line of a process's waiters: first come first served, and a lock passed on is in exactly one hand."""

from __future__ import annotations

import sys
import threading
from functools import partial
from types import FrameType
from typing import Any

import pytest

from atomiclock import _line
from atomiclock._hold import HELD, RELEASED, Hold
from atomiclock._line import SPAN, TURNS, Lines
from atomiclock._options import Options
from atomiclock.errors import BackendUnavailable


class Bell:
    def __init__(self) -> None:
        self.rung = 0

    def open(self) -> None:
        self.rung += 1


class Hall:
    """Lines under a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines = Lines(threading.RLock(), lambda: self.now)
        self.count = 0

    def hold(self, **options: Any) -> Hold:
        self.count += 1
        return Hold("n", "n", f"owner {self.count}", f"token {self.count}", Options(**options))

    def holder(self, **options: Any) -> Hold:
        """A hold in front, that the store granted."""
        hold = self.hold(**options)
        assert self.lines.enter(hold, Bell) is None
        self.grant(hold)
        return hold

    def grant(self, hold: Hold) -> None:
        hold.sending(self.now)
        hold.granted(self.now, self.now, 5 << _line.FENCE_BITS, False)
        self.lines.followed(hold)

    def waiter(self, **options: Any) -> Any:
        ticket = self.lines.enter(self.hold(**options), Bell)
        assert ticket is not None
        return ticket

    def served(self, ticket: Any) -> bool:
        return self.lines.served(ticket, 0.0)


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_the_line_is_served_in_the_order_of_arrival(hall: Hall) -> None:
    front = hall.holder(renew=False)
    waiters = [hall.waiter() for _ in range(5)]
    for ticket in waiters:
        assert not hall.served(ticket)
        hall.lines.leave(front)
        assert hall.served(ticket)
        assert ticket.gate.rung == 1
        front = ticket.hold
    hall.lines.leave(front)
    assert hall.lines.enter(hall.hold(), Bell) is None, "an empty line is gone"


def test_who_withdraws_is_passed_over_and_leaves_nothing(hall: Hall) -> None:
    front = hall.holder(renew=False)
    first, second = hall.waiter(), hall.waiter()
    hall.lines.withdraw(first.hold)
    hall.lines.leave(front)
    assert not hall.served(first)
    assert hall.served(second)
    hall.lines.leave(second.hold)
    assert not hall.lines._lines


def test_a_lock_is_passed_on_with_a_fence_and_a_token_of_its_own(hall: Hall) -> None:
    front = hall.holder()
    first, second = hall.waiter(), hall.waiter()
    assert hall.lines.pass_on(front)
    got = first.hold
    assert (got.state, front.state) == (HELD, RELEASED)
    assert got.token == front.token, "the store knows it by this"
    assert got.grant != front.grant
    assert (got.fence or 0) == (front.fence or 0) + 1
    assert got.valid_until == front.valid_until or got.claimed
    assert not front.lingers
    assert hall.served(first)
    assert not hall.served(second)
    assert hall.lines.pass_on(got)
    assert hall.served(second)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"renew": False}, {}),
        ({}, {"renew": False}),
        ({"ttl": 10.0}, {}),
        ({"owner": "a"}, {"owner": "b"}),
        ({"owner": "a"}, {}),
        ({"handover": False}, {}),
        ({}, {"handover": False}),
    ],
)
def test_a_lock_is_not_passed_on_to_who_asked_for_another_kind(hall: Hall, mine: Any, theirs: Any) -> None:
    front = hall.holder(**mine)
    hall.waiter(**theirs)
    assert not hall.lines.pass_on(front)
    assert front.state == HELD


def test_a_lock_is_given_back_after_so_many_turns(hall: Hall) -> None:
    front = hall.holder()
    for turn in range(TURNS + 1):
        ticket = hall.waiter()
        assert hall.lines.pass_on(front) == (turn < TURNS)
        front = ticket.hold
    assert TURNS < 1 << _line.FENCE_BITS


def test_a_lock_is_given_back_after_so_much_time(hall: Hall) -> None:
    front, ticket = hall.holder(), hall.waiter()
    hall.now += SPAN + 0.001
    assert not hall.lines.pass_on(front)
    assert not hall.served(ticket)


def test_what_has_little_time_left_or_none_is_not_passed_on(hall: Hall) -> None:
    front = hall.holder(ttl=0.15)
    hall.waiter(ttl=0.15)
    hall.now += 0.09
    assert not hall.lines.pass_on(front)
    hall.now += 1
    assert not hall.lines.pass_on(front)


def test_who_comes_after_a_holder_that_is_over_asks_the_store(hall: Hall) -> None:
    hall.holder(renew=False, ttl=1.0)
    hall.now += 2
    assert hall.served(hall.waiter())


def test_those_behind_hear_that_the_store_did_not_answer(hall: Hall) -> None:
    front = hall.hold()
    assert hall.lines.enter(front, Bell) is None
    waiters = [hall.waiter() for _ in range(3)]
    hall.lines.fail(front, BackendUnavailable("silent"))
    for ticket in waiters:
        assert ticket.gate.rung == 1
        with pytest.raises(BackendUnavailable, match="silent") as raised:
            hall.served(ticket)
        assert raised.value.name == "n"


class Interrupted(BaseException):
    pass


def interrupted_at(step: int, work: Any) -> bool:
    """Run `work`, raising in its `step`th line. False if it has fewer."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in (_line.__file__, sys.modules[Hold.__module__].__file__):
            return None
        if event == "line":
            seen += 1
            if seen == step:
                sys.settrace(None)
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        work()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
    return False


def test_an_interrupt_at_any_line_leaves_the_lock_in_exactly_one_hand() -> None:
    step = 0
    while True:
        step += 1
        hall = Hall()
        front, ticket = hall.holder(), hall.waiter(max_hold=7.0)
        if not interrupted_at(step, partial(hall.lines.pass_on, front)):
            break
        passed = hall.lines.passed(front)  # as the manager does before it takes back
        assert ticket.hold.renew_until == (hall.now if passed else 0) + 7, f"step {step}"
        assert passed == (ticket.hold.state == HELD), f"step {step}"
        assert passed == (front.state == RELEASED), f"step {step}"
        if not passed:
            hall.lines.leave(front)
        assert hall.served(ticket), f"step {step}"
        hall.lines.leave(ticket.hold)
        assert not hall.lines._lines, f"step {step}"
    assert step > 20


def test_without_completing_an_interrupt_leaves_two_holders_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "passed", lambda self, hold: hold.state == RELEASED)
    with pytest.raises(AssertionError):
        test_an_interrupt_at_any_line_leaves_the_lock_in_exactly_one_hand()


def test_who_waits_sees_that_a_departure_was_interrupted() -> None:
    step = 0
    while True:
        step += 1
        hall = Hall()
        front, first = hall.holder(renew=False), hall.waiter()
        front.begin_release(hall.now)
        front.released(True, False)
        if not interrupted_at(step, partial(hall.lines.leave, front)):
            break
        assert hall.served(first), f"step {step}: and nobody else comes"
        hall.lines.leave(first.hold)
        assert not hall.lines._lines, f"step {step}"


def test_an_interrupted_departure_is_made_up_for() -> None:
    step = 0
    while True:
        step += 1
        hall = Hall()
        front, first = hall.holder(renew=False), hall.waiter()
        if not interrupted_at(step, partial(hall.lines.leave, front)):
            break
        hall.lines.leave(front)
        assert hall.served(first), f"step {step}"
        hall.lines.leave(first.hold)
        assert not hall.lines._lines, f"step {step}"


def test_two_threads_that_release_the_same_leave_the_line_of_others_alone() -> None:
    hall = Hall()
    front, second = hall.holder(renew=False), hall.hold()
    behind: list[Any] = []

    def first_of_the_two() -> None:
        hall.lines.leave(front)
        assert hall.lines.enter(second, Bell) is None
        behind.append(hall.waiter())

    hall.lines._mutex = Meanwhile(first_of_the_two)
    hall.lines.leave(front)
    hall.lines.leave(second)
    assert hall.served(behind[0]), "else it waits for ever"


class Meanwhile:
    """A mutex for which, the first time, another thread is quicker."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def __enter__(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work()

    def __exit__(self, *_: object) -> None:
        pass
