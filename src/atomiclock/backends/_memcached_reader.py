"""The conversation with memcached on one connection: says each request as its server needs it, and reads the reply."""

from __future__ import annotations

import random
from typing import Any

from ._meta import Facts, Failure, Found, OtherLife, TooFar, foreign
from ._wire import MORE

LONGEST = 1 << 18
"""Bytes: a lock's replies, and the server's statistics, are far shorter."""


ERRORS = (b"ERROR", b"CLIENT_ERROR ", b"SERVER_ERROR ")


class _Incomplete(Exception):
    pass


NOBODY = Facts(0, 0.0, 0.0, meta=False)
"""Of a server that was not asked yet."""


class Reader:
    """Both ends of a conversation: says requests the way its server needs them, and cuts replies out of what comes.

    Raises `ValueError` for what is not the reply to the request.
    """

    __slots__ = ("_at", "_buffer", "_number", "_unsent", "facts", "opaque")

    def __init__(self) -> None:
        self.facts = NOBODY
        self.opaque = b""
        self._number = random.getrandbits(40)
        self._buffer = b""
        self._at = 0
        self._unsent: Any = None

    def prepare(self, request: Any) -> bytes:
        """What is to be sent for `request`: nothing if it must not go to this server, and the reply says why."""
        self._number = number = self._number + 1
        self.opaque = opaque = b"%x" % number
        life = request.life
        if life is not None and life != self.facts.life:
            self._unsent = OtherLife()
            return b""
        try:
            return request.pack(self.facts, opaque)  # type: ignore[no-any-return]  # as every request's
        except TooFar as error:
            self._unsent = error
            return b""

    @property
    def empty(self) -> bool:
        return not self._buffer

    def feed(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > LONGEST:
            raise ValueError("the server's reply is too long for a lock's")

    def get(self, request: Any) -> Any:
        buffer = self._buffer
        if not buffer:
            value, self._unsent = self._unsent, None
            return MORE if value is None else value
        if buffer.startswith(ERRORS):
            end = buffer.find(b"\n")
            if end < 0:
                return MORE
            value, self._at = Failure(buffer[:end].decode("utf-8", "replace").strip()), end + 1
        else:
            self._at = 0
            try:
                value = request.read(self)
            except _Incomplete:
                return MORE
            except IndexError:
                raise foreign(buffer) from None
        self._buffer = buffer[self._at :]
        return value

    def line(self) -> bytes:
        at, buffer = self._at, self._buffer
        end = buffer.find(b"\n", at)
        if end < 0:
            raise _Incomplete
        if buffer[end - 1 : end] != b"\r":
            raise foreign(buffer[at:end])
        self._at = end + 1
        return buffer[at : end - 1]

    def meta_line(self) -> list[bytes]:
        """The words of a meta reply to our request, whose last is the opaque."""
        line = self.line()
        words = line.split(b" ")
        if words[-1] != b"O" + self.opaque:
            if words[0] in (b"HD", b"NS", b"EX", b"NF", b"EN", b"VA"):
                raise ValueError("the reply belongs to another request")
            raise foreign(line)
        return words

    def block(self, size: int) -> bytes:
        end = self._at + size
        if size < 0 or size > LONGEST:
            raise ValueError("the server's reply is too long for a lock's")
        if len(self._buffer) < end + 2:
            raise _Incomplete
        if self._buffer[end : end + 2] != b"\r\n":
            raise foreign(self._buffer[end : end + 2])
        data, self._at = self._buffer[self._at : end], end + 2
        return data

    def classic_item(self, key: bytes) -> Found | None:
        """The reply to `gets`."""
        line = self.line()
        if line == b"END":
            return None
        words = line.split(b" ")
        if words[0] != b"VALUE" or words[1] != key or len(words) != 5:
            raise foreign(line)
        found = Found(self.facts.life, int(words[4]), self.block(int(words[3])), None)
        if self.line() != b"END":
            raise foreign(line)
        parts = found.parts
        return found._replace(remaining=self.facts.seconds_left(parts[2])) if parts and parts[2] else found
