"""What belongs to one event loop."""

from __future__ import annotations

from asyncio import AbstractEventLoop, get_running_loop
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, ref

T = TypeVar("T")


class ByLoop(Generic[T]):
    """A value for each event loop. Most programs have one: the last that was asked for is found at once."""

    __slots__ = ("_all", "_last")

    def __init__(self) -> None:
        self._all: WeakKeyDictionary[AbstractEventLoop, T] = WeakKeyDictionary()
        self._last: tuple[ref[AbstractEventLoop], T] | None = None  # one reference, so that threads may race

    def get(self) -> T | None:
        """That of the running loop."""
        loop, last = get_running_loop(), self._last
        if last is not None:
            mine, value = last
            if mine() is loop:
                return value
        return self._find(loop)

    def _find(self, loop: AbstractEventLoop) -> T | None:
        value = self._all.get(loop)
        if value is not None:
            self._last = (ref(loop), value)
        return value

    def put(self, value: T) -> T:
        """Make `value` that of the running loop; returns it."""
        self._forget_closed()
        loop = get_running_loop()
        self._all[loop] = value
        self._last = (ref(loop), value)
        return value

    def _forget_closed(self) -> None:
        """Drop what belongs to loops that ended without telling their generators: the values keep them alive."""
        for key in self._all.keyrefs():  # a copy in one step: threads with loops of their own come and go
            loop = key()
            if loop is not None and loop.is_closed():
                self._all.pop(loop, None)

    def pop(self) -> T | None:
        """Forget that of the running loop; returns it."""
        self._last = None
        return self._all.pop(get_running_loop(), None)

    def values(self) -> list[T]:
        found = [(loop, self._all.get(loop)) for key in self._all.keyrefs() if (loop := key()) is not None]
        return [value for _, value in found if value is not None]

    def clear(self) -> None:
        self._last = None
        self._all = WeakKeyDictionary()
