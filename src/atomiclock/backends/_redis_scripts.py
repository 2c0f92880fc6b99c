"""What a lock asks of Redis: four scripts, each one step for the server."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from . import Steps
from ._redis_errors import checked
from ._resp import ServerError, bulk


class Keys:
    """The keys of one lock, ready to be said. In a cluster all are in one slot: that of what is in the lock's braces,
    else of all of it."""

    __slots__ = ("four", "pair", "stem", "three", "wake")

    def __init__(self, lock: bytes, stem: bytes) -> None:
        self.stem = stem
        self.pair = bulk(lock) + bulk(stem + b":info")
        """The lock, and what its holder says of itself beside it."""
        self.three = self.pair + bulk(stem + b":waiting")
        """... and whether anybody waits."""
        self.wake = bulk(stem + b":wake")
        """A list on which who waits blocks."""
        self.four = self.three + self.wake
        """... all of these."""

    def around(self, size: int) -> tuple[bytes, bytes, bytes]:
        """The tombstone of an attempt, and its token of `size` bytes: what is said before, between and after these."""
        return b"$%d\r\n%b:" % (len(self.stem) + 1 + size, self.stem), b"\r\n$%d\r\n" % size, b"\r\n"


@lru_cache(maxsize=256)
def keys_of(key: str) -> Keys:
    """The keys of the lock `key`: most programs use a few again and again."""
    lock = key.encode("utf-8", "surrogatepass")
    start, end = lock.find(b"{"), lock.find(b"}", lock.find(b"{"))
    stem = lock if start >= 0 and end > start + 1 else b"{" + lock + b"}"
    return Keys(lock, stem)


class Script:
    """A script of the server, asked for by its digest, and in full when the server does not know it."""

    def __init__(self, text: str, keys: int, args: int) -> None:
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        size, number = b"*%d\r\n" % (3 + keys + args), bulk(b"%d" % keys)
        self.short = size + bulk(b"EVALSHA") + bulk(self.sha) + number
        """What comes before the keys and the arguments."""
        self._full = size + bulk(b"EVAL") + bulk(self.text) + number

    def instead(self, reply: ServerError, rest: bytes) -> Steps[Any]:
        """The reply, after the server has answered `reply` to `short` and `rest`; raises what an error means."""
        error: Any = reply
        if reply.code == "NOSCRIPT":  # nothing was done
            error = yield self._full + rest
        return checked(error)


def has_lock(reply: Any) -> bool:
    """Whether that is a yes of `ADD`."""
    return type(reply) is bytes or reply[0] == 1


# KEYS: lock, info, waiting, tombstone. ARGV: token, ttl in ms, owner, ms to note that we wait (0: we do not)
ADD = Script(
    """
if redis.call('EXISTS', KEYS[4]) == 1 then return {-1} end
local repeated = 0
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local held = redis.call('GET', KEYS[1])
  if held ~= ARGV[1] then
    if ARGV[4] ~= '0' then redis.call('SET', KEYS[3], '', 'PX', ARGV[4]) end
    return {0, redis.call('PTTL', KEYS[1]), held, redis.call('GET', KEYS[2])}
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  repeated = 1
end
local now = redis.call('TIME')
local fence = now[1] .. string.format('%06d', now[2])
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. fence .. ' ' .. ARGV[3], 'PX', ARGV[2])
if repeated == 0 then return fence end
return {1, fence}
""",
    keys=4,
    args=4,
)
"""Replies with the fence, or with 1 and the fence if the token had the lock already; with 0, the milliseconds left, and
who has it; or with -1, if the token was given up."""

# KEYS: lock, info, waiting, wake, tombstone. ARGV: token, adds in flight, tombstone in ms, wake-up in ms
REMOVE = Script(
    """
local held = redis.pcall('GET', KEYS[1])
local mine = held == ARGV[1]
local flying = tonumber(ARGV[2])
local woken = 0
if mine then
  redis.call('DEL', KEYS[1], KEYS[2])
  flying = flying - 1
end
if flying > 0 then redis.call('SET', KEYS[5], '', 'PX', ARGV[3]) end
if (mine or not held) and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('DEL', KEYS[4])
  redis.call('RPUSH', KEYS[4], '')
  redis.call('PEXPIRE', KEYS[4], ARGV[4])
  woken = 2
end
return woken + (mine and 1 or 0)
""",
    keys=5,
    args=4,
)
"""Replies with 1 if the token had the lock, and 2 more if a waiter was woken."""

# KEYS: lock, info. ARGV: token, ttl in ms
EXTEND = Script(
    """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""",
    keys=2,
    args=2,
)

# KEYS: lock, info
PEEK = Script(
    "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2])}", keys=2, args=0
)
