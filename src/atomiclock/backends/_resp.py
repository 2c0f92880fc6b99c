"""RESP2, the part of Redis's protocol that a lock speaks: https://redis.io/docs/reference/protocol-spec"""

from __future__ import annotations

from typing import Any

from ._wire import MORE, Blocking, Several

LONGEST = 1 << 20
"""Bytes: a lock's replies are far shorter, so a longer one is not a lock's."""


class ServerError(Exception):
    """An error reply. `code` is its first word."""

    @property
    def code(self) -> str:
        return str(self.args[0]).partition(" ")[0]


class _Incomplete(Exception):
    pass


def bulk(part: bytes) -> bytes:
    """A part of a command. It is sent with its length, so no byte in it can be read as anything else."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


def pack(*parts: bytes) -> bytes:
    """A command."""
    return b"*%d\r\n" % len(parts) + b"".join(map(bulk, parts))


class Woken(Blocking):
    """Wait to be woken by an element of a list, and then do something that is answered with sixteen digits if all goes
    well: such a reply is read at one look, since somebody waits for it. It begins with `usual`, of `size` bytes."""

    usual: bytes
    size: int

    @classmethod
    def of_key(cls, key: bytes, seconds: float, then: bytes) -> Woken:
        """`key` is that of the list, ready to be said."""
        made = cls.of([_BLPOP + key + bulk(b"%.3f" % seconds), then])
        made.usual = b"*2\r\n%b$0\r\n\r\n$16\r\n" % key
        made.size = len(made.usual) + 18
        return made


_BLPOP = b"*3\r\n" + bulk(b"BLPOP")


class Reader:
    """Cuts replies out of what arrives, in pieces of any size. Raises `ValueError` for what is no RESP2."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""

    def prepare(self, request: bytes) -> tuple[bytes, Any]:
        """What to send for `request`: that is ready to be sent."""
        return request, MORE

    def take(self, data: bytes, request: bytes = b"") -> Any:
        """The next reply after `data` came, or `MORE`; for `Several` requests, the list of theirs."""
        if not isinstance(request, Several) and not self.rest:  # what a lock is mostly told, at one look
            if data in _SMALL:
                return _SMALL[data]
            if len(data) == 23 and data.startswith(b"$16\r\n") and data.endswith(b"\r\n"):
                return data[5:21]
        if self.rest:
            data = self.rest + data
        if len(data) > LONGEST:
            raise ValueError("the server's reply is too long for a lock's")
        try:
            if type(request) is Woken and len(data) == request.size and data.startswith(request.usual):
                self.rest = b""
                return [True, data[-18:-2]]
            if isinstance(request, Several):
                value, at = _values(data, 0, request.number, 0)
            else:
                value, at = _value(data, 0, 0)
        except _Incomplete:
            self.rest = data
            return MORE
        self.rest = data[at:]
        return value


_SMALL = {b":%d\r\n" % number: number for number in range(4)}
_SIMPLE, _ERROR, _INTEGER, _BULK, _ARRAY = b"+-:$*"


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The reply that begins at `at`, and where the next one does. In few calls: who waits for a lock waits for this."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _Incomplete
    kind, rest, after = data[at], data[at + 1 : end], end + 2
    if kind == _BULK:
        size = int(rest)
        if size < 0:
            return None, after
        end = after + size
        if len(data) < end + 2:
            raise _Incomplete
        return data[after:end], end + 2
    if kind == _INTEGER:
        return int(rest), after
    if kind == _ARRAY and depth < 3:
        size = int(rest)
        return (None, after) if size < 0 else _values(data, after, min(size, LONGEST), depth + 1)
    if kind == _SIMPLE:
        return rest, after
    if kind == _ERROR:
        return ServerError(rest.decode("utf-8", "replace")), after
    raise ValueError(f"the server does not speak Redis's protocol: {data[at:end][:40]!r}")


def _values(data: bytes, at: int, number: int, depth: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(number):
        value, at = _value(data, at, depth)
        values.append(value)
    return values, at
