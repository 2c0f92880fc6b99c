"""Pools of connections to one server, with one deadline for each exchange: for threads; for tasks see `_wire_tasks`.

A connection is either idle in the pool, clean, or in one caller's hands: whatever comes between a request and the last
byte of its reply, a signal or a cancellation too, closes it, so that no reply is ever taken for the answer to another
request.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import Any

from .._post import Post
from .._process import clock
from . import Unknown
from ._wire import NO_ROOM, Blocking, Dial, Fit, Nap, Parting, Several, Wire, exchange

MOST = 64
"""Open connections of a channel; more callers than that take turns. Half of them may wait at the server."""
UNUSUAL = (Nap, Parting, Blocking)
"""Requests that are no plain exchange."""
LOOK_AGAIN = 0.25
"""Seconds after which who waits for a connection looks by itself whether there is one."""


class Seat:
    """The right to one open connection. It ends with that, or when nobody has it, whatever interrupted whom."""

    __slots__ = ("__weakref__", "blocked", "open")

    def __init__(self) -> None:
        self.open = True
        self.blocked = False


class Seats:
    """How many connections a channel may have open."""

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self._taken: list[weakref.ref[Seat]] = []

    def take(self) -> Seat | None:
        with self._mutex:
            self._taken = [ref for ref in self._taken if (seat := ref()) is not None and seat.open]
            if len(self._taken) >= MOST:
                return None
            seat = Seat()
            self._taken.append(weakref.ref(seat))
            return seat

    def may_block(self) -> bool:
        """Whether one more may be kept by a blocking request, so that others go on."""
        if len(self._taken) < MOST // 2:
            return True
        seats = [ref() for ref in self._taken]
        return sum(seat.blocked and seat.open for seat in seats if seat is not None) < MOST // 2

    def block(self, seat: Seat) -> bool:
        """Let `seat` be kept by a blocking request, if it may. In one step: many find room at the same time."""
        with self._mutex:
            seat.blocked = self.may_block()
            return seat.blocked


class WireChannel:
    """Connections for threads. Requests are bytes for the server, or a `Nap`."""

    def __init__(self, dial: Dial, fit: Fit, place: str, sure: frozenset[type] = frozenset()) -> None:
        """`sure`: types of replies of which `fit` need not be asked."""
        self._dial = dial
        self._fit = fit
        self._sure = sure
        self._place = place
        self._idle: list[Wire] = []
        self._seats = Seats()
        self._queue: deque[Post[Wire | None]] = deque()

    def call(self, request: Any, deadline: float) -> Any:
        ask: Callable[..., Any] = exchange
        if isinstance(request, UNUSUAL):
            if isinstance(request, Nap):
                return time.sleep(max(0.0, request.until - clock()))
            if isinstance(request, Parting):
                ask = partial(exchange, tell=request.tell)
            elif self._seats.may_block():
                ask = self._blocked
            else:  # before others have to wait for the connection
                return NO_ROOM
        pooled = self._pooled()
        wire = pooled or self._open_or_queue(deadline)
        done = False
        try:
            reply = ask(wire, request, deadline)
            done = not wire.reader.rest and (type(reply) in self._sure or self._fit(reply))
            return reply
        except (OSError, ValueError) as error:
            # A pooled connection that was closed says nothing about the server (though much about the others in the
            # pool); one on which time ran out does.
            self.close()
            fresh = pooled is None or isinstance(error, TimeoutError)
            raise Unknown(f"{self._place}: {error}", fresh=fresh) from error
        finally:
            # A signal may interrupt anywhere: only a reply that was read to its end makes it fit for others.
            if done:
                if self._queue:
                    self._hand_on(wire)
                else:
                    self._idle.append(wire)
            else:
                wire.close()
                if self._queue:
                    self._hand_on(None)

    def _blocked(self, wire: Wire, request: Any, deadline: float) -> Any:
        """The reply to a `Blocking` request, unless there is no room by now."""
        if not self._seats.block(wire.seat):
            return NO_ROOM
        try:
            return exchange(wire, request, deadline)
        finally:  # a signal that comes before it ends the connection, and with that its seat
            wire.seat.blocked = False

    def _open_or_queue(self, deadline: float) -> Wire:
        """A new connection, or if there are enough the next that others need no more."""
        box: Post[Wire | None] = Post()
        queued = False
        try:
            while True:
                check_time(deadline, self._place)
                seat = self._seats.take()
                if seat is not None:
                    return self._open(seat, deadline)
                if not queued:
                    queued = True
                    self._queue.append(box)
                wire = self._pooled() or self._given(box, deadline)  # the first: back before they knew of us
                if wire is not None:
                    return wire
                queued = box in self._queue
        finally:
            if queued:
                with suppress(ValueError):
                    self._queue.remove(box)
                with suppress(Empty):  # given just now: to whom it may concern
                    self._hand_on(box.get(0))

    def _given(self, box: Post[Wire | None], deadline: float) -> Wire | None:
        try:
            return box.get(timeout=min(max(0.0, deadline - clock()), LOOK_AGAIN))
        except Empty:
            return None

    def _open(self, seat: Seat, deadline: float) -> Wire:
        wire: Wire | None = None
        try:
            wire = self._dial(deadline)
            sock: Any = wire.sock  # as the dial made it
            return Wire(sock.settled(), wire.reader, seat)
        except BaseException:
            seat.open = False  # whoever keeps the error keeps the seat
            if wire is not None:
                wire.close()
            raise

    def _hand_on(self, wire: Wire | None) -> None:
        """Give `wire` to who has waited longest for one; `None`, to open another in its place."""
        try:
            self._queue.popleft().put(wire)
        except IndexError:  # nobody waits any more
            if wire is not None:
                self._idle.append(wire)

    def call_all(self, requests: list[bytes], deadline: float) -> list[Any]:
        """The replies to `requests`, in one round trip."""
        replies: list[Any] = self.call(Several.of(requests), deadline)
        return replies

    def _pooled(self) -> Wire | None:
        """An idle connection that is still open. What is sent over one that is not may or may not have arrived."""
        while self._idle:
            try:
                wire = self._idle.pop()
            except IndexError:  # another thread took the last one in between
                break
            fit = False
            try:
                fit = wire.fit()
            finally:  # a signal may interrupt it
                if not fit:
                    wire.close()
            if fit:
                return wire
        return None

    def close(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def __del__(self) -> None:
        for wire in getattr(self, "_idle", ()):  # a signal may have interrupted its making
            wire.close()


def check_time(deadline: float, place: str) -> None:
    if deadline <= clock():
        raise Unknown(f"{place}: no time was left to get a connection", sent=False)
