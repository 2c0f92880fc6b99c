"""Connections to one server for tasks, and their pool: as `_wire_pool`, in a module of its own, which loads asyncio."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, TypeVar

from .. import _process
from . import Unknown
from ._wire import CHUNK, CLOSED, MORE, NO_ROOM, Blocking, Fit, Nap, Parting, Reader, Several, poll_of
from ._wire_pool import Seats, check_time

T = TypeVar("T")


async def within(work: Coroutine[Any, Any, T], deadline: float, undo: Callable[[T], object]) -> T:
    """What `work` returns, or `TimeoutError`. If nobody takes what it returns, since the time is up or the task was
    cancelled, it goes to `undo`.

    Not by wait_for(), which up to Python 3.11 forgets a cancellation that comes together with the result.
    """
    task, taken = asyncio.ensure_future(work), False
    try:
        await asyncio.wait({task}, timeout=max(0.001, deadline - _process.clock()))
        if not task.done():
            raise TimeoutError("timed out")
        value = task.result()
        taken = True
        return value
    finally:
        if not taken:
            task.cancel()
            task.add_done_callback(partial(_undone, undo))


def _undone(undo: Callable[[Any], object], task: asyncio.Future[Any]) -> None:
    if not task.cancelled() and task.exception() is None:
        undo(task.result())


class Link(asyncio.BufferedProtocol):
    """One connection, with a request on its way or none. The reply is read as it comes, and wakes its task when it is
    complete. Whatever comes that nobody asked for closes it.

    One timer watches over all requests, one after another: it finds out when it rings whether the deadline is another
    by now. asyncio's streams take twice the time, most of it to make room for 256 KiB with every read (Python 3.11).
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._room = memoryview(bytearray(CHUNK))  # of which TLS fills slices: those of a bytearray are copies
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[Any] | None = None
        self._request: Any = None
        self._deadline = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._rings = math.inf  # when the alarm does, in the loop's time
        self._writer: asyncio.StreamWriter | None = None
        self.open = False

    @classmethod
    def instead(cls, stream: asyncio.StreamReader, writer: asyncio.StreamWriter, reader: Reader) -> Link:
        """The connection of a stream that has read all that came so far."""
        ended, transport = stream.at_eof(), writer.transport
        stream.feed_eof()
        if not stream.at_eof():
            raise ValueError("the server says more than it was asked")
        if ended or transport.is_closing():
            raise ConnectionError(CLOSED)
        link = cls(reader)
        link._writer = writer  # which would close the transport when it is collected
        link.connection_made(transport)
        transport.set_protocol(link)
        return link

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._poll = poll_of(transport.get_extra_info("socket")).poll
        self.open = True

    def ask(self, request: Any, deadline: float) -> asyncio.Future[Any]:
        """The reply to `request`, which leaves now; or `TimeoutError` at the deadline."""
        if not self.open:
            raise ConnectionError(CLOSED)
        loop = self._loop
        self._reply = reply = loop.create_future()
        self._request, self._deadline = request, deadline
        rings = loop.time() + deadline - _process.clock()
        if rings < self._rings:
            self._set_alarm(rings)
        said, known = self.reader.prepare(request)
        if said:
            self._transport.write(said)
        else:
            reply.set_result(known)
        if type(request) is Parting:
            request.tell()
        return reply

    def get_buffer(self, sizehint: int) -> Any:  # noqa: ARG002  # our replies are short
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        reply = self._reply
        if reply is None or reply.done():
            self._hear(bytes(self._room[:nbytes]))
            return
        try:
            value = self.reader.take(bytes(self._room[:nbytes]), self._request)
        except Exception as error:
            self._fail(error)
            return
        if value is not MORE:
            reply.set_result(value)

    def _hear(self, data: bytes) -> None:
        """Bytes that nobody asked for: where readers have a `hear`, the server may speak of itself in between."""
        hear: Callable[[bytes], bool] | None = getattr(self.reader, "hear", None)
        try:
            if hear is not None and hear(data):
                return
        except ValueError:
            pass
        self.abort()

    def eof_received(self) -> None:
        self._fail(ConnectionError(CLOSED))
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(exc or ConnectionError(CLOSED))
        if self._alarm is not None:
            self._alarm.cancel()

    def _fail(self, error: Exception) -> None:
        reply, self._reply = self._reply, None
        if reply is not None and not reply.done():
            reply.set_exception(error)

    def _set_alarm(self, rings: float) -> None:
        before = self._alarm
        self._alarm, self._rings = self._loop.call_at(rings, self._ring), rings
        if before is not None:
            before.cancel()

    def _ring(self) -> None:
        self._alarm, self._rings = None, math.inf
        if self._reply is None or self._reply.done():
            return
        left = self._deadline - _process.clock()
        if left > 0:
            self._set_alarm(self._loop.time() + left)
        else:
            self._fail(TimeoutError("timed out"))

    @property
    def stale(self) -> bool:
        """Whether it ended, or something came that nobody asked for: the loop may not have had the time to tell."""
        return not self.open or bool(self._poll(0))

    def abort(self) -> None:
        """Close it at once, without a word to the server."""
        self.open = False
        self._transport.abort()


class AsyncWire(NamedTuple):
    """An open connection for tasks."""

    link: Link
    seat: Any = None  # its `Seat`, once it is in a channel's hands

    def close(self) -> None:
        if self.seat is not None:
            self.seat.open = False
        self.link.abort()


AsyncDial = Callable[[float], Awaitable[AsyncWire]]


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
        pooled = self._pooled()
        link, seat = wire = pooled or await self._open_or_queue(deadline)
        done = False
        try:
            if blocking and not self._seats.block(seat):
                done = True
                return NO_ROOM
            reply = await link.ask(request, deadline)
            done = not link.reader.rest and self._fit(reply)
            return reply
        except (OSError, ValueError) as error:
            self.close()
            fresh = pooled is None or isinstance(error, TimeoutError)
            raise Unknown(f"{self._place}: {error}", fresh=fresh) from error
        finally:
            if blocking:
                seat.blocked = False
            if not done:
                wire.close()
            if self._queue:
                self._hand_on(wire if done else None)
            elif done:
                self._idle.append(wire)

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
            if not wire.link.stale:
                return wire
            wire.close()
        return None

    def close(self) -> None:
        while self._idle:
            wire = self._idle.pop()  # by name: a writer that is collected before its transport is closed complains
            wire.close()


def _open(gift: asyncio.Future[Any]) -> None:
    if not gift.done():
        gift.set_result(None)
