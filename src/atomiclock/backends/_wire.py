"""What adapters share that speak to a server over a stream: pools of connections with one deadline for each exchange.

An adapter gives a dial, which opens a connection and makes the reader of its replies. A connection is either idle in
the pool, clean, or in one caller's hands: whatever comes between a request and the last byte of its reply, a signal
or a cancellation too, closes it, so that no reply is ever taken for the answer to another request.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from .. import _process
from . import Unknown


class Nap(NamedTuple):
    """A request to the channel itself: to let the time pass until then."""

    until: float


class Reply(NamedTuple):
    """A reply that is complete; its value may be `None`."""

    value: Any


class Reader(Protocol):
    """Cuts replies out of what one connection brings, in pieces of any size. Raises `ValueError` for what is none."""

    @property
    def empty(self) -> bool:
        """Whether nothing is left over: bytes that nobody asked for make a connection unfit for use."""
        ...

    def feed(self, data: bytes) -> None: ...

    def get(self, request: Any) -> Reply | None:
        """The reply to `request`, or `None` until more was fed."""
        ...


class DeadlineSocket:
    """A socket whose every wait ends at one deadline, however often it is waited on."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self.deadline = deadline
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def _arm(self) -> socket.socket:
        left = self.deadline - _process.clock()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock

    @property
    def stale(self) -> bool:
        """Whether something came that nobody asked for: mostly the end, because the server went away."""
        return bool(self._poll.poll(0))

    def recv(self, *args: Any) -> bytes:
        return self._arm().recv(*args)

    def recv_into(self, *args: Any) -> int:
        return self._arm().recv_into(*args)

    def sendall(self, data: bytes) -> None:
        self._arm().sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Wire(NamedTuple):
    """An open connection for threads."""

    sock: DeadlineSocket
    reader: Reader

    def close(self) -> None:
        """At once, without a word to the server, and without the shutdown() that a forked twin would feel."""
        self.sock.close()


class AsyncWire(NamedTuple):
    """An open connection for tasks."""

    stream: asyncio.StreamReader
    writer: asyncio.StreamWriter
    reader: Reader
    poll: Any

    @classmethod
    def of(cls, stream: asyncio.StreamReader, writer: asyncio.StreamWriter, reader: Reader) -> AsyncWire:
        poll = select.poll()
        poll.register(writer.get_extra_info("socket"), select.POLLIN)
        return cls(stream, writer, reader, poll)

    @property
    def stale(self) -> bool:
        return self.writer.transport.is_closing() or self.stream.at_eof() or bool(self.poll.poll(0))

    def close(self) -> None:
        self.writer.transport.abort()


Dial = Callable[[float], Wire]
"""Opens a connection by the deadline; raises what a failure means for the lock, and leaves nothing open then."""
AsyncDial = Callable[[float], Awaitable[AsyncWire]]
Fit = Callable[[Any], bool]
"""Whether the connection that brought this reply is fit for others."""


class WireChannel:
    """Connections for threads. Requests are bytes for the server, or a `Nap`."""

    def __init__(self, dial: Dial, fit: Fit, place: str) -> None:
        self._dial = dial
        self._fit = fit
        self._place = place
        self._idle: list[Wire] = []

    def call(self, request: bytes | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return time.sleep(max(0.0, request.until - _process.clock()))
        wire = self._pooled()
        fresh = wire is None
        if wire is None:
            _check_time(deadline, self._place)
            wire = self._dial(deadline)
        sock, reader = wire
        done = False
        try:
            sock.deadline = deadline
            sock.sendall(request)
            while (reply := reader.get(request)) is None:
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                reader.feed(data)
            done = reader.empty and self._fit(reply.value)
            return reply.value
        except (OSError, ValueError) as error:
            # A pooled connection that was closed says nothing about the server (though much about the others in the
            # pool); one on which time ran out does.
            self.close()
            raise Unknown(f"{self._place}: {error}", fresh=fresh or isinstance(error, TimeoutError)) from error
        finally:
            # A signal may interrupt anywhere: only a reply that was read to its end makes it fit for others.
            if done:
                self._idle.append(wire)
            else:
                wire.close()

    def _pooled(self) -> Wire | None:
        """An idle connection that is still open. What is sent over one that is not may or may not have arrived."""
        with suppress(IndexError):  # another thread may take the last one in between
            while True:
                wire = self._idle.pop()
                if not wire.sock.stale:
                    return wire
                wire.close()
        return None

    def close(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def __del__(self) -> None:
        for wire in getattr(self, "_idle", ()):  # a signal may have interrupted its making
            wire.close()


class AsyncWireChannel:
    """Connections for the tasks of one event loop."""

    def __init__(self, dial: AsyncDial, fit: Fit, place: str) -> None:
        self._dial = dial
        self._fit = fit
        self._place = place
        self._idle: list[AsyncWire] = []

    async def call(self, request: bytes | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return await asyncio.sleep(max(0.0, request.until - _process.clock()))
        wire = self._pooled()
        fresh = wire is None
        if wire is None:
            _check_time(deadline, self._place)
            wire = await self._dial(deadline)
        # To abort is what has to be done with a late connection anyway, and cancels nobody's task.
        left = max(0.0, deadline - _process.clock())
        alarm = asyncio.get_running_loop().call_later(left, wire.close)
        done = False
        try:
            wire.writer.write(request)
            while (reply := wire.reader.get(request)) is None:
                data = await wire.stream.read(65536)
                if not data:
                    if _process.clock() >= deadline:
                        raise TimeoutError("timed out")
                    raise ConnectionError("the server closed the connection")
                wire.reader.feed(data)
            done = wire.reader.empty and self._fit(reply.value)
            return reply.value
        except (OSError, ValueError) as error:
            self.close()
            raise Unknown(f"{self._place}: {error}", fresh=fresh or isinstance(error, TimeoutError)) from error
        finally:
            alarm.cancel()
            if done:
                self._idle.append(wire)
            else:
                wire.close()

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


def _check_time(deadline: float, place: str) -> None:
    if deadline <= _process.clock():
        raise Unknown(f"{place}: no time was left to connect", sent=False)
