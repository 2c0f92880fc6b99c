"""What backends share whose requests are calls in this process: run inline, and woken by a mailbox."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .._process import clock

if TYPE_CHECKING:
    import asyncio


class Mailbox(Protocol):
    """Where one waiter is woken. `wake` may be called by any thread, any number of times; false if nobody is there."""

    def wake(self) -> bool: ...


class ThreadMailbox:
    """A waiting thread's."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self) -> bool:
        self._event.set()
        return True

    def wait(self, until: float) -> None:
        self._event.wait(max(0.0, until - clock()))


class TaskMailbox:
    """A waiting task's."""

    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future = loop.create_future()

    def wake(self) -> bool:
        if self._loop.is_closed() or self._future.cancelled():
            return False
        try:
            self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # closed in between
            return False
        return True

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, until: float) -> None:
        alarm = self._loop.call_later(max(0.0, until - clock()), self._set)
        try:
            await self._future
        finally:
            alarm.cancel()


class Listen:
    """A request: enlist a mailbox by `enlist`, sleep until it is woken or `until`, then `leave`."""

    __slots__ = ("enlist", "leave", "until")

    def __init__(self, enlist: Callable[[Mailbox], bool], leave: Callable[[Mailbox], None], until: float) -> None:
        self.enlist = enlist  # False if there is nothing to wait for
        self.leave = leave
        self.until = until
