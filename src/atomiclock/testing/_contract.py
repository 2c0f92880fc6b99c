"""Laws of the lock objects: the contract of `threading.Lock` and `asyncio.Lock`, side by side with the real ones."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import atomiclock

from ..backends import Traits
from ..errors import ConfigurationError, LockLost, NotHeld
from ._base import SLACK, Laws, Threads, eventually, vanish
from ._facade import Locks

ARGUMENTS: list[tuple[Any, ...]] = [
    (), (True,), (1,), (True, -1), (True, 0), (True, 0.05), (True, 5), (False,), (0,), (False, -1), (False, 1),
    (False, 0), (False, 0.5), (True, -2), (True, -0.5), (True, -1.0), (True, float("nan")), (True, float("inf")),
    (True, 1e20), (True, "x"), (True, None), (True, [1]), (1, 2, 3),
]  # fmt: skip


def outcome(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the standard type of what it raises."""
    try:
        return call()
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        standard = (OverflowError, ValueError, TypeError, RuntimeError)
        return next(kind for kind in standard if isinstance(error, kind))


def in_thread(call: Callable[[], Any]) -> Any:
    """The outcome of `call` in another thread."""
    found: list[Any] = []
    with Threads() as threads:
        threads.start(lambda: found.append(outcome(call)))
    return found[0]


class ContractLaws(Laws):
    def test_acquire_takes_and_refuses_the_same_arguments(self, locks: Locks, name: str) -> None:
        for number, arguments in enumerate(ARGUMENTS):
            ours, theirs = locks.lock(f"{name}-{number}"), threading.Lock()
            for lock in (ours, theirs):
                lock.acquire()
                lock.release()
            same = outcome(partial(ours.acquire, *arguments)) is outcome(partial(theirs.acquire, *arguments))
            assert same, f"acquire{arguments}"
            assert ours.locked() == theirs.locked(), f"acquire{arguments}"
            if ours.locked():
                ours.release()

    def test_every_step_has_the_same_outcome(self, locks: Locks, name: str) -> None:
        ours, theirs = locks.lock(name), threading.Lock()
        story: list[Callable[[Any], Any]] = [
            lambda lock: lock.locked(),
            lambda lock: lock.release(),
            lambda lock: lock.acquire(),
            lambda lock: lock.acquire(blocking=False),
            lambda lock: lock.acquire(timeout=0.02),
            lambda lock: lock.locked(),
            lambda lock: in_thread(lambda: lock.acquire(False)),
            lambda lock: in_thread(lock.release),
            lambda lock: lock.locked(),
            lambda lock: lock.release(),
            lambda lock: in_thread(lock.acquire),
            lambda lock: lock.acquire(False),
            lambda lock: lock.release(),
            lambda lock: in_thread(lock.release),
            lambda lock: lock.acquire(timeout=0),
            lambda lock: lock.release(),
            lambda lock: lock.locked(),
        ]
        for number, step in enumerate(story):
            assert outcome(partial(step, ours)) is outcome(partial(step, theirs)), f"step {number}"

    def test_with_gives_the_lease_and_releases(self, locks: Locks, another: Locks, name: str) -> None:
        lock = locks.lock(name)
        assert lock.name == name
        before = lock.lease
        assert before is None
        with lock as lease:
            assert lease
            assert lock.locked()
            assert lock.lease is not None
            assert lock.lease.token == lease.token
            assert another.try_acquire(name) is None
        assert not lease
        assert not lock.lease
        assert another.holder(name) is None

    def test_with_can_be_entered_again(self, locks: Locks, name: str) -> None:
        lock, tokens = locks.lock(name), set()
        for _ in range(3):
            with lock as lease:
                tokens.add(lease.token)
        assert len(tokens) == 3

    def test_released_inside_with_is_reported_as_by_threading(self, locks: Locks, name: str) -> None:
        for lock in (locks.lock(name), threading.Lock()):
            with pytest.raises(RuntimeError), lock:
                lock.release()
            with pytest.raises(ZeroDivisionError), locks.lock(name + "2"):
                _ = 1 / 0

    def test_releasing_what_is_not_held_here_is_an_error_and_frees_nothing(
        self, locks: Locks, another: Locks, name: str
    ) -> None:
        with locks.lock(name) as lease:
            for unlocked in (another.lock(name), locks.lock(name)):
                with pytest.raises(NotHeld) as raised:
                    unlocked.release()
                assert raised.value.name == name
            assert lease
            assert another.try_acquire(name) is None

    def test_two_lock_objects_exclude_each_other(self, locks: Locks, another: Locks, name: str) -> None:
        first, second, third = locks.lock(name), locks.lock(name), another.lock(name)
        assert first.acquire()
        assert not second.acquire(False)
        assert not third.acquire(timeout=0.05)
        first.release()
        assert third.acquire(timeout=5)
        third.release()

    def test_a_timeout_is_waited_for(self, locks: Locks, name: str) -> None:
        lock = locks.lock(name)
        with lock:
            begun = time.monotonic()
            assert lock.acquire(timeout=0.1) is False
            assert 0.08 <= time.monotonic() - begun <= 0.1 + SLACK

    def test_threads_share_one_object(self, locks: Locks, name: str) -> None:
        lock, order = locks.lock(name), []

        def work() -> None:
            for _ in range(5):
                with lock:
                    order.append("in")
                    time.sleep(0.0005)
                    order.append("out")

        with Threads() as threads:
            for _ in range(4):
                threads.start(work)
        assert order == ["in", "out"] * 20
        assert not lock.locked()

    def test_a_lock_that_was_lost_says_so_at_release_and_can_be_taken_again(
        self, locks: Locks, another: Locks, name: str
    ) -> None:
        lock = locks.lock(name, ttl=20, renew=False)
        lock.acquire()
        vanish(another, name)
        with pytest.raises(LockLost):
            lock.release()
        assert outcome(lock.release) is RuntimeError
        assert lock.acquire(timeout=5)
        lock.release()

    def test_a_lock_whose_lease_is_over_is_unlocked(
        self, locks: Locks, name: str, brief: float, traits: Traits
    ) -> None:
        lock = locks.lock(name, ttl=brief, renew=False)
        assert lock.acquire(timeout=10)
        eventually(lambda: not lock.locked(), 2 * brief + 3 * traits.ttl_step + SLACK)
        assert lock.lease is None or lock.lease.lost

    def test_its_repr_has_the_standard_shape(self, locks: Locks, name: str) -> None:
        ours, theirs = locks.lock(name), asyncio.Lock() if locks.colour == "async" else threading.Lock()
        shape = r"<.*\[unlocked\]>" if locks.colour == "async" else r"<unlocked .* object at 0x[0-9a-f]+>"
        assert re.fullmatch(shape, repr(theirs))
        assert re.fullmatch(shape, repr(ours))
        assert name in repr(ours)
        with ours:
            assert re.fullmatch(shape.replace("unlocked", "locked"), repr(ours))

    def test_it_is_an_instance_of_the_protocol(self, locks: Locks, name: str) -> None:
        lock = locks.lock(name)
        real = getattr(lock, "_lock", lock)
        assert isinstance(real, atomiclock.AsyncLock if locks.colour == "async" else atomiclock.Lock)

    def test_bad_options_are_refused_when_it_is_made(self, locks: Locks, name: str) -> None:
        for bad in ({"ttl": 0}, {"renew": 1}, {"max_hold": -1}, {"owner": 5}, {"on_lost": "explode"}):
            with pytest.raises(ConfigurationError, match=next(iter(bad))):
                locks.lock(name, **bad)
