"""A guard for values in Redis."""

from __future__ import annotations

from typing import Any

from .._options import CHECKS
from ..errors import BackendUnavailable
from ._number import Fenced, Number, number_of

# KEYS: value, fence. ARGV: fence in 19 digits, value, ttl in ms (0: none)
# Fences are compared as texts of one length: Lua's numbers are doubles, and fences of Redis are above 2^53.
SET_IF_NOT_STALE = """
local seen = redis.call('GET', KEYS[2])
if seen and (#seen ~= 19 or seen:find('%D')) then
  return redis.error_reply('ERR the fence at ' .. KEYS[2] .. ' is not one of atomiclock')
end
if seen and seen > ARGV[1] then return seen end
redis.call('SET', KEYS[2], ARGV[1])
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return ''
"""
"""The script of `fenced_set`, for other clients. It returns '' when it has written, else the later fence."""


def fenced_set(client: Any, key: str | bytes, value: Any, *, fence: int | Fenced, ttl: float | None = None) -> None:
    """SET `key` to `value`, for `ttl` seconds if given, unless a later fence was seen for it: then `StaleFence`.

    `client` is a redis.Redis. The fence is kept at `{key}:fence`, in the slot of `key` and for ever: without it a late
    holder would be the first. Raises redis-py's own errors; after one of those nobody knows whether it was written, and
    it may be repeated.
    """
    number = number_of(fence)
    _judge(client.eval(SET_IF_NOT_STALE, 2, *_arguments(key, value, number, ttl)), number, key)


async def async_fenced_set(
    client: Any, key: str | bytes, value: Any, *, fence: int | Fenced, ttl: float | None = None
) -> None:
    """`fenced_set` for a redis.asyncio.Redis."""
    number = number_of(fence)
    _judge(await client.eval(SET_IF_NOT_STALE, 2, *_arguments(key, value, number, ttl)), number, key)


def _arguments(key: str | bytes, value: Any, number: Number, ttl: float | None) -> list[Any]:
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else bytes(key)
    start, end = data.find(b"{"), data.find(b"}", data.find(b"{"))
    stem = data if start >= 0 and end > start + 1 else b"{" + data + b"}"
    lives = 0 if ttl is None else max(1, round(CHECKS["ttl"]("ttl", ttl) * 1000))
    return [data, stem + b":fence", f"{number.value:019d}", value, lives]


def _judge(reply: Any, number: Number, key: str | bytes) -> None:
    text = reply.decode("ascii", "replace") if isinstance(reply, bytes) else reply
    if not isinstance(text, str) or (text and not text.isdecimal()):
        raise BackendUnavailable(f"Redis gave a strange answer to a guarded write: {reply!r}"[:200], name=number.name)
    if text:
        raise number.stale(f"{key!r} in Redis", int(text))
