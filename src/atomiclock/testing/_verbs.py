"""Laws of the backend's own verbs, which the policy relies on."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from .. import _process
from ..backends import Add, Busy, Extend, Granted, Holder, Peek, Remove, Traits, Unknown, Wait
from ._base import SLACK, Laws, Threads, key_for, needs
from ._facade import Locks


class Verbs:
    """The verbs on one key, with deadlines that are met."""

    def __init__(self, locks: Locks, name: str) -> None:
        self._locks = locks
        self.key = key_for(locks, name)

    def _deadline(self) -> float:
        return _process.clock() + 5

    def add(self, token: str, ttl: float = 20.0, owner: str = "owner", waiting: bool = False) -> Any:
        return self._locks.perform(Add(self.key, token, ttl, owner, waiting, self._deadline()))

    def remove(self, token: str, in_flight: int = 0) -> Any:
        return self._locks.perform(Remove(self.key, token, in_flight, self._deadline()))

    def extend(self, token: str, ttl: float = 20.0) -> Any:
        return self._locks.perform(Extend(self.key, token, ttl, self._deadline()))

    def peek(self) -> Any:
        return self._locks.perform(Peek(self.key, self._deadline()))

    def wait(self, token: str, seconds: float, signals: bool = True) -> Any:
        now = _process.clock()
        until = now + seconds
        return self._locks.perform(Wait(self.key, token, now, until, signals, until + 5, {}, 20.0, "owner"))

    @property
    def wait_adds(self) -> bool:
        """Whether a wait ends with an add."""
        return bool(self._locks.manager._core.terms.wait_adds)


class VerbLaws(Laws):
    @pytest.fixture
    def verbs(self, locks: Locks, name: str) -> Verbs:
        return Verbs(locks, name)

    def test_an_add_that_is_repeated_is_granted_and_says_so(self, verbs: Verbs, traits: Traits) -> None:
        first = verbs.add("a" * 32, ttl=5)
        second = verbs.add("a" * 32, ttl=20)
        assert isinstance(first, Granted)
        assert isinstance(second, Granted)
        assert (first.repeated, second.repeated) == (False, True)
        assert verbs.peek().remaining > 10, "it counts from the last"
        if traits.fence == "none":
            assert first.fence is second.fence is None
        else:
            assert (second.fence or 0) >= (first.fence or 0) > 0
            assert verbs.peek().fence == second.fence
        assert verbs.remove("a" * 32) is True
        assert verbs.peek() is None

    def test_an_add_of_what_another_token_has_is_busy_and_changes_nothing(self, verbs: Verbs, traits: Traits) -> None:
        verbs.add("a" * 32, ttl=10, owner="ann")
        for waiting in (False, True):
            busy = verbs.add("b" * 32, ttl=500, owner="bob", waiting=waiting)
            assert isinstance(busy, Busy)
            assert busy.owner == "ann"
            assert busy.remaining is None or 0 < busy.remaining <= 10 + traits.ttl_step
            assert busy.signals in (True, False)
        holder = verbs.peek()
        assert isinstance(holder, Holder)
        assert (holder.token, holder.owner) == ("a" * 32, "ann")
        assert holder.remaining is not None
        assert 0 < holder.remaining <= 10 + traits.ttl_step

    def test_a_remove_by_a_token_that_has_it_not_does_nothing(self, verbs: Verbs) -> None:
        assert verbs.remove("a" * 32) is False
        verbs.add("a" * 32)
        for token in ("b" * 32, "a" * 31, "A" * 32, "", "a" * 33):
            assert verbs.remove(token) is False
        assert verbs.peek().token == "a" * 32
        assert [verbs.remove("a" * 32), verbs.remove("a" * 32)] == [True, False]

    def test_an_extend_by_a_token_that_has_it_not_does_nothing(self, verbs: Verbs, traits: Traits) -> None:
        assert verbs.extend("a" * 32) is False
        assert verbs.peek() is None, "it must not make a lock"
        verbs.add("a" * 32, ttl=10)
        for token in ("b" * 32, "a" * 31, "A" * 32, "", "a" * 33):
            assert verbs.extend(token, ttl=500) is False
        assert verbs.peek().token == "a" * 32
        assert verbs.peek().remaining <= 10 + traits.ttl_step
        assert verbs.extend("a" * 32, ttl=500) is True
        assert verbs.peek().remaining > 400
        assert verbs.extend("a" * 32, ttl=5) is True
        assert verbs.peek().remaining <= 5 + traits.ttl_step

    def test_what_expired_is_removed_and_extended_by_nobody(self, verbs: Verbs, traits: Traits) -> None:
        verbs.add("a" * 32, ttl=0.05)
        end = time.monotonic() + 0.05 + 2 * traits.ttl_step + SLACK
        while verbs.peek() is not None:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert verbs.extend("a" * 32, ttl=20) is False
        assert verbs.peek() is None
        verbs.add("b" * 32)
        assert verbs.remove("a" * 32) is False
        assert verbs.peek().token == "b" * 32

    @pytest.mark.parametrize("signals", [True, False])
    def test_a_wait_ends_in_time(self, verbs: Verbs, signals: bool) -> None:
        verbs.add("a" * 32)
        assert isinstance(verbs.add("b" * 32, waiting=True), Busy)
        begun = time.monotonic()
        assert not isinstance(verbs.wait("b" * 32, 0.1, signals=signals), Granted)
        assert time.monotonic() - begun <= 0.1 + SLACK
        verbs.remove("b" * 32)
        assert verbs.peek().token == "a" * 32

    def test_a_wait_for_what_is_free_ends_in_time(self, verbs: Verbs) -> None:
        begun = time.monotonic()
        answer = verbs.wait("b" * 32, 0.1)
        assert isinstance(answer, Granted) if verbs.wait_adds else answer is None
        assert time.monotonic() - begun <= 0.1 + SLACK
        verbs.remove("b" * 32)

    def test_a_wait_that_adds_ends_with_the_lock_of_the_waiter(self, verbs: Verbs) -> None:
        needs(verbs.wait_adds, "its waits do not add")
        verbs.add("a" * 32)
        verbs.add("b" * 32, waiting=True)
        answers: list[Any] = []
        with Threads() as threads:
            threads.start(lambda: answers.append(verbs.wait("b" * 32, 4.0)))
            time.sleep(0.1)
            verbs.remove("a" * 32)
        assert isinstance(answers[0], Granted)
        holder = verbs.peek()
        assert (holder.token, holder.owner, holder.fence) == ("b" * 32, "owner", answers[0].fence)
        assert holder.remaining <= 20
        verbs.remove("b" * 32)

    def test_a_wait_ends_at_the_removal(self, verbs: Verbs, traits: Traits) -> None:
        verbs.add("a" * 32)
        verbs.add("b" * 32, waiting=True)
        ended: list[float] = []

        def wait() -> None:
            verbs.wait("b" * 32, 4.0)
            ended.append(time.monotonic())

        begun = time.monotonic()
        with Threads() as threads:
            threads.start(wait)
            time.sleep(0.1)
            verbs.remove("a" * 32)
        assert ended[0] - begun < (2.0 if traits.waits == "wake" else 4.0 + SLACK)
        verbs.remove("b" * 32)

    def test_no_verb_outlasts_its_deadline(self, locks: Locks, name: str) -> None:
        key, past = key_for(locks, name), _process.clock() - 1
        begun = time.monotonic()
        for ask in (
            Add(key, "a" * 32, 5, "owner", True, past),
            Extend(key, "a" * 32, 5, past),
            Peek(key, past),
            Wait(key, "b" * 32, past, past, True, past),
            Remove(key, "a" * 32, 1, past),
        ):
            with suppress(Unknown):
                locks.perform(ask)
        assert time.monotonic() - begun < SLACK
