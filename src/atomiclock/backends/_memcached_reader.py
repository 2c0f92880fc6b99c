"""The conversation with memcached on one connection: says each request as its server needs it, and reads the reply."""

from __future__ import annotations

import random
from itertools import count
from typing import Any

from . import quick
from ._meta import DONE, Drop, Facts, Failure, Found, OtherLife, Put, Stored, TooFar, foreign
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

    __slots__ = ("_at", "_next", "_tail", "facts", "rest")

    def __init__(self) -> None:
        self.facts = NOBODY
        self.rest = b""
        self._tail = b""  # of the request's first line, and of the first line of a meta reply to it
        self._next = count(random.getrandbits(40)).__next__
        self._at = 0

    @property
    def opaque(self) -> bytes:
        """What tells the reply to the request from others, if it is a meta request."""
        return self._tail[2:-2]

    def prepare(self, request: Any) -> tuple[bytes, Any]:
        """What to send for `request`, and `MORE`; or nothing, if this server must not be told, and the reply: why."""
        self._tail = tail = b" O%x\r\n" % self._next()
        life = request.life
        if life is not None and life != self.facts.life:
            return b"", OtherLife()
        try:
            return request.pack(self.facts, tail), MORE
        except TooFar as error:
            return b"", error

    def take(self, data: bytes, request: Any) -> Any:
        if data.endswith(self._tail) and not self.rest:  # all at once, as it mostly comes
            if type(request) is Drop:
                if data == b"HD" + self._tail:
                    return DONE
            elif type(request) is Put and data.startswith(b"HD c"):
                return quick(Stored, (self.facts.life, int(data[4 : -len(self._tail)])))
        self.rest = buffer = self.rest + data if self.rest else data
        self._at = 0
        if len(buffer) > LONGEST:
            raise ValueError("the server's reply is too long for a lock's")
        if buffer.startswith(ERRORS):
            end = buffer.find(b"\n")
            if end < 0:
                return MORE
            value, self._at = Failure(buffer[:end].decode("utf-8", "replace").strip()), end + 1
        else:
            try:
                value = request.read(self)
            except _Incomplete:
                return MORE
            except IndexError:
                raise foreign(buffer) from None
        self.rest = buffer[self._at :]
        return value

    def line(self) -> bytes:
        at, buffer = self._at, self.rest
        end = buffer.find(b"\n", at)
        if end < 0:
            raise _Incomplete
        if buffer[end - 1 : end] != b"\r":
            raise foreign(buffer[at:end])
        self._at = end + 1
        return buffer[at : end - 1]

    def meta_line(self) -> list[bytes]:
        """The words of a meta reply to our request, but for the last, which is the opaque."""
        end = self.rest.find(b"\n") + 1
        line = self.rest[:end]
        if line.endswith(self._tail):
            self._at = end
            return line[: -len(self._tail)].split(b" ")
        line = self.line()
        if line.split(b" ")[0] in (b"HD", b"NS", b"EX", b"NF", b"EN", b"VA"):
            raise ValueError("the reply belongs to another request")
        raise foreign(line)

    def block(self, size: int) -> bytes:
        end = self._at + size
        if size < 0 or size > LONGEST:
            raise ValueError("the server's reply is too long for a lock's")
        if len(self.rest) < end + 2:
            raise _Incomplete
        if self.rest[end : end + 2] != b"\r\n":
            raise foreign(self.rest[end : end + 2])
        data, self._at = self.rest[self._at : end], end + 2
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
