"""The pool of connections to one server for tasks: as `_wire_pool`, in a module of its own, which loads asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from .. import _process
from . import Unknown
from ._wire import MORE, NO_ROOM, AsyncDial, AsyncWire, Blocking, Fit, Nap, Parting, Several
from ._wire_pool import CHUNK, Seats, check_time


class AsyncWireChannel:
    """Connections for the tasks of one event loop."""

    def __init__(self, dial: AsyncDial, fit: Fit, place: str) -> None:
        self._dial = dial
        self._fit = fit
        self._place = place
        self._idle: list[AsyncWire] = []
        self._seats = Seats()
        self._queue: deque[asyncio.Future[AsyncWire | None]] = deque()

    async def call(self, request: Any, deadline: float) -> Any:
        if type(request) is Nap:
            return await asyncio.sleep(max(0.0, request.until - _process.clock()))
        blocking = isinstance(request, Blocking)
        if blocking and not self._seats.may_block():  # before others have to wait for the connection
            return NO_ROOM
        wire = self._pooled()
        fresh = wire is None
        if wire is None:
            wire = await self._open_or_queue(deadline)
        # To abort is what has to be done with a late connection anyway, and cancels nobody's task.
        left = max(0.0, deadline - _process.clock())
        alarm = asyncio.get_running_loop().call_later(left, wire.close)
        done = False
        try:
            if blocking and not self._seats.block(wire.seat):
                done = True
                return NO_ROOM
            reply = await _exchange(wire, request, deadline)
            done = not wire.reader.rest and self._fit(reply)
            return reply
        except (OSError, ValueError) as error:
            self.close()
            raise Unknown(f"{self._place}: {error}", fresh=fresh or isinstance(error, TimeoutError)) from error
        finally:
            alarm.cancel()
            wire.seat.blocked = False
            if not done:
                wire.close()
            self._hand_on(wire if done else None)

    async def _open_or_queue(self, deadline: float) -> AsyncWire:
        """A new connection, or if there are enough the next that others need no more."""
        while True:
            check_time(deadline, self._place)
            seat = self._seats.take()
            if seat is not None:
                try:
                    return (await self._dial(deadline))._replace(seat=seat)
                except BaseException:
                    seat.open = False  # whoever keeps the error keeps the seat
                    self._hand_on(None)
                    raise
            given = await self._given(max(0.0, deadline - _process.clock()))
            if given is not None:
                return given
            if deadline <= _process.clock():
                self._hand_on(None)  # if there is room, then not for us any more

    async def _given(self, seconds: float) -> AsyncWire | None:
        loop = asyncio.get_running_loop()
        gift: asyncio.Future[AsyncWire | None] = loop.create_future()
        self._queue.append(gift)
        alarm = loop.call_later(seconds, _open, gift)
        try:
            return await gift  # whoever hands on passes over one that is done
        except asyncio.CancelledError:
            if gift.done() and not gift.cancelled():  # given just now: to whom it may concern
                self._hand_on(gift.result())
            raise
        finally:
            alarm.cancel()

    def _hand_on(self, wire: AsyncWire | None) -> None:
        """Give `wire` to who has waited longest for one; `None`, to open another in its place."""
        while self._queue:
            gift = self._queue.popleft()
            if not gift.done():
                gift.set_result(wire)
                return
        if wire is not None:
            self._idle.append(wire)

    async def call_all(self, requests: list[bytes], deadline: float) -> list[Any]:
        """The replies to `requests`, in one round trip."""
        replies: list[Any] = await self.call(Several.of(requests), deadline)
        return replies

    def _pooled(self) -> AsyncWire | None:
        while self._idle:
            wire = self._idle.pop()
            if not wire.stale:
                return wire
            wire.close()
        return None

    def close(self) -> None:
        while self._idle:
            wire = self._idle.pop()  # by name: a writer that is collected before its transport is closed complains
            wire.close()


async def _exchange(wire: AsyncWire, request: Any, deadline: float) -> Any:
    """Send `request`, and return the reply to it."""
    said, reply = wire.reader.prepare(request)
    if said:
        wire.writer.write(said)
    if type(request) is Parting:
        request.tell()
    while reply is MORE:
        data = await wire.stream.read(CHUNK)
        if not data:
            if _process.clock() >= deadline:
                raise TimeoutError("timed out")
            raise ConnectionError("the server closed the connection")
        reply = wire.reader.take(data, request)
    return reply


def _open(gift: asyncio.Future[Any]) -> None:
    if not gift.done():
        gift.set_result(None)
