"""RESP2, the part of Redis's protocol that a lock speaks: https://redis.io/docs/reference/protocol-spec"""

from __future__ import annotations

from typing import Any

from ._wire import MORE, Several

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


class Reader:
    """Cuts replies out of what arrives, in pieces of any size. Raises `ValueError` for what is no RESP2."""

    __slots__ = ("_at", "_buffer")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0

    @property
    def empty(self) -> bool:
        return not self._buffer

    def feed(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > LONGEST:
            raise ValueError("the server's reply is too long for a lock's")

    def get(self, request: bytes = b"") -> Any:
        """The next reply, or `MORE` until that was fed; for `Several` requests, the list of theirs."""
        if not self._buffer:
            return MORE
        self._at = 0
        try:
            value = [self._value(0) for _ in range(request.number)] if isinstance(request, Several) else self._value(0)
        except _Incomplete:
            return MORE
        self._buffer = self._buffer[self._at :]
        return value

    def _line(self) -> bytes:
        end = self._buffer.find(b"\r\n", self._at)
        if end < 0:
            raise _Incomplete
        line, self._at = self._buffer[self._at : end], end + 2
        return line

    def _value(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self._bulk(int(rest))
        if kind == b"+":
            return rest
        if kind == b"-":
            return ServerError(rest.decode("utf-8", "replace"))
        if kind == b"*" and depth < 3:
            size = int(rest)
            return None if size < 0 else [self._value(depth + 1) for _ in range(min(size, LONGEST))]
        raise ValueError(f"the server does not speak Redis's protocol: {line[:40]!r}")

    def _bulk(self, size: int) -> bytes | None:
        if size < 0:
            return None
        end = self._at + size
        if len(self._buffer) < end + 2:
            raise _Incomplete
        data, self._at = self._buffer[self._at : end], end + 2
        return data
