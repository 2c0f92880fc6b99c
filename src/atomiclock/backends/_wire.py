"""What adapters share that speak to a server over a stream: requests, sockets with a deadline, and connections.

An adapter gives a dial, which opens a connection and makes the reader of its replies; the pool is in `_wire_pool`.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # a socket needs it when it connects: now it is loaded under `_process.loading`
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from .. import _process
from ._poll import POLLIN, new_poll

if TYPE_CHECKING:
    import asyncio


class Nap(NamedTuple):
    """A request to the channel itself: to let the time pass until then."""

    until: float


NO_ROOM: Any = object()
"""In place of a reply to a `Blocking` request: enough others keep a connection already, and it was not sent."""


S = TypeVar("S", bound="Several")


class Several(bytes):
    """Requests that are sent as one; the reply is the list of theirs."""

    number: int

    @classmethod
    def of(cls: type[S], requests: list[bytes]) -> S:  # noqa: PYI019  # Self is not in Python 3.10
        made = cls(b"".join(requests))
        made.number = len(requests)
        return made


class Blocking(Several):
    """... of which the first keeps the server, and the connection, for a while."""


MORE: Any = object()
"""In place of a reply: what came so far is not all of it."""


class Reader(Protocol):
    """Cuts replies out of what one connection brings, in pieces of any size. Raises `ValueError` for what is none."""

    @property
    def empty(self) -> bool:
        """Whether nothing is left over: bytes that nobody asked for make a connection unfit for use."""
        ...

    def feed(self, data: bytes) -> None: ...

    def get(self, request: Any) -> Any:
        """The reply to `request`, or `MORE` until that was fed."""
        ...


class DeadlineSocket:
    """A socket whose every wait ends at one deadline, however often it is waited on."""

    _quick = False

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self.deadline = deadline
        self.poll = poll_of(sock).poll

    def settle(self) -> None:
        """The connection is made: from now on wait by `poll` alone, which takes half of the calls into the system.

        TLS has to read and write at other times than its user does, so it waits by itself.
        """
        if not hasattr(self._sock, "unwrap"):
            self._sock.setblocking(False)
            self._quick = True

    def _arm(self) -> socket.socket:
        left = self.deadline - _process.clock()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock

    def recv(self, size: int) -> bytes:
        while self._quick:
            left = self.deadline - _process.clock()
            if left <= 0 or not self.poll(left * 1000):
                raise TimeoutError("timed out")
            try:
                return self._sock.recv(size)
            except BlockingIOError:  # it was for nothing that poll woke us
                continue
        return self._arm().recv(size)

    def recv_into(self, *args: Any) -> int:
        return self._arm().recv_into(*args)

    def sendall(self, data: bytes) -> None:
        sent = 0
        if self._quick:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:  # there is no room
                sent = 0
            if sent == len(data):
                return
        self._arm().sendall(data[sent:])
        if self._quick:
            self._sock.setblocking(False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def poll_of(sock: socket.socket) -> Any:
    """What waits for something to read from `sock`, or for its end."""
    poll = new_poll()
    poll.register(sock, POLLIN)
    return poll


class Wire(NamedTuple):
    """An open connection for threads."""

    sock: DeadlineSocket
    reader: Reader
    seat: Any = None  # its `Seat`, once it is in a channel's hands

    def close(self) -> None:
        """At once, without a word to the server, and without the shutdown() that a forked twin would feel."""
        if self.seat is not None:
            self.seat.open = False
        self.sock.close()


class AsyncWire(NamedTuple):
    """An open connection for tasks."""

    stream: asyncio.StreamReader
    writer: asyncio.StreamWriter
    reader: Reader
    poll: Any
    seat: Any = None  # its `Seat`, once it is in a channel's hands

    @classmethod
    def of(cls, stream: asyncio.StreamReader, writer: asyncio.StreamWriter, reader: Reader) -> AsyncWire:
        return cls(stream, writer, reader, poll_of(writer.get_extra_info("socket")))

    @property
    def stale(self) -> bool:
        return self.writer.transport.is_closing() or self.stream.at_eof() or bool(self.poll.poll(0))

    def close(self) -> None:
        if self.seat is not None:
            self.seat.open = False
        self.writer.transport.abort()


Dial = Callable[[float], Wire]
"""Opens a connection by the deadline; raises what a failure means for the lock, and leaves nothing open then."""
AsyncDial = Callable[[float], Awaitable[AsyncWire]]
Fit = Callable[[Any], bool]
"""Whether the connection that brought this reply is fit for others."""
