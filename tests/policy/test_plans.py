"""The plans one by one, with scripted answers and a clock that moves only when told."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from atomiclock._hold import HELD, LOST, RELEASED, RELEASING, Hold, margin
from atomiclock._keep import Book, Idle, On, Tell, keep
from atomiclock._options import Options
from atomiclock._plans import Patience, Sleep, Terms, abandon, acquire, extend, release
from atomiclock.backends import Add, Busy, Extend, Granted, Remove, Unknown, Wait
from atomiclock.errors import BackendRefused, BackendUnavailable, LockLost, LockTimeout, NotHeld


class Script:
    """Performs a plan: each ask is answered by the next line of the script, and time passes as it says."""

    def __init__(self, *lines: Any) -> None:
        self.now = 1000.0
        self.lines = list(lines)
        self.asked: list[Any] = []
        self.terms = Terms(lambda: self.now, lambda: 0.5, 1.5)

    def hold(self, **options: Any) -> Hold:
        return Hold("n", "n", "me", "token", Options(**options))

    def held(self, **options: Any) -> Hold:
        hold = self.hold(**options)
        hold.sending(self.now)
        assert hold.granted(self.now, self.now, 7, False)
        return hold

    def run(self, plan: Any) -> Any:
        step: Callable[[Any], Any] = plan.send
        value: Any = None
        while True:
            try:
                ask = step(value)
            except StopIteration as end:
                return end.value
            self.asked.append(ask)
            if isinstance(ask, Idle) and ask.until == math.inf:
                return None
            step, value = plan.send, None
            if isinstance(ask, (Sleep, Idle)):
                self.now = max(self.now, ask.until)
            if isinstance(ask, (Sleep, Idle, Tell)):
                continue
            took, value = self.lines.pop(0)
            if isinstance(ask, Wait):  # whatever the store does, the channel is back by then
                took = min(took, ask.deadline - self.now)
            self.now += took
            if isinstance(value, BaseException):
                step = plan.throw


def lost(**facts: Any) -> Unknown:
    return Unknown("no answer", **facts)


def test_validity_counts_from_before_the_request_left() -> None:
    script = Script((0.4, Granted(7)))
    hold = script.hold(ttl=10.0)
    script.run(acquire(hold, 5.0, script.terms))
    assert hold.state == HELD
    assert hold.valid_until == 1000.0 + 10.0 - margin(10.0)


def test_a_grant_that_is_over_when_it_arrives_is_not_reported() -> None:
    script = Script((1.2, Granted(7)))
    hold = script.hold(ttl=1.0)
    with pytest.raises(BackendUnavailable, match="when the ttl of 1 s was over"):
        script.run(acquire(hold, 0, script.terms))
    assert hold.lingers


def test_a_lost_answer_is_asked_for_again_with_the_same_token() -> None:
    script = Script((1.0, lost()), (0.1, Granted(7, repeated=True)))
    hold = script.hold()
    script.run(acquire(hold, 5.0, script.terms))
    assert [ask.token for ask in script.asked if isinstance(ask, Add)] == ["token", "token"]
    assert hold.in_flight == 0


def test_an_add_that_may_still_be_on_its_way_is_remembered_in_the_lease() -> None:
    script = Script((1.0, lost()), (0.1, Granted(7)), (0.0, True))
    hold = script.hold()
    script.run(acquire(hold, 5.0, script.terms))
    script.run(release(hold, script.terms))
    assert script.asked[-1].in_flight == 2  # the one that was granted, and the one that is still under way


def test_one_attempt_is_one_attempt() -> None:
    script = Script((0.1, Busy(9.0, "bob")))
    with pytest.raises(LockTimeout, match="held by bob") as caught:
        script.run(acquire(script.hold(), 0, script.terms))
    assert len(script.asked) == 1
    assert caught.value.owner == "bob"


def test_a_pooled_connection_that_was_closed_does_not_spend_the_only_attempt() -> None:
    script = Script((0.0, lost(fresh=False)), (0.0, Granted(1)))
    script.run(acquire(script.hold(), 0, script.terms))
    assert len(script.asked) == 2


def test_waiting_is_one_total_deadline() -> None:
    script = Script(*[(0.05, Busy(60.0)), (0.9, None)] * 3)
    with pytest.raises(LockTimeout) as caught:
        script.run(acquire(script.hold(), 2.0, script.terms))
    assert 1.7 <= script.now - 1000.0 <= 2.01
    assert caught.value.waited == script.now - 1000.0


def test_who_wakes_late_after_a_slow_first_answer_is_not_told_no_before_its_time() -> None:
    """The first request had to connect, and the machine is busy."""
    script = Script((0.3, Busy(60.0)), (1.4, None), (0.01, Busy(60.0)), (0.288, None), (0.0, Busy(60.0)))
    with pytest.raises(LockTimeout):
        script.run(acquire(script.hold(), 2.0, script.terms))
    assert [type(ask) for ask in script.asked] == [Add, Wait, Add, Wait, Add, Sleep]
    assert script.now == 1002.0


def test_a_slow_first_answer_takes_no_more_than_a_quarter_of_what_is_left_from_the_wait() -> None:
    """It had to connect: were it held to be the rule, the lock would be free at 0.9 s and nobody would look."""
    script = Script((0.6, Busy(60.0)), (0.3, None), (0.001, Granted(1)))
    script.run(acquire(script.hold(), 1.0, script.terms))
    assert script.asked[1].until == pytest.approx(1000.0 + 0.6 + 0.3 - 0.005)


def test_who_is_woken_with_hardly_any_time_left_asks_all_the_same() -> None:
    """On a store that keeps a queue it is his: to sit out the rest would keep it from those behind."""
    script = Script((0.3, Busy(60.0)), (0.69, None), (0.005, Granted(1)))
    hold = script.hold()
    script.run(acquire(hold, 1.0, script.terms))
    assert hold.state == HELD


def test_a_waiter_asks_again_when_the_holder_must_be_over() -> None:
    script = Script((0.0, Busy(1.5)), (1.5, None), (0.0, Granted(1)))
    script.run(acquire(script.hold(), None, script.terms))
    wait = script.asked[1]
    assert isinstance(wait, Wait)
    assert 1001.5 <= wait.until <= 1001.51


def test_a_store_that_does_not_answer_is_unavailable_within_the_timeout_and_never_busy() -> None:
    script = Script((0.05, Busy(60.0)), *[(0.4, lost())] * 9)
    with pytest.raises(BackendUnavailable):
        script.run(acquire(script.hold(), 2.0, script.terms))
    assert script.now <= 1002.41


def test_without_a_timeout_an_unreachable_store_is_given_up_after_one_bound() -> None:
    script = Script(*[(0.01, lost(sent=False))] * 99)
    hold = script.hold()
    with pytest.raises(BackendUnavailable):
        script.run(acquire(hold, None, script.terms))
    assert 1002.0 <= script.now <= 1003.1
    assert not hold.lingers


def test_a_refusal_is_reported_at_once_and_leaves_nothing() -> None:
    script = Script((0.0, BackendRefused("wrong password")))
    hold = script.hold()
    with pytest.raises(BackendRefused):
        script.run(acquire(hold, None, script.terms))
    assert not hold.lingers


def test_an_interrupt_leaves_the_attempt_to_be_taken_back() -> None:
    script = Script((0.0, KeyboardInterrupt()), (0.0, True))
    hold = script.hold()
    with pytest.raises(KeyboardInterrupt):
        script.run(acquire(hold, None, script.terms))
    assert script.run(abandon(hold, script.now + 1, script.terms))
    assert script.asked[-1].in_flight == 1
    assert not hold.lingers


def test_abandon_says_when_it_could_not() -> None:
    script = Script(*[(0.3, lost())] * 9)
    hold = script.hold()
    hold.sending(script.now)
    assert not script.run(abandon(hold, script.now + 1, script.terms))
    assert hold.lingers


def test_a_repeated_release_that_already_happened_is_a_success() -> None:
    script = Script((0.1, lost()), (0.1, False))
    hold = script.held()
    script.run(release(hold, script.terms))
    assert hold.state == RELEASED


@pytest.mark.parametrize(("left", "tries"), [(0.019, False), (0.021, True)])
def test_no_try_is_begun_in_the_last_moment_of_its_time(left: float, tries: bool) -> None:
    script = Script()
    again = Patience(script.terms, script.now + left).after(lost(), script.now)  # it would be after 15 ms
    assert (again is not None) is tries


def test_a_release_that_the_keeper_was_quicker_with_is_a_success() -> None:
    script = Script()
    hold = script.held()
    plan = release(hold, script.terms)
    next(plan)
    hold.releases_unanswered += 1  # as the keeper does that buries what an earlier call has left
    with pytest.raises(StopIteration):
        plan.send(False)
    assert hold.state == RELEASED


def test_a_release_that_finds_nothing_is_a_loss() -> None:
    script = Script((0.1, False))
    hold = script.held()
    with pytest.raises(LockLost):
        script.run(release(hold, script.terms))
    assert hold.state == LOST


def test_a_release_without_an_answer_may_be_called_again() -> None:
    script = Script((3.0, lost()), (0.0, False))
    hold = script.held()
    with pytest.raises(BackendUnavailable):
        script.run(release(hold, script.terms))
    assert hold.state == RELEASING
    script.run(release(hold, script.terms))
    with pytest.raises(NotHeld):
        script.run(release(hold, script.terms))


def test_a_lease_that_is_over_is_lost_without_asking() -> None:
    script = Script()
    hold = script.held(ttl=1.0, renew=False)
    script.now += 1.0
    with pytest.raises(LockLost, match="renew=False"):
        script.run(release(hold, script.terms))
    assert not script.asked


def test_a_shorter_ttl_counts_from_before_it_is_known_to_be_obeyed() -> None:
    script = Script(*[(0.3, lost())] * 9)
    hold = script.held(ttl=10.0)
    with pytest.raises(LockLost):
        script.run(extend(hold, 1.0, script.terms))
    assert hold.valid_until <= 1002.0


def test_a_longer_ttl_is_not_credited_while_a_renewal_with_the_old_one_is_under_way() -> None:
    script = Script((0.0, True))
    hold = script.held(ttl=2.0)
    hold.renewing = 2.0
    script.run(extend(hold, 60.0, script.terms))
    assert hold.valid_until == 1000.0 + 2.0 - margin(2.0)
    assert hold.ttl == 60.0


# The keeper


def keeping(script: Script, *holds: Hold) -> list[Any]:
    """What the keeper does until the script has no more lines."""
    book = Book(nullcontext())
    for hold in holds:
        book.add(hold)
    with suppress(IndexError):
        script.run(keep(book, lambda _: script.terms, script.terms.clock))
    return [ask for ask in script.asked if not isinstance(ask, Idle)]


def test_a_lease_is_renewed_at_a_third_of_its_ttl() -> None:
    script = Script((0.0, True))
    asked = keeping(script, script.held(ttl=9.0))
    assert [type(ask.ask) for ask in asked] == [Extend, Extend]
    assert script.now == pytest.approx(1006.0)


def test_a_renewal_that_fails_is_tried_until_validity_ends_and_then_told() -> None:
    script = Script(*[(0.2, lost())] * 200)
    hold = script.held(ttl=3.0)
    asked = keeping(script, hold)
    told = next(i for i, ask in enumerate(asked) if isinstance(ask, Tell))
    assert told > 4
    assert hold.lost_reason is not None
    assert "could not be renewed" in hold.lost_reason
    assert isinstance(asked[told + 1].ask, Remove)  # a renewal may have been obeyed: take it back


def test_a_renewal_never_waits_past_the_end_of_any_lease() -> None:
    script = Script((0.0, True))
    short, long = script.held(ttl=0.9, renew=False), script.held(ttl=2.4)
    short.token = "other"
    asked = keeping(script, long, short)
    ask = asked[0]
    assert isinstance(ask, On)
    assert ask.ask.deadline < short.valid_until


def test_a_renewal_that_finds_nothing_is_a_loss_at_once() -> None:
    script = Script((0.0, False))
    asked = keeping(script, script.held(ttl=9.0))
    assert isinstance(asked[0], On)
    assert asked[0].ask.deadline > 1003.0
    assert isinstance(asked[1], Tell)


def test_max_hold_ends_the_renewals() -> None:
    script = Script(*[(0.0, True)] * 3)
    hold = script.held(ttl=3.0, max_hold=2.5)
    asked = keeping(script, hold)
    assert [type(ask) for ask in asked[:3]] == [On, On, Tell]
    assert hold.lost_reason is not None
    assert "max_hold" in hold.lost_reason


def test_the_book_stays_small_however_many_leases_pass_through() -> None:
    book = Book(nullcontext())
    script = Script()
    for number in range(10_000):
        hold = script.held(ttl=30.0)
        hold.token = str(number)
        book.add(hold)
        book.discard(hold)
    assert len(book._dues) + len(book._ends) < 100


def test_what_was_held_and_is_asked_for_too_late_is_a_timeout_and_not_an_outage() -> None:
    script = Script((0.01, Busy(60.0)), (0.5, None), (0.5, lost()))
    with pytest.raises(LockTimeout):
        script.run(acquire(script.hold(), 1.0, script.terms))


def test_a_store_that_will_answer_before_long_is_waited_for() -> None:
    young = Unknown("young", sent=False, alive=True)
    script = Script(*[(1.0, young)] * 6, (0.01, Granted(1)))
    script.run(acquire(script.hold(), 20.0, script.terms))
