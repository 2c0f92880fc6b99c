"""What a lock says to memcached: meta commands, and the classic text commands where those must not be used.

https://github.com/memcached/memcached/blob/master/doc/protocol.txt. A request does not know its bytes before it has
a connection: how to say it depends on the server at the other end, which the connection's `Facts` describe. Every
meta request carries an opaque of its own, and a reply with another is not believed. Classic replies have none.
A request is given the `tail` with which its first line is to end: the opaque, and the line's end.
"""

from __future__ import annotations

import math
import random
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .._process import clock

if TYPE_CHECKING:
    from ._memcached_reader import Reader

LONGEST_RELATIVE = 30 * 86400
"""Seconds: a longer time is read as a date."""
LATEST = 2**31 - 1
"""The last second, as a date, that the server can read (measured, 1.6.18: a later one is already over)."""
TICKS = 2
"""Seconds that the server takes off a time at most.

It counts in its own seconds, set by a timer that fires about every 1.0006 s (measured): at any moment its clock is up
to one tick and one second behind, and that lag falls to nothing once in half an hour, just when a lock may be held.
"""

Value = tuple[bytes, int, int, bytes]
"""Of a lock: token, fence (0: the item's own CAS, as it is the first), date of expiry if known, owner."""
_OURS = re.compile(rb"(\S+) (\d{1,16}) (\d{1,10}) (.*)", re.DOTALL)


class Facts(NamedTuple):
    """What the server at the other end of one connection is. A connection lives in one life of its server."""

    life: int
    """When it was started, on its clock: names its life. The CAS numbers start again at 1 with each."""
    ahead: float
    """Seconds by which the server's clock, however late it ticks, is ahead of ours at most."""
    asked: float
    """When that was learned."""
    meta: bool
    """Whether meta commands are used."""

    def date(self, seconds: float) -> int:
        """The server's date in `seconds` from now, or a little later. Never sooner, though clocks drift apart."""
        now = clock()
        return math.ceil(now + self.ahead + (now - self.asked) / 1000 + seconds)

    def seconds_left(self, date: int) -> float:
        """From now to the server's `date`."""
        return max(1.0, date - clock() - self.ahead)


class TooFar(ValueError):
    """A ttl ends after what the server takes for the end of time."""


class Stored(NamedTuple):
    """The value is there, as version `cas` of that life."""

    life: int
    cas: int


class Found(NamedTuple):
    """What is there."""

    life: int
    cas: int
    value: bytes
    remaining: float | None

    @property
    def parts(self) -> Value | None:
        """The value as ours; `None` if other software set it."""
        match = _OURS.fullmatch(self.value)
        return (match[1], int(match[2]), int(match[3]), match[4]) if match else None


class Other(NamedTuple):
    """Nothing was changed: there is another version, or, for an add, something. Classic commands say what."""

    found: Found | None = None


class Gone(NamedTuple):
    """There is nothing, and nothing was changed."""


class Done(NamedTuple):
    """The item was removed, or we are authenticated."""


DONE = Done()


class OtherLife(NamedTuple):
    """Nothing was sent: the version that the request speaks of is of another life of the server."""


class Failure(NamedTuple):
    """An error line. What follows it on this connection cannot be trusted."""

    text: str


Ready = tuple[bytes, bytes]
"""What a `Put` says in meta commands before its tail, and after the token that follows that."""


def ready_for(key: bytes, size: int, owner: bytes, ttl: float) -> Ready | None:
    """For new locks with a token of `size` bytes. `None` if so long a ttl is told as a date, another each time."""
    seconds = math.ceil(ttl) + TICKS
    return _around(key, size, owner, seconds, 0, b"ME") if seconds <= LONGEST_RELATIVE else None


def _around(key: bytes, size: int, owner: bytes, seconds: int, fence: int, condition: bytes) -> Ready:
    # A renewal's value is as long as the first, so it needs no memory of a size that the server may have none of.
    after = b" %016d 0 %b\r\n" % (fence, owner)
    return b"ms %b %d T%d %b c" % (key, size + len(after) - 2, seconds, condition), after


class Put(NamedTuple):
    """Set `key` for `ttl` seconds if nothing is there (`cas` 0), or if version `cas` of `life` is."""

    key: bytes
    token: bytes
    fence: int
    owner: bytes
    ttl: float
    cas: int = 0
    life: int | None = None
    ready: Ready | None = None

    def pack(self, facts: Facts, tail: bytes) -> bytes:
        if self.ready and facts.meta:
            before, after = self.ready
            return before + tail + self.token + after
        seconds = math.ceil(self.ttl) + TICKS
        if seconds > LONGEST_RELATIVE:
            seconds = facts.date(self.ttl)
            if seconds > LATEST:
                raise TooFar(f"ttl={self.ttl:g} ends after the year 2038, which memcached does not know")
        key, token, fence, owner, _, cas, *_ = self
        if facts.meta:
            before, after = _around(key, len(token), owner, seconds, fence, b"C%d" % cas if cas else b"ME")
            return before + tail + token + after
        value = b"%b %016d %d %b" % (token, fence, facts.date(self.ttl), owner)
        if self.cas:
            put = b"cas %b 0 %d %d %d\r\n%b\r\n" % (key, seconds, len(value), self.cas, value)
        else:
            put = b"add %b 0 %d %d\r\n%b\r\n" % (key, seconds, len(value), value)
        return put + b"gets %b\r\n" % key  # the new version's number

    def read(self, reader: Reader) -> Any:
        if reader.facts.meta:
            words = reader.meta_line()
            if words[0] == b"HD":
                return Stored(reader.facts.life, int(words[1][1:]))
            return refusal(words[0])
        said = reader.line()
        refused = None if said == b"STORED" else refusal(said)
        found = reader.classic_item(self.key)
        if said == b"STORED":
            mine = found is not None and found.value.startswith(self.token + b" ")
            return Stored(found.life, found.cas) if mine and found is not None else Gone()
        return Other(found) if isinstance(refused, Other) else Gone()


class Drop(NamedTuple):
    """Remove version `cas` of `life` of `key`."""

    key: bytes
    cas: int
    life: int | None

    def pack(self, facts: Facts, tail: bytes) -> bytes:
        if facts.meta:
            return b"md %b C%d%b" % (self.key, self.cas, tail)
        return b"cas %b 0 -1 0 %d\r\n\r\n" % (self.key, self.cas)  # compared, then over at once

    def read(self, reader: Reader) -> Any:
        word = reader.meta_line()[0] if reader.facts.meta else reader.line()
        return DONE if word in (b"HD", b"STORED") else refusal(word)


class Look(NamedTuple):
    """What is at `key`."""

    key: bytes
    life: int | None = None

    def pack(self, facts: Facts, tail: bytes) -> bytes:
        return b"mg %b v t c%b" % (self.key, tail) if facts.meta else b"gets %b\r\n" % self.key

    def read(self, reader: Reader) -> Any:
        if not reader.facts.meta:
            return reader.classic_item(self.key)
        words = reader.meta_line()
        if words[0] == b"EN":
            return None
        size, left, cas = int(words[1]), int(words[2][1:]), int(words[3][1:])
        # It may be dropped as soon as the server's clock ticks: so one second less, until the last.
        remaining = None if left < 0 else max(1.0, left - 1.0)
        return Found(reader.facts.life, cas, reader.block(size), remaining)


class Stats(NamedTuple):
    """The server's statistics, or one section of them."""

    section: bytes = b""
    life: int | None = None

    def pack(self, _facts: Facts, _tail: bytes) -> bytes:
        return b"stats %b\r\n" % self.section if self.section else b"stats\r\n"

    def read(self, reader: Reader) -> dict[str, str]:
        found = {}
        while (line := reader.line()) != b"END":
            words = line.split(b" ", 2)
            if words[0] != b"STAT" or len(words) < 2:
                raise foreign(line)
            found[words[1].decode("utf-8", "replace")] = b"".join(words[2:]).decode("utf-8", "replace")
        return found


class Probe(NamedTuple):
    """Whether meta commands are answered as those are that we use: also a miss returns the opaque."""

    life: int | None = None

    def pack(self, _facts: Facts, tail: bytes) -> bytes:
        return b"mg %032x v%b" % (random.getrandbits(128), tail)

    def read(self, reader: Reader) -> bool:
        return reader.line() == b"EN O" + reader.opaque


class Authenticate(NamedTuple):
    """Say who we are: the text protocol's way, a set that is not stored."""

    user: str
    password: str
    life: int | None = None

    def __repr__(self) -> str:
        return f"Authenticate({self.user!r}, ...)"

    def pack(self, _facts: Facts, _tail: bytes) -> bytes:
        said = f"{self.user} {self.password}".encode()
        return b"set auth 0 0 %d\r\n%b\r\n" % (len(said), said)

    def read(self, reader: Reader) -> Any:
        line = reader.line()
        return DONE if line == b"STORED" else refusal(line)


def refusal(word: bytes) -> Other | Gone:
    """What it means that a comparison failed."""
    if word in (b"NS", b"EX", b"NOT_STORED", b"EXISTS"):
        return Other()
    if word in (b"NF", b"NOT_FOUND"):
        return Gone()
    raise foreign(word)


def foreign(line: bytes) -> ValueError:
    """The error for a line that memcached does not say."""
    return ValueError(f"the server does not speak memcached's protocol: {line[:60]!r}")
