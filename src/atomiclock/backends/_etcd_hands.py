"""Threads that call grpcio on behalf of the main thread, where a signal handler may raise at any instruction.

grpcio's own Python code takes locks. An exception that comes between the taking and the releasing of one leaves it
taken for ever, and with it every thread that uses the connection stands still (met within 80 interrupted calls).
Python runs signal handlers in the main thread only, so that is the one to keep out. It costs two switches of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from .. import _process
from .._post import Post

T = TypeVar("T")


class Mailbox(Post[Any]):
    """Where a thread waits for one thing."""

    def wait(self, seconds: float | None) -> Any:
        """What was put into it. `TimeoutError` after `seconds`; `None` is for ever."""
        try:
            return self.get(timeout=None if seconds is None else max(0.0, seconds))
        except Empty:
            raise TimeoutError from None


class _Work:
    """What a hand does, and what came of it."""

    __slots__ = ("_done", "_error", "_function", "_value")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: Exception | None = None
        self._done = threading.Lock()  # the fastest thing to wait on that Python has
        self._done.acquire()

    def do(self) -> None:
        try:
            self._value = self._function()
        except Exception as error:
            self._error = error

    def tell(self) -> None:
        self._done.release()

    def outcome(self) -> Any:
        """What the function returned, or raise what it raised, when it is done."""
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._value


class _Hand:
    """A thread that does one thing at a time. One whose caller was interrupted finishes it all the same."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        threading.Thread(target=self._run, name="atomiclock-etcd-hand", daemon=True).start()

    def take(self, work: _Work) -> None:
        self._queue.put(work)

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            work.do()
            _idle.append(self)
            work.tell()
            del work


_idle: list[_Hand] = []
_process.after_fork(_idle.clear)


def _hand() -> _Hand:
    try:
        return _idle.pop()
    except IndexError:
        return _Hand()


def in_safe_hands(function: Callable[[], T]) -> T:
    """What `function` returns or raises; by another thread if this is the main one."""
    if threading.current_thread() is not threading.main_thread():
        return function()
    work = _Work(function)
    _hand().take(work)
    return work.outcome()  # type: ignore[no-any-return]  # the function's own T


def sometime(function: Callable[[], Any]) -> None:
    """Have `function` called, if there is a thread for it: for finalizers, which must neither wait nor take locks."""
    try:
        hand = _idle.pop()
    except IndexError:
        return
    hand.take(_Work(function))
