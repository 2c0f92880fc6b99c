"""What belongs to this process and not to its parent: the clock, randomness, and the generation of forks."""

from __future__ import annotations

import logging  # noqa: F401  # before we register: what is registered later comes sooner ahead of a fork, see `loading`
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_boottime = getattr(time, "CLOCK_BOOTTIME", None)

clock: Callable[[], float]
"""Seconds on a monotonic clock. On Linux one that goes on while the machine is suspended: the store's does too."""

if _boottime is None:
    clock = time.monotonic
else:
    from functools import partial

    clock = partial(time.clock_gettime, _boottime)

generation = 0
"""Grows with every fork, so that a child knows at the price of a comparison that something is its parent's."""

_after_fork: list[Callable[[], None]] = []


def after_fork(reset: Callable[[], None]) -> None:
    """Call `reset` in every forked child, before its own code runs."""
    _after_fork.append(reset)


def around_fork(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call `before` ahead of every fork, and `after` when it is done, in the parent and in the child."""
    _around_fork.append((before, after))


_around_fork: list[tuple[Callable[[], None], Callable[[], None]]] = []
_under_way: list[list[Callable[[], None]]] = []
"""What to call when a fork is done, for each that has begun: other threads may wait to do theirs."""

loading = threading.RLock()
"""Held by whoever imports a module inside a function, and by whoever forks. Python's own lock of a module that a thread
of the parent is importing stays shut in the child: who needs the module there would wait for ever. It has to be ours
before logging's own lock is taken for the fork, since many a module makes a logger while it is loaded."""


def _before() -> None:
    try:
        loading.acquire()  # before the rest is read: a module that is being loaded may have its word to say about forks
    finally:
        pairs = list(_around_fork)
        _under_way.append([*(after for _, after in pairs), loading.release])
        _call_all([before for before, _ in reversed(pairs)])


def _after() -> None:
    if _under_way:  # else a program in C has forked without a word before
        _call_all(_under_way.pop())


def _call_all(calls: list[Callable[[], None]]) -> None:
    """Call each, whatever another raises: even a signal's exception must leave no gate open."""
    failed: BaseException | None = None
    for call in calls:
        try:
            call()
        except BaseException as error:
            failed = error
    if failed is not None:
        raise failed  # to the interpreter, which reports it and goes on


def _in_child() -> None:
    global generation
    generation += 1
    _call_all([*_after_fork, _after, _under_way.clear])  # others that wanted to fork are not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)


def remember(refs: list[weakref.ref[T]], thing: T) -> None:
    """Add a reference to `thing`, and drop those to what is gone. No WeakSet: a signal may interrupt its callbacks."""
    refs[:] = [ref for ref in refs if ref() is not None] + [weakref.ref(thing)]


def keep_for_ever(thing: Any) -> None:
    """Never let `thing` be finalized: in a forked child, what its parent opened must not even be closed."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def new_token() -> str:
    """128 random bits in hex, from the kernel each time: C code may fork, and both sides would have a stock of them."""
    return os.urandom(16).hex()
