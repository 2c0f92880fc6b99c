"""What a prefork worker's main process and its children tell each other about leases, without the store.

A pipe, on which a child says before it asks for a lock with which token, and afterwards that it is done with it: so
the main process knows what a child that died may have left. And a shared page of memory, with a seat for each child:
the child writes until when its lease is valid; if a body that never lets go of the interpreter keeps the child from
renewing, the main process renews in its place, and writes until when the lease is valid then.
"""

from __future__ import annotations

import errno
import itertools
import json
import mmap
import os
import select
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any
from zlib import crc32

from .._hold import Hold
from .._options import Options
from .._process import clock

SEATS = 1024
_SEAT = struct.Struct("<16sdI")  # the first half of the token, the end of validity, a sum over both
_WIDTH = 32
LONGEST_LINE = 4096
"""Bytes that a pipe takes in one piece, so that lines of several children never mix (POSIX's PIPE_BUF, on Linux)."""
PIECE = 3000
"""Bytes of what is too long for that, such as the name of a lock, in each of several lines."""
PATIENCE = 1.0
"""Seconds that a child waits for the main process to read, where it has several lines to say."""


class Board:
    """Made in the main process before it forks; children find it where it was."""

    def __init__(self) -> None:
        self.main = os.getpid()
        self._page = mmap.mmap(-1, SEATS * 2 * _WIDTH)
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._rest = b""
        self._numbers = itertools.count()
        self._pieces: dict[tuple[int, int], list[bytes]] = {}

    @property
    def in_child(self) -> bool:
        """Whether this process is a child of the one that made it."""
        return os.getpid() != self.main

    def seat(self, number: int | None) -> Seat | None:
        """The seat of a child, by its number in the pool; `None` if there are not as many."""
        return Seat(self._page, number) if number is not None and 0 <= number < SEATS else None

    def tell(self, **facts: Any) -> bool:
        """Say it to the main process. False if it cannot be said: then nobody supervises, and the ttl decides."""
        line = json.dumps({"pid": os.getpid(), **facts}, default=str).encode()
        if len(line) < LONGEST_LINE:
            return self._write(line, 0.0)
        until = clock() + PATIENCE
        return all(self._write(piece, until - clock()) for piece in self._in_pieces(line))

    def _in_pieces(self, line: bytes) -> Iterator[bytes]:
        number, many = next(self._numbers), range(0, len(line), PIECE)
        for at in many:
            piece = b64encode(line[at : at + PIECE]).decode()
            last = at == many[-1]
            yield json.dumps({"pid": os.getpid(), "number": number, "piece": piece, "last": last}).encode()

    def _write(self, line: bytes, patience: float) -> bool:
        try:
            if patience > 0:
                room = select.poll()
                room.register(self._writer, select.POLLOUT)
                room.poll(patience * 1000)
            return os.write(self._writer, line + b"\n") == len(line) + 1
        except BlockingIOError:  # the main process is stopped, or far behind
            return False
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EBADF):  # it is gone
                return False
            raise

    def told(self) -> list[dict[str, Any]]:
        """What the children have said since the last look."""
        try:
            while True:
                data = os.read(self.reader, 1 << 16)
                if not data:
                    break
                self._rest += data
        except BlockingIOError:
            pass
        *lines, self._rest = self._rest.split(b"\n")
        return [facts for facts in map(self._whole, lines) if facts is not None]

    def _whole(self, line: bytes) -> dict[str, Any] | None:
        """What `line` says, or with it those before it; `None` if there is more to come."""
        facts: dict[str, Any] = json.loads(line)
        if "piece" not in facts:
            return facts
        key = facts["pid"], facts["number"]
        pieces = self._pieces.setdefault(key, [])
        pieces.append(b64decode(facts["piece"]))
        if not facts["last"]:
            return None
        whole: dict[str, Any] = json.loads(b"".join(self._pieces.pop(key)))
        return whole

    def forget(self, pid: int) -> None:
        """Nothing more comes from that child: throw away what it had no time to end."""
        self._pieces = {key: pieces for key, pieces in self._pieces.items() if key[0] != pid}

    def close(self) -> None:
        """Let go of it, in the main process."""
        for descriptor in (self.reader, self._writer):
            os.close(descriptor)


class Seat:
    """One child's place in the shared page: what it wrote itself, and what the main process wrote for it."""

    __slots__ = ("_own", "_page", "_parents", "number")

    def __init__(self, page: mmap.mmap, number: int) -> None:
        self._page = page
        self.number = number
        self._own = number * 2 * _WIDTH
        self._parents = self._own + _WIDTH

    def put_own(self, token: str, valid_until: float) -> None:
        self._put(self._own, token, valid_until)

    def put_parents(self, token: str, valid_until: float) -> None:
        self._put(self._parents, token, valid_until)

    def own(self, token: str) -> float | None:
        """Until when the child says that the lease `token` is valid; `None` if it says nothing of that lease."""
        return self._get(self._own, token)

    def parents(self, token: str) -> float | None:
        """Until when the main process says so, which asked the store."""
        return self._get(self._parents, token)

    def _put(self, at: int, token: str, valid_until: float) -> None:
        half = token[:16].encode()
        record = struct.pack("<16sd", half, valid_until)
        _SEAT.pack_into(self._page, at, half, valid_until, crc32(record))

    def _get(self, at: int, token: str) -> float | None:
        raw = self._page[at : at + _SEAT.size]
        half, valid_until, total = _SEAT.unpack(raw)
        # Half written counts as not written: nobody waits for the other side here.
        if half != token[:16].encode() or crc32(raw[:24]) != total:
            return None
        return float(valid_until)


class SeatedHold(Hold):
    """A hold whose end the main process may put off as well.

    Both renew the same token by the same ttl. Whichever request the store obeys last, the lock then stands at least
    until the later of the two ends: so that one counts. A lease that is given another ttl counts on its own requests
    alone, and never on more than the ttl that the main process uses.
    """

    __slots__ = ("_valid", "seat", "shared_ttl")

    def __init__(self, name: str, key: str, owner: str, token: str, options: Options, io: Any = None) -> None:
        self.seat: Seat | None = None
        self.shared_ttl = options.ttl
        super().__init__(name, key, owner, token, options, io)

    @property
    def valid_until(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The later of the two ends."""
        parents = self.seat.parents(self.token) if self.seat is not None else None
        return self._valid if parents is None else max(self._valid, parents)

    @valid_until.setter
    def valid_until(self, end: float) -> None:
        self._valid = end
        if self.seat is not None:
            self.seat.put_own(self.token, end)

    def extending(self, sent: float, ttl: float) -> None:
        if ttl < self.shared_ttl:
            self.seat = None
        super().extending(sent, min(ttl, self.shared_ttl))

    def extended(self, sent: float, ttl: float) -> None:
        super().extended(sent, min(ttl, self.shared_ttl))
