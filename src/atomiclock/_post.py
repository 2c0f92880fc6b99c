"""A queue for one reader that waits with a timeout, safe to use from signal handlers and finalizers."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from queue import Empty
from typing import Generic, TypeVar

from . import _process

T = TypeVar("T")


class Post(Generic[T]):
    """Where threads put things for one thread that waits for them.

    Not a SimpleQueue: up to CPython 3.12 its `get` may wait for ever if its timeout ends while it looks around: it
    takes the rest of the time, which is below 0 then, for "no timeout". Measured on a busy machine with timeouts of
    microseconds: six threads of six within 12 s.
    """

    def __init__(self) -> None:
        self._things: deque[T] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()

    def put(self, thing: T) -> None:
        self._things.append(thing)
        with suppress(RuntimeError):  # it rings already
            self._bell.release()

    def get(self, timeout: float | None = None) -> T:
        """The next thing. `queue.Empty` after `timeout` seconds; `None` is for ever."""
        end = None if timeout is None else _process.clock() + timeout
        while True:
            with suppress(IndexError):
                return self._things.popleft()
            if not self._bell.acquire(timeout=-1 if end is None else max(0.0, end - _process.clock())):
                with suppress(IndexError):
                    return self._things.popleft()
                raise Empty
