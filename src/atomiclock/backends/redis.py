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

import asyncio
import hashlib
import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
import redis.asyncio
import redis.exceptions
import redis.retry
from redis.backoff import NoBackoff

from .. import _process
from .._options import seconds_from_text
from .._url import URL, mask
from ..errors import BackendRefused, BackendUnavailable, ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Unknown, Wait
from ._resp import Reader, ServerError, pack

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

TOMBSTONE = 600.0
"""Seconds for which a late add is refused: longer than a request is likely to be on its way."""
WAKE = 5.0
"""Seconds for which a wake-up waits for its waiter, who is between its last add and its wait."""
FOREIGN_POLL = 0.1
"""Seconds between tries while the holder is other software, whose release wakes nobody."""
BLPOP_LATE = 0.1
"""Seconds by which an idle server ends a BLPOP late: it looks at its clock 10 times a second (measured, 7.0)."""


class Nap(NamedTuple):
    """A request to the channel itself: to let the time pass until then."""

    until: float


class Script:
    """A script of the server, sent by its digest, and in full when the server does not know it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def run(self, keys: list[bytes], *args: bytes | int) -> Steps[Any]:
        rest = [b"%d" % len(keys), *keys, *[a if isinstance(a, bytes) else b"%d" % a for a in args]]
        reply = yield pack(b"EVALSHA", self.sha, *rest)
        if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":  # nothing was done
            reply = yield pack(b"EVAL", self.text, *rest)
        return checked(reply)


# KEYS: lock, info, waiting, tombstone. ARGV: token, ttl in ms, owner, ms to note that we wait (0: we do not)
ADD = Script("""
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
return {1, fence, repeated}
""")

# KEYS: lock, info, waiting, tombstone, wake. ARGV: token, adds in flight, tombstone in ms, wake-up in ms
REMOVE = Script("""
local held = redis.pcall('GET', KEYS[1])
local mine = held == ARGV[1]
local flying = tonumber(ARGV[2])
if mine then
  redis.call('DEL', KEYS[1], KEYS[2])
  flying = flying - 1
end
if flying > 0 then redis.call('SET', KEYS[4], '', 'PX', ARGV[3]) end
if (mine or not held) and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('DEL', KEYS[5])
  redis.call('RPUSH', KEYS[5], '')
  redis.call('PEXPIRE', KEYS[5], ARGV[4])
end
return mine and 1 or 0
""")

# KEYS: lock, info. ARGV: token, ttl in ms
EXTEND = Script("""
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")

# KEYS: lock, info
PEEK = Script("return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2])}")


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


class RedisBackend:
    """Locks on one Redis or Valkey server."""

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
        self, classes: tuple[Any, ...], kwargs: dict[str, Any], place: str, request_bound: float = 3.0
    ) -> None:
        self.place = place
        self.request_bound = request_bound
        self._classes = classes  # redis-py's connection for threads and for tasks
        self._kwargs = kwargs

    @classmethod
    def from_url(cls, url: URL) -> RedisBackend:
        options = url.take(db=_database, io_timeout=_bound, ssl_ca_certs=_text, ssl_certfile=_text, ssl_keyfile=_text)
        if url.host is None and url.scheme != "redis+unix":
            raise ConfigurationError(f"{url.scheme}:// needs a host, as in {url.scheme}://localhost:6379/0")
        if url.port == 0:
            raise ConfigurationError(f"{url.scheme}://{url.host}:0 has no server: the port is from 1 to 65535")
        if "," in url.netloc:
            raise ConfigurationError(f"{url.scheme}:// takes one server: a lock must live on one")
        kwargs: dict[str, Any] = {"username": url.username, "password": url.password, **options}
        bound = kwargs.pop("io_timeout", 3.0)
        tls = url.scheme in ("rediss", "valkeys")
        if not tls and any(key.startswith("ssl_") for key in kwargs):
            raise ConfigurationError(f"ssl_* options need rediss:// or valkeys://, not {url.scheme}://")
        if url.scheme == "redis+unix":
            if url.host or not url.path.strip("/"):
                raise ConfigurationError("redis+unix:// needs the socket's absolute path: redis+unix:///run/redis.sock")
            kwargs["path"] = url.path
            pair: tuple[Any, ...] = (redis.UnixDomainSocketConnection, redis.asyncio.UnixDomainSocketConnection)
            return cls(pair, kwargs, f"redis+unix://{url.path}", bound)
        if tls:
            kwargs["ssl_check_hostname"] = True  # which redis-py 5 does not do by itself
        if url.path.strip("/"):
            kwargs["db"] = _database("db", url.path.strip("/"))
        kwargs.update(host=url.host, port=6379 if url.port is None else url.port)
        pair = (
            (redis.SSLConnection, redis.asyncio.SSLConnection) if tls else (redis.Connection, redis.asyncio.Connection)
        )
        return cls(pair, kwargs, mask(f"{url.scheme}://{url.netloc}{url.path}"), bound)

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
        for key in _NOT_OURS:
            kwargs.pop(key, None)
        where = kwargs.get("path") or f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        pair = (pool.connection_class, None) if colour == "sync" else (None, pool.connection_class)
        return cls(pair, kwargs, f"redis client of {where}")

    def _keys(self, key: str, *companions: str) -> list[bytes]:
        lock = key.encode("utf-8", "surrogatepass")
        # In a cluster the companions must be in the lock's slot: that of what is in its braces, else of all of it.
        start, end = lock.find(b"{"), lock.find(b"}", lock.find(b"{"))
        stem = lock if start >= 0 and end > start + 1 else b"{" + lock + b"}"
        return [lock, *[stem + b":" + name.encode() for name in companions]]

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        keys = self._keys(ask.key, "info", "waiting", ask.token)
        note = milliseconds(2 * WAKE) if ask.waiting else 0
        owner = ask.owner.encode("utf-8", "replace")
        reply = yield from ADD.run(keys, ask.token.encode(), milliseconds(ask.ttl), owner, note)
        if reply[0] == 1:
            return Granted(int(reply[1]), repeated=reply[2] == 1)
        if reply[0] == 0:
            info = info_of(reply[2], reply[3])
            left = reply[1] / 1000 if reply[1] >= 0 else None
            return Busy(left, info.owner if info else None, signals=info is not None)
        raise Unknown("the attempt had been given up already", sent=False)

    def remove(self, ask: Remove) -> Steps[bool]:
        keys = self._keys(ask.key, "info", "waiting", ask.token, "wake")
        tombstone, wake = milliseconds(TOMBSTONE), milliseconds(WAKE)
        reply = yield from REMOVE.run(keys, ask.token.encode(), ask.in_flight, tombstone, wake)
        return bool(reply == 1)

    def extend(self, ask: Extend) -> Steps[bool]:
        keys = self._keys(ask.key, "info")
        return bool((yield from EXTEND.run(keys, ask.token.encode(), milliseconds(ask.ttl))) == 1)

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        token, left, said = yield from PEEK.run(self._keys(ask.key, "info"))
        if token is None:
            return None
        info = info_of(token, said)
        remaining = left / 1000 if left >= 0 else None
        text = token.decode("utf-8", "replace")
        return Holder(info.owner, text, info.fence, remaining) if info else Holder(None, text, None, remaining)

    def wait(self, ask: Wait) -> Steps[None]:
        until = ask.until
        if not ask.signals:
            until = min(until, _process.clock() + FOREIGN_POLL * (0.5 + random.random()))
        wake = self._keys(ask.key, "wake")[1]
        left = until - _process.clock() - BLPOP_LATE
        if left > 0:  # 0 would be for ever, and Redis 6 knows milliseconds
            checked((yield pack(b"BLPOP", wake, b"%.3f" % max(0.001, left))))
        else:
            yield Nap(min(until, _process.clock() + BLPOP_LATE / 4))

    def channel(self) -> Channel:
        return _Channel(self._maker(self._classes[0], redis.ConnectionPool, redis.retry.Retry), self.place)

    def async_channel(self) -> AsyncChannel:
        from redis.asyncio.retry import Retry

        return _AsyncChannel(self._maker(self._classes[1], redis.asyncio.ConnectionPool, Retry), self.place)

    def _maker(self, connection: Any, pool: Any, retry: Any) -> Callable[[], Any]:
        """Makes redis-py's connections, which never repeat a command and answer in RESP2.

        Its pool only completes the settings: it would count connections that it never gets back, up to a limit.
        """
        ours = {"retry": retry(NoBackoff(), 0), "retry_on_timeout": False, "retry_on_error": [], "protocol": 2}
        bounds = {"socket_timeout": self.request_bound, "socket_connect_timeout": self.request_bound}
        if pool is redis.ConnectionPool:
            connection = type("DeadlineConnection", (_DeadlineMixin, connection), {})
        settings = {**self._kwargs, **ours, **bounds, "decode_responses": False, "max_connections": None}
        made = pool(connection_class=connection, **settings)
        return lambda: connection(**made.connection_kwargs)


_NOT_OURS = (
    "cache", "cache_config", "decode_responses", "event_dispatcher", "health_check_interval", "himport_registry",
    "legacy_responses", "maint_notifications_config", "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler", "parser_class", "protocol", "retry", "retry_on_error",
    "retry_on_timeout", "socket_connect_timeout", "socket_timeout",
)  # fmt: skip


def _text(_: str, text: str) -> str:
    return text


def _database(_: str, text: str) -> int:
    if not text.isdecimal() or not text.isascii():
        raise ConfigurationError(f"the database in redis://host/{text} is not a number: write redis://host:6379/0")
    return int(text)


def _bound(key: str, text: str) -> float:
    seconds = seconds_from_text(key, text)
    if not 0 < seconds < 3600:
        raise ConfigurationError(f"{key} is a number of seconds above 0, not {text}")
    return seconds


REFUSALS = {"NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "READONLY", "MOVED", "ASK", "CROSSSLOT"}
PASSING = {"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "OOM", "MISCONF"}


def refuses(reply: Any) -> bool:
    """Whether the server will not serve us over this connection."""
    return isinstance(reply, ServerError) and reply.code in REFUSALS


def checked(reply: Any) -> Any:
    """`reply`, unless it is an error: then raise what it means for the lock. An error reply changed nothing."""
    if not isinstance(reply, ServerError):
        return reply
    if "WRONGTYPE" in reply.args[0]:
        raise ConfigurationError("the key holds other data, not a lock: choose another name or namespace")
    if reply.code in PASSING:
        raise Unknown(f"Redis answered: {reply}", sent=False)
    if reply.code in REFUSALS or "unauthenticated" in reply.args[0]:  # how it refuses many words before it knows us
        raise BackendRefused(f"Redis refused: {reply}; {_advice(reply.code)}")
    raise BackendUnavailable(f"Redis answered: {reply}")


def _advice(code: str) -> str:
    if code in ("MOVED", "ASK", "CROSSSLOT"):
        return "this is a node of a Redis Cluster, which redis:// does not follow: use a single server"
    if code == "READONLY":
        return "this is a replica: give the URL of the primary"
    if code == "NOPERM":
        return "on the lock's keys the user needs EVALSHA EVAL SET GET DEL PEXPIRE PTTL EXISTS TIME RPUSH BLPOP"
    return "check user and password in redis://user:password@host"


def _explain(error: Exception, place: str) -> Exception:
    """What a failure to connect means for the lock."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BackendRefused(f"{place}: the server's certificate is not trusted: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if isinstance(error, redis.AuthenticationError) or text.startswith(
        ("WRONGPASS", "NOAUTH", "NOPERM", "invalid username")
    ):
        return BackendRefused(f"{place} refused us: {text}; {_advice('NOAUTH')}")
    if isinstance(error, redis.ResponseError) and not isinstance(error, (redis.exceptions.BusyLoadingError,)):
        return BackendRefused(f"{place} refused the connection: {text}")
    return Unknown(f"{place} is not reachable: {text}", sent=False)


class _DeadlineSocket:
    """A socket whose every wait ends at one deadline, however often it is waited on."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self.deadline = deadline

    def _arm(self) -> socket.socket:
        left = self.deadline - _process.clock()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock

    def recv(self, *args: Any) -> bytes:
        return self._arm().recv(*args)

    def recv_into(self, *args: Any) -> int:
        return self._arm().recv_into(*args)

    def sendall(self, data: bytes) -> None:
        self._arm().sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _DeadlineMixin:
    """A redis-py connection whose connect and handshake are over by `deadline`."""

    deadline = 0.0

    def _connect(self) -> Any:
        self.socket_connect_timeout = self.socket_timeout = max(0.001, self.deadline - _process.clock())
        return _DeadlineSocket(super()._connect(), self.deadline)  # type: ignore[misc]  # a redis-py connection's


def _hang_up(connection: Any) -> None:
    """Close at once, without a word to the server, and without the shutdown() that a forked twin would feel."""
    sock, connection._sock = connection._sock, None
    if sock is not None:
        sock.close()


class _Wire(NamedTuple):
    """An open connection: redis-py's, which owns the socket, and our reader."""

    connection: Any
    sock: Any
    reader: Reader


class _Channel:
    """Connections for threads. A connection is either in the pool, clean, or in one thread's hands."""

    def __init__(self, connection: Callable[[], Any], place: str) -> None:
        self._connection = connection
        self._place = place
        self._idle: list[_Wire] = []

    def call(self, request: bytes | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return time.sleep(max(0.0, request.until - _process.clock()))
        fresh = not self._idle
        try:
            wire = self._idle.pop()
        except IndexError:
            wire = self._open(deadline)
            fresh = True
        done = False
        try:
            wire.sock.deadline = deadline
            wire.sock.sendall(request)
            while (reply := wire.reader.get()) is None:
                data = wire.sock.recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                wire.reader.feed(data)
            # One that refuses us may lead to another server next time, after a failover or a change of users.
            done = wire.reader.empty and not refuses(reply.value)
            return reply.value
        except (OSError, ValueError) as error:
            # A pooled connection that was closed says nothing about the server (though much about the others in the
            # pool); one on which time ran out does.
            self.close()
            raise Unknown(f"{self._place}: {error}", fresh=fresh or isinstance(error, TimeoutError)) from error
        finally:
            # A signal may interrupt anywhere: only a reply that was read to its end makes it fit for others.
            if done:
                self._idle.append(wire)
            else:
                _hang_up(wire.connection)

    def _open(self, deadline: float) -> _Wire:
        if deadline <= _process.clock():
            raise Unknown(f"{self._place}: no time was left to connect", sent=False)
        connection = self._connection()
        connection.deadline = deadline
        try:
            connection.connect()
            return _Wire(connection, connection._sock, Reader())
        except (redis.RedisError, OSError, ValueError) as error:
            _hang_up(connection)
            raise _explain(error, self._place) from error
        except BaseException:
            _hang_up(connection)
            raise

    def close(self) -> None:
        with suppress(IndexError):  # another thread may take the last one in between
            while True:
                _hang_up(self._idle.pop().connection)

    def __del__(self, hang_up: Callable[[Any], None] = _hang_up) -> None:
        # At the end of the interpreter the module's own names may be gone, hence the argument.
        for wire in getattr(self, "_idle", ()):  # a signal may have interrupted its making
            hang_up(wire.connection)


class _AsyncWire(NamedTuple):
    stream: asyncio.StreamReader
    writer: asyncio.StreamWriter
    reader: Reader


class _AsyncChannel:
    """Connections for the tasks of one event loop."""

    def __init__(self, connection: Callable[[], Any], place: str) -> None:
        self._connection = connection
        self._place = place
        self._idle: list[_AsyncWire] = []

    async def call(self, request: bytes | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return await asyncio.sleep(max(0.0, request.until - _process.clock()))
        fresh = not self._idle
        wire = self._idle.pop() if self._idle else await self._open(deadline)
        # To abort is what has to be done with a late connection anyway, and cancels nobody's task.
        left = max(0.0, deadline - _process.clock())
        alarm = asyncio.get_running_loop().call_later(left, wire.writer.transport.abort)
        done = False
        try:
            wire.writer.write(request)
            while (reply := wire.reader.get()) is None:
                data = await wire.stream.read(65536)
                if not data:
                    if _process.clock() >= deadline:
                        raise TimeoutError("timed out")
                    raise ConnectionError("the server closed the connection")
                wire.reader.feed(data)
            # One that refuses us may lead to another server next time, after a failover or a change of users.
            done = wire.reader.empty and not refuses(reply.value)
            return reply.value
        except (OSError, ValueError) as error:
            # A pooled connection that was closed says nothing about the server (though much about the others in the
            # pool); one on which time ran out does.
            self.close()
            raise Unknown(f"{self._place}: {error}", fresh=fresh or isinstance(error, TimeoutError)) from error
        finally:
            alarm.cancel()
            if done:
                self._idle.append(wire)
            else:
                wire.writer.transport.abort()

    async def _open(self, deadline: float) -> _AsyncWire:
        connection = self._connection()
        try:
            await asyncio.wait_for(connection.connect(), max(0.001, deadline - _process.clock()))
            stream, writer = connection._reader, connection._writer
            connection._reader = connection._writer = None  # ours now; its __del__ would complain
            return _AsyncWire(stream, writer, Reader())
        except asyncio.TimeoutError as error:
            raise Unknown(f"{self._place} is not reachable: timed out", sent=False) from error
        except (redis.RedisError, OSError, ValueError) as error:
            raise _explain(error, self._place) from error
        finally:
            writer, connection._writer = connection._writer, None
            if writer is not None:
                writer.transport.abort()

    def close(self) -> None:
        while self._idle:
            wire = self._idle.pop()  # by name: a writer that is collected before its transport is closed complains
            wire.writer.transport.abort()
