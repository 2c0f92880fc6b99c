"""What belongs to this process and not to its parent: the clock, randomness, and the generation of forks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

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
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)


def _in_child() -> None:
    global generation
    generation += 1
    for reset in _after_fork:
        reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def keep_for_ever(thing: Any) -> None:
    """Never let `thing` be finalized: in a forked child, what its parent opened must not even be closed."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def new_token() -> str:
    """128 random bits in hex, from the kernel each time: C code may fork, and both sides would have a stock of them."""
    return os.urandom(16).hex()
