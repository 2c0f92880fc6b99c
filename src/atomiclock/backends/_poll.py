"""`select.poll()`, also where eventlet has taken it away: it cannot make it wait in green, and leaves `select()`."""

from __future__ import annotations

import select
from typing import Any


class _Select:
    """As much of a poll object as is used here, on sockets that are readable or not."""

    def __init__(self) -> None:
        self._things: list[Any] = []

    def register(self, thing: Any, _: int = 0) -> None:
        self._things.append(thing)

    def poll(self, milliseconds: float) -> list[Any]:
        return select.select(self._things, [], [], milliseconds / 1000)[0]


POLLIN: int = getattr(select, "POLLIN", 1)


def new_poll() -> Any:
    """A poll object for what is to be read."""
    poll = getattr(select, "poll", None)
    return _Select() if poll is None else poll()
