"""redis://, rediss://, valkey://, valkeys://, redis+unix://: one Redis or Valkey server, 6.0 or newer.

A lock is the plain string KEY with the token, set by SET NX PX, as redis-py's Lock and other single-node Redis
locks have it. Beside it, only while it is held or waited for, there may be
    {KEY}:info     token, fence and owner of the holder, for people
    {KEY}:waiting  set while somebody waits
    {KEY}:wake     the list on which waiters block; the server serves them first come first served
    {KEY}:TOKEN    a tombstone: an add of that token may still be on its way, and is refused
all in the hash slot of KEY. The fence is the server's clock in microseconds: it also grows after FLUSHALL or a
restart, as long as that clock does not go back, and costs no key that would have to be kept for ever.

redis-py opens the connections: its URLs, TLS, authentication and defaults apply. What goes over them is written
and read here, because a lock needs what the client does not give: one deadline for the whole exchange however
slowly the bytes drip, no repetition behind our back, and a connection that is closed when anything, a signal
too, comes between a request and its reply (redis-py 8.1 pools it, and the next command reads the old reply).
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
import redis.asyncio

from .. import _process
from .._options import bound_from_text
from .._url import URL, mask
from ..errors import ConfigurationError, LockError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Unknown, Wait, quick
from ._redis_dial import NOT_OURS, async_dial, dial
from ._redis_errors import checked, refuses
from ._redis_scripts import ADD, EXTEND, PEEK, REMOVE, has_lock, keys_of
from ._resp import ServerError, Woken, bulk
from ._wire import NO_ROOM, Nap, Parting, Several
from ._wire_pool import WireChannel
from ._wire_tasks import AsyncWireChannel

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

TOMBSTONE = 600.0
"""Seconds for which a late add is refused: longer than a request is likely to be on its way."""
WAKE = 5.0
"""Seconds for which a wake-up waits for its waiter, who is between its last add and its wait."""
FOREIGN_POLL = 0.1
"""Seconds between tries while the holder is other software, whose release wakes nobody."""
BLPOP_LATE = 0.1
"""Seconds by which an idle server ends a BLPOP or a WAIT late: it looks at its clock ten times a second (7.0)."""
CROWDED = (0.025, 0.5)
"""Seconds between tries, from the first to the last, while all connections that may wait at the server do so."""
GIVEN_WAY = 0.2
"""Seconds that a process which has woken a waiter of another waits to be woken, before it asks for the lock again."""
JUST_NOW = 0.02
"""Seconds after a release that has woken a waiter during which the lock is his."""


class Info(NamedTuple):
    """What our own holders say of themselves beside the lock."""

    fence: int
    owner: str


def info_of(token: bytes, info: Any) -> Info | None:
    """What `info` says of the holder with `token`; `None` if it says nothing, or speaks of another."""
    if not isinstance(info, bytes):
        return None
    whose, _, rest = info.partition(b" ")
    fence, _, owner = rest.partition(b" ")
    if whose != token or not fence.isdigit() or len(fence) > 19:
        return None
    return Info(int(fence), owner.decode("utf-8", "replace"))


def milliseconds(seconds: float) -> int:
    """Rounded up: the server must not drop the key before the lease ends."""
    return -int(-seconds * 1000 // 1)


# Most programs use a few names again and again: what they say differs only where the token is.


def _to_add(key: str, token: str, ttl: float, owner: str, waiting: bool) -> bytes:
    """The keys and arguments of `ADD`."""
    said = token.encode()
    before, between, after = _addition(key, len(said), ttl, owner, waiting)
    return before + said + between + said + after


@lru_cache(maxsize=256)
def _addition(key: str, size: int, ttl: float, owner: str, waiting: bool) -> tuple[bytes, bytes, bytes]:
    """What `_to_add` says before, between and after the two places of a token of `size` bytes."""
    keys = keys_of(key)
    before, between, after = keys.around(size)
    return keys.three + before, between, after + _terms(ttl, owner, waiting)


@lru_cache(maxsize=256)
def _terms(ttl: float, owner: str, waiting: bool) -> bytes:
    """The arguments of `ADD` after the token: mostly the same for all locks of a thread."""
    note = milliseconds(2 * WAKE) if waiting else 0
    return bulk(b"%d" % milliseconds(ttl)) + bulk(owner.encode("utf-8", "replace")) + bulk(b"%d" % note)


def _to_remove(key: str, token: str, in_flight: int) -> bytes:
    """The keys and arguments of `REMOVE`."""
    said = token.encode()
    before, between, after = _removal(key, len(said), in_flight)
    return before + said + between + said + after


@lru_cache(maxsize=256)
def _removal(key: str, size: int, in_flight: int) -> tuple[bytes, bytes, bytes]:
    """What `_to_remove` says before, between and after the two places of a token of `size` bytes."""
    keys = keys_of(key)
    before, between, after = keys.around(size)
    return keys.four + before, between, after + _removal_terms(in_flight)


@lru_cache(maxsize=16)
def _removal_terms(in_flight: int) -> bytes:
    """The arguments of `REMOVE` after the token."""
    return bulk(b"%d" % in_flight) + bulk(b"%d" % milliseconds(TOMBSTONE)) + bulk(b"%d" % milliseconds(WAKE))


def _to_extend(ask: Add | Wait | Extend) -> bytes:
    """The keys and arguments of `EXTEND`."""
    return keys_of(ask.key).pair + bulk(ask.token.encode()) + bulk(b"%d" % milliseconds(ask.ttl))


def _added(reply: Any) -> Granted | Busy:
    if type(reply) is bytes:
        return quick(Granted, (int(reply), False))
    if reply[0] == 1:
        return Granted(int(reply[1]), repeated=True)
    if reply[0] == 0:
        info = info_of(reply[2], reply[3])
        left = reply[1] / 1000 if reply[1] >= 0 else None
        return Busy(left, info.owner if info else None, signals=info is not None)
    raise Unknown("the attempt had been given up already", sent=False)


class RedisBackend:
    """Locks on one Redis or Valkey server."""

    wait_adds = True

    traits = Traits(
        scope="network",
        fence="clock",
        waits="wake",
        survives_restart="if persisted",
        ttl_step=0.001,
        longest_ttl=1e9,
        loses="a server that lost its data, evicts it or fails over to a replica; a jump of its clock",
    )

    def __init__(
        self, classes: tuple[Any, ...], kwargs: dict[str, Any], place: str, bound: float = 3.0, replicas: int = 0
    ) -> None:
        self.place = place
        self.request_bound = bound
        self._replicas = replicas  # that must have a lock before it counts as acquired or extended
        self.pipelines = not replicas
        self._contended: dict[str, float] = {}  # keys whose release has just woken a waiter, and when
        self._classes = classes  # redis-py's connection for threads and for tasks
        self._kwargs = kwargs

    @classmethod
    def from_url(cls, url: URL) -> RedisBackend:
        options = url.take(
            db=_database, io_timeout=bound_from_text, replicas=_count,
            ssl_ca_certs=_text, ssl_certfile=_text, ssl_keyfile=_text,
        )  # fmt: skip
        if url.host is None and url.scheme != "redis+unix":
            raise ConfigurationError(f"{url.scheme}:// needs a host, as in {url.scheme}://localhost:6379/0")
        if url.port == 0:
            raise ConfigurationError(f"{url.scheme}://{url.host}:0 has no server: the port is from 1 to 65535")
        if "," in url.netloc:
            raise ConfigurationError(f"{url.scheme}:// takes one server: a lock must live on one")
        kwargs: dict[str, Any] = {"username": url.username, "password": url.password, **options}
        bound, replicas = kwargs.pop("io_timeout", 3.0), kwargs.pop("replicas", 0)
        tls = url.scheme in ("rediss", "valkeys")
        if not tls and any(key.startswith("ssl_") for key in kwargs):
            raise ConfigurationError(f"ssl_* options need rediss:// or valkeys://, not {url.scheme}://")
        if url.scheme == "redis+unix":
            if url.host or not url.path.strip("/"):
                raise ConfigurationError("redis+unix:// needs the socket's absolute path: redis+unix:///run/redis.sock")
            kwargs["path"] = url.path
            pair: tuple[Any, ...] = (redis.UnixDomainSocketConnection, redis.asyncio.UnixDomainSocketConnection)
            return cls(pair, kwargs, f"redis+unix://{url.path}", bound, replicas)
        if tls:
            kwargs["ssl_check_hostname"] = True  # which redis-py 5 does not do by itself
        if url.path.strip("/"):
            kwargs["db"] = _database("db", url.path.strip("/"))
        kwargs.update(host=url.host, port=6379 if url.port is None else url.port)
        pair = (
            (redis.SSLConnection, redis.asyncio.SSLConnection) if tls else (redis.Connection, redis.asyncio.Connection)
        )
        return cls(pair, kwargs, mask(f"{url.scheme}://{url.netloc}{url.path}"), bound, replicas)

    @classmethod
    def from_client(cls, client: Any, colour: str) -> RedisBackend:
        """For the server of a redis.Redis (or redis.asyncio.Redis) client, with that client's settings."""
        pool = getattr(client, "connection_pool", None)
        wanted = (redis.Redis, "redis.Redis") if colour == "sync" else (redis.asyncio.Redis, "redis.asyncio.Redis")
        if pool is None or not isinstance(client, wanted[0]):
            raise ConfigurationError(
                f"this manager takes a {wanted[1]} client, not {type(client).__module__}.{type(client).__qualname__}"
            )
        kwargs = dict(pool.connection_kwargs)
        for key in NOT_OURS:
            kwargs.pop(key, None)
        where = kwargs.get("path") or f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        pair = (pool.connection_class, None) if colour == "sync" else (None, pool.connection_class)
        return cls(pair, kwargs, f"redis client of {where}")

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        key, token, ttl, owner, waiting, _, _, _ = ask
        if waiting and self._contended and self._just_left_to_another(ask):
            return Busy(GIVEN_WAY)
        rest = _to_add(key, token, ttl, owner, waiting)
        reply = yield ADD.short + rest
        if type(reply) is bytes and not self._replicas:
            return quick(Granted, (int(reply), False))
        answer = _added((yield from ADD.instead(reply, rest)) if type(reply) is ServerError else reply)
        return (yield from self._confirmed(ask, answer)) if self._replicas else answer

    def _confirmed(self, ask: Add | Wait, answer: Granted | Busy) -> Steps[Granted | Busy]:
        """`answer`, if it is no grant or enough replicas have it. Else it is taken back, and `Unknown` raised."""
        if not self._replicas or type(answer) is not Granted:
            return answer
        try:
            kept, copies = yield from self._extended(ask)
        except LockError:  # it refuses us: that it did nothing is not true of the add
            yield from self.remove(Remove(ask.key, ask.token, 0, ask.deadline, ask.notes))
            raise
        if not kept:
            raise Unknown("it was gone as soon as it was added", sent=False)
        if copies < self._replicas:
            yield from self.remove(Remove(ask.key, ask.token, 0, ask.deadline, ask.notes))
            raise Unknown(self._too_few(copies), sent=False, unkept=True)
        return answer

    def _extended(self, ask: Add | Wait | Extend) -> Steps[tuple[bool, int]]:
        """Whether the token has the key, which then lives for its ttl from now, and how many replicas know it.

        WAIT counts those that have all that its own connection wrote, and so what was written before, by any.
        """
        rest = _to_extend(ask)
        while True:
            left = min(ask.deadline - _process.clock(), self.request_bound / 2)  # a wait's is longer
            wait = milliseconds(max(0.001, left / 2 - BLPOP_LATE))  # and as long to take it back
            told = b"*3\r\n" + bulk(b"WAIT") + bulk(b"%d" % self._replicas) + bulk(b"%d" % wait)
            reply, copies = yield Several.of([EXTEND.short + rest, told])
            if type(reply) is not ServerError:
                return reply == 1, int(checked(copies))
            yield from EXTEND.instead(reply, rest)  # it knows the script from now on

    def _too_few(self, copies: int) -> str:
        return f"{copies} replicas have it, where replicas={self._replicas} must: is their link up?"

    def _just_left_to_another(self, ask: Add) -> bool:
        """Whether our own release has just woken a waiter: it is the other's turn, so there is no point in asking."""
        now = _process.clock()
        return now - self._contended.pop(ask.key, 0.0) < JUST_NOW and ask.deadline - now > 4 * GIVEN_WAY

    def remove(self, ask: Remove) -> Steps[bool]:
        key, token, in_flight, _, notes, left = ask
        ready = notes.get("removal") if notes and not in_flight else None
        rest: bytes = ready or _to_remove(key, token, in_flight)
        request = REMOVE.short + rest
        reply = yield request if left is None else Parting.of(request, left)
        if reply == 1:
            return True
        if type(reply) is ServerError:
            reply = yield from REMOVE.instead(reply, rest)
        if reply == 3:
            if len(self._contended) > 1000:
                self._contended.clear()
            self._contended[key] = _process.clock()
        return bool(reply & 1)

    def extend(self, ask: Extend) -> Steps[bool]:
        if self._replicas:
            kept, copies = yield from self._extended(ask)
            if kept and copies < self._replicas:
                raise Unknown(self._too_few(copies), unkept=True)
            return kept
        rest = _to_extend(ask)
        reply = yield EXTEND.short + rest
        if type(reply) is ServerError:
            reply = yield from EXTEND.instead(reply, rest)
        return bool(reply == 1)

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        pair = keys_of(ask.key).pair
        reply = yield PEEK.short + pair
        token, left, said = (yield from PEEK.instead(reply, pair)) if type(reply) is ServerError else reply
        if token is None:
            return None
        info = info_of(token, said)
        remaining = left / 1000 if left >= 0 else None
        text = token.decode("utf-8", "replace")
        return Holder(info.owner, text, info.fence, remaining) if info else Holder(None, text, None, remaining)

    def wait(self, ask: Wait) -> Steps[Granted | Busy]:
        """Blocks until it is woken and adds then, in one request: nobody comes in between."""
        key, token, since, until, signals, _, notes, ttl, owner = ask
        now = _process.clock()
        until = min(until, now + ttl / 4)  # the ttl counts from here
        if not signals:
            until = min(until, now + FOREIGN_POLL * (0.5 + random.random()))
        left = until - now - BLPOP_LATE
        if left > 0:  # 0 would be for ever, and Redis 6 knows milliseconds
            rest = _to_add(key, token, ttl, owner, True)
            if notes is not None:  # there is time now, and at the release somebody will wait
                notes["removal"] = _to_remove(key, token, 0)
            replies = yield Woken.of_key(keys_of(key).wake, max(0.001, left), ADD.short + rest)
            if replies is not NO_ROOM:
                woken, reply = replies
                if type(reply) is ServerError:
                    reply = yield from ADD.instead(reply, rest)
                if type(woken) is ServerError and not has_lock(reply):  # else nothing matters that was wrong before
                    checked(woken)
                answer = _added(reply)
                return (yield from self._confirmed(ask, answer)) if self._replicas else answer
        pause = BLPOP_LATE / 4 if left <= 0 else max(CROWDED[0], min(CROWDED[1], (now - since) / 8))
        yield Nap(min(until, now + pause * (0.5 + random.random())))
        rest = _to_add(key, token, ttl, owner, True)
        reply = yield ADD.short + rest
        answer = _added((yield from ADD.instead(reply, rest)) if type(reply) is ServerError else reply)
        return (yield from self._confirmed(ask, answer))

    def channel(self) -> Channel:
        opens = dial(self._classes[0], self._kwargs, self.request_bound, self.place)
        return WireChannel(opens, _fit, self.place, _SURE)

    def async_channel(self) -> AsyncChannel:
        opens = async_dial(self._classes[1], self._kwargs, self.request_bound, self.place)
        return AsyncWireChannel(opens, _fit, self.place)


_SURE = frozenset({bytes, int})
"""Replies of which `_fit` need not be asked."""


def _fit(reply: Any) -> bool:
    """One that refuses us may lead to another server next time, after a failover or a change of users."""
    kind = type(reply)
    if kind is list:  # of several requests, or of one: no reply of a lock's has an error deeper inside
        return ServerError not in map(type, reply) or not any(map(refuses, reply))
    return kind is not ServerError or not refuses(reply)


def _text(_: str, text: str) -> str:
    return text


def _count(key: str, text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 3:
        raise ConfigurationError(f"{key}={text} is not how many replicas must have a lock: write {key}=1")
    return int(text)


def _database(_: str, text: str) -> int:
    if not text.isdecimal() or not text.isascii():
        raise ConfigurationError(f"the database in redis://host/{text} is not a number: write redis://host:6379/0")
    return int(text)
