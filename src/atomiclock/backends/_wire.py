"""What adapters share that speak to a server over a stream: requests, sockets with a deadline, and connections.

An adapter gives a dial, which opens a connection and makes the reader of its replies; the pool is in `_wire_pool`.
"""

from __future__ import annotations

import _socket
import encodings.idna  # noqa: F401  # a socket needs it when it connects: now it is loaded under `_process.loading`
import math
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from .._process import clock
from ._poll import POLLIN, new_poll


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


class Parting(bytes):
    """A request that `tell`s when it has left."""

    tell: Callable[[], object]

    @classmethod
    def of(cls, request: bytes, tell: Callable[[], object]) -> Parting:
        made = cls(request)
        made.tell = tell
        return made


CLOSED = "the server closed the connection"
MORE: Any = object()
"""In place of a reply: what came so far is not all of it."""


class Reader(Protocol):
    """Cuts replies out of what one connection brings, in pieces of any size. Raises `ValueError` for what is none."""

    rest: bytes
    """What is left over: bytes that nobody asked for make a connection unfit for use."""

    def prepare(self, request: Any) -> tuple[bytes, Any]:
        """What to send for `request`, and `MORE`; or nothing, if this server must not be told, and the reply: why."""
        ...

    def take(self, data: bytes, request: Any) -> Any:
        """The reply to `request` after `data` came, or `MORE` if that is not all of it."""
        ...


class DeadlineSocket:
    """A socket whose every wait ends at one deadline, however often it is waited on."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self.deadline = deadline
        self.poll = poll_of(sock).poll

    def settled(self) -> DeadlineSocket | SettledSocket:
        """What to go on with, now that the connection is made."""
        if hasattr(self._sock, "unwrap"):
            return self  # TLS has to read and write at other times than its user does, so it waits by itself
        return SettledSocket(self._sock, self.poll)

    def _arm(self) -> socket.socket:
        left = self.deadline - clock()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock

    def recv(self, size: int) -> bytes:
        return self._arm().recv(size)

    def recv_into(self, *args: Any) -> int:
        return self._arm().recv_into(*args)

    def sendall(self, data: bytes) -> None:
        self._arm().sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


SPELL = 1.0
"""Seconds for which a thread waits in one call into the system, where the deadline is not nearer than that."""
_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class SettledSocket:
    """The same for a connection that is made, in as few calls into the system as there can be.

    It waits in a receive that the system itself ends after `SPELL`, or else in a `poll` before it. The main thread does
    the latter: signals come to it, and after each Python begins a receive anew, however late it is by then.
    """

    __slots__ = ("_main", "_receive", "_send", "_sock", "_spell", "deadline", "poll")

    def __init__(self, sock: socket.socket, poll: Callable[[float], Any]) -> None:
        self._sock = sock
        self._send, self._receive, self.poll = sock.send, sock.recv, poll
        self.deadline = 0.0
        self._main, self._spell = threading.main_thread().ident, math.inf
        if sys.platform == "linux" and type(sock).recv is _socket.socket.recv:  # else another library waits in it
            with suppress(OSError):  # where a 32-bit system's times have 64 bits, they look different
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(SPELL), 0))
                self._spell = SPELL
        self._set_mode()

    def _set_mode(self) -> None:
        self._sock.setblocking(self._spell == SPELL)

    def recv(self, size: int) -> bytes:
        while True:
            left = self.deadline - clock()
            try:
                if left >= self._spell and threading.get_ident() != self._main:
                    return self._receive(size)
                if left <= 0 or not self.poll(left * 1000):
                    raise TimeoutError("timed out")
                return self._receive(size, _DONT_WAIT)
            except BlockingIOError:  # a spell is over, or it was for nothing that poll woke us
                continue

    def sendall(self, data: bytes) -> None:
        try:
            sent = self._send(data, _DONT_WAIT)
        except BlockingIOError:  # there is no room
            sent = 0
        if sent < len(data):
            self._send_rest(data[sent:])

    def _send_rest(self, data: bytes) -> None:
        left = self.deadline - clock()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        self._sock.sendall(data)
        self._set_mode()

    def close(self) -> None:
        self._sock.close()


def poll_of(sock: socket.socket) -> Any:
    """What waits for something to read from `sock`, or for its end."""
    poll = new_poll()
    poll.register(sock, POLLIN)
    return poll


CHUNK = 8192
"""Bytes to read at a time: more than most replies, and few enough that to make room for them costs nothing."""
HEARING = 0.05
"""Seconds for what has begun to come already."""


class Wire:
    """An open connection for threads."""

    __slots__ = ("reader", "seat", "sock")

    def __init__(self, sock: DeadlineSocket | SettledSocket, reader: Reader, seat: Any = None) -> None:
        self.sock = sock
        self.reader = reader
        self.seat = seat  # its `Seat`, once it is in a channel's hands

    def fit(self) -> bool:
        """Whether it may be used again. Where readers have a `hear`, the server may speak of itself in between."""
        if not self.sock.poll(0):
            return True
        hear: Callable[[bytes], bool] | None = getattr(self.reader, "hear", None)
        if hear is None:
            return False  # mostly the end, because the server went away
        self.sock.deadline = clock() + HEARING
        with suppress(OSError, ValueError):
            data = self.sock.recv(CHUNK)
            return bool(data) and hear(data)
        return False

    def close(self) -> None:
        """At once, without a word to the server, and without the shutdown() that a forked twin would feel."""
        if self.seat is not None:
            self.seat.open = False
        self.sock.close()


def exchange(wire: Wire, request: Any, deadline: float, tell: Callable[[], object] | None = None) -> Any:
    """Send `request`, `tell` that it has left, and return the reply to it."""
    sock, reader = wire.sock, wire.reader
    sock.deadline = deadline
    said, known = reader.prepare(request)
    if said:
        sock.sendall(said)
    elif known is not MORE:
        return known
    if tell is not None:
        tell()
    while True:
        data = sock.recv(CHUNK)
        if not data:
            raise ConnectionError(CLOSED)
        reply = reader.take(data, request)
        if reply is not MORE:
            return reply


Dial = Callable[[float], Wire]
"""Opens a connection by the deadline; raises what a failure means for the lock, and leaves nothing open then."""
Fit = Callable[[Any], bool]
"""Whether the connection that brought this reply is fit for others."""
