"""What a call says to its worker's main process, if it has one that supervises, about the lease it wants."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from billiard.process import current_process

from .._hold import NEVER, Hold
from .._options import configured_url
from .._process import clock
from ..errors import ConfigurationError, LockTimeout, NotHeld
from ._board import Seat, SeatedHold
from ._conflicts import Where
from ._report import reporter
from ._rules import Rules

if TYPE_CHECKING:
    from ._runner import Call

_seated: list[str] = []
"""The token that has this child's seat. A second lease at the same time has none."""


def seat_number() -> int | None:
    """This child's number in a prefork worker's pool; `None` in any other process."""
    number: int | None = getattr(current_process(), "index", None)
    return number


def refuse_scope(backend: Any, prefork: bool) -> None:
    """Raise `ConfigurationError` for a store that excludes nobody in a worker of several processes."""
    if prefork and backend.traits.scope == "process":
        raise ConfigurationError(
            f"the store {backend.place} excludes only threads of one process, and a prefork worker has several: set "
            "atomiclock_url to sqlite:// for workers of one machine, or to a server such as redis://localhost"
        )


class Line:
    """To the main process, for one call."""

    def __init__(self, call: Call, rules: Rules, ttl: float) -> None:
        board = reporter.board
        watched = board is not None and board.in_child and call.where is Where.WORKER
        self._board = board if watched else None
        self._seat: Seat | None = None
        if self._board is not None and not _seated:
            self._seat = self._board.seat(seat_number())
        self.make: Callable[..., Hold] = SeatedHold if self._seat is not None else Hold
        self._facts = {
            "url": rules.url or configured_url(),
            "namespace": rules.namespace,
            "name": call.name,
            "task": call.task_name,
            "id": call.task_id,
            "ttl": ttl,
        }
        self._max_hold = rules.max_hold
        self._token: str | None = None

    @contextmanager
    def announced(self, hold: Hold) -> Iterator[None]:
        """Say that `hold` will be asked for, before it is; and that it is not held, if the block raises."""
        if self._board is None:
            yield
            self._token = hold.token
            reporter.held[hold.token] = {**self._facts, "pid": os.getpid()}
            return
        until = None if self._max_hold is None else clock() + self._max_hold
        seat = None if self._seat is None else self._seat.number
        said = self._board.tell(say="try", token=hold.token, until=until, seat=seat, **self._facts)
        if not said:
            yield
            return
        self._token = hold.token
        if isinstance(hold, SeatedHold):
            hold.seat = self._seat
            _seated.append(hold.token)
        try:
            yield
        except BaseException as error:
            self.done(isinstance(error, (LockTimeout, NotHeld)))  # which means that nothing of it is in the store
            raise
        if self._max_hold is not None:  # which counts from now: it may have waited
            self._board.tell(say="got", token=hold.token, until=clock() + self._max_hold)

    def waits(self, ttl: float, kept: str | None = None) -> None:
        """What this call has for `ttl` seconds, if it is not revoked: the lock `kept`, or the place in its line."""
        if self._board is not None:
            said = {name: self._facts[name] for name in ("id", "name", "url", "namespace")}
            self._board.tell(say="waits", until=clock() + ttl, kept=kept, **said)

    def done(self, released: bool) -> bool:
        """Say that the lease is over. Unless it was `released`, the main process makes sure of it.

        False if it could not be said: then it is not renewed either, but removed when this process has ended.
        """
        token, self._token = self._token, None
        if token is None:
            return True
        if self._board is None:
            reporter.held.pop(token, None)
            return True
        if token in _seated and self._seat is not None:
            _seated.remove(token)
            self._seat.put_own(token, NEVER)
        return self._board.tell(say="gone" if released else "left", token=token)
