"""Caches whose server has an adapter of its own: where the server is, and what the cache does to keys and values.

Only what the settings say is taken from the cache; its connections are not used. What they do on errors (to repeat
a command, to answer "no" for a server that is down, to go on with another server) is not for a lock.
"""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from .._url import mask
from ..errors import ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Wait
from ._django_values import Adapter

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

ONE_SERVER = "a lock must live on one server: define an alias with one, for locks, and name it in django://ALIAS"


def of_redis(cache: Any, place: str, bound: float) -> Adapter:
    """For django.core.cache.backends.redis.RedisCache: the server that it writes to."""
    from django.core.cache.backends.redis import RedisCache, RedisCacheClient

    require_same(cache, RedisCache, place, "_cache")
    client = _made(lambda: cache._cache, place)
    require_same(client, RedisCacheClient, place, "get_client")
    return _redis(_made(lambda: client.get_client(None, write=True), place), place, bound)


def of_django_redis(cache: Any, place: str, bound: float) -> Adapter:
    """For django_redis.cache.RedisCache: the server that it writes to."""
    from django_redis.client import DefaultClient

    client = _made(lambda: cache.client, place)
    require_same(client, DefaultClient, place, "get_client")
    return _redis(_made(lambda: client.get_client(write=True), place), place, bound)


def _redis(client: Any, place: str, bound: float) -> Adapter:
    import redis
    import redis.asyncio
    from redis.sentinel import SentinelManagedConnection

    from ._redis_dial import NOT_OURS
    from .redis import RedisBackend

    pool = getattr(client, "connection_pool", None)
    sync = getattr(pool, "connection_class", None)
    if pool is None or not isinstance(sync, type):
        raise ConfigurationError(f"{place}: a {type(client).__qualname__} is not one Redis server; {ONE_SERVER}")
    if issubclass(sync, SentinelManagedConnection):
        raise ConfigurationError(f"{place}: locks do not follow Sentinel, whose fail-over loses them; {ONE_SERVER}")
    twins = {
        redis.Connection: redis.asyncio.Connection,
        redis.SSLConnection: redis.asyncio.SSLConnection,
        redis.UnixDomainSocketConnection: redis.asyncio.UnixDomainSocketConnection,
    }
    kwargs = {key: value for key, value in pool.connection_kwargs.items() if key not in NOT_OURS}
    where = kwargs.get("path") or f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
    where = f"{place} at redis {where}, database {kwargs.get('db') or 0}"
    return WholeNumbers(RedisBackend((sync, twins.get(sync)), kwargs, where, bound), twins.get(sync))


def of_memcached(cache: Any, place: str, bound: float) -> Adapter:
    """For PyMemcacheCache and PyLibMCCache of django.core.cache.backends.memcached: their only server."""
    from django.core.cache.backends.memcached import PyLibMCCache, PyMemcacheCache

    from ._memcached_target import Target
    from .memcached import MemcachedBackend

    libmemcached = isinstance(cache, PyLibMCCache)
    require_same(cache, PyLibMCCache if libmemcached else PyMemcacheCache, place, "_cache", "client_servers")
    servers = list(cache.client_servers)
    if len(servers) != 1:
        raise ConfigurationError(f"{place} has {len(servers)} servers; {ONE_SERVER}")
    options = cache._options
    if libmemcached:
        _check_pylibmc(options, place)
    server = _server(servers[0], place)
    where = server if isinstance(server, str) else "{}:{}".format(*server)
    ours = {} if libmemcached else options
    target = Target(server, f"{place} at memcached {where}", tls=ours.get("tls_context"))
    return MemcachedBackend(target, _bytes(ours.get("key_prefix", b"")), bound)


def _check_pylibmc(options: dict[str, Any], place: str) -> None:
    if options.get("username") or options.get("password"):
        raise ConfigurationError(f"{place}: SASL needs memcached's binary protocol, which these locks do not speak")
    if options.get("binary"):
        raise ConfigurationError(
            f"{place}: OPTIONS have binary=True, but these locks speak memcached's text protocol: leave it out, which "
            "changes no key, if the server speaks both (that is, without -B binary and -S)"
        )
    for behavior in options.get("behaviors") or ():
        if "namespace" in behavior or "prefix" in behavior:
            raise ConfigurationError(f"{place}: the behavior {behavior!r} changes the keys: set KEY_PREFIX instead")


def _server(spec: Any, place: str) -> tuple[str, int] | str:
    """Where a server is, as pymemcache and libmemcached spell it: a path, or a host, perhaps with port and weight."""
    if isinstance(spec, (tuple, list)) and len(spec) == 2:
        return str(spec[0]), int(spec[1])
    text = str(spec).removeprefix("unix:")
    if text.startswith("/"):
        return text
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::(\d+))?(?::\d+)?", text)
    if found is None:
        raise ConfigurationError(f"{place}: LOCATION {text!r} is no host:port, and no unix:/path")
    return found[1].strip("[]"), int(found[2] or 11211)


def _bytes(prefix: Any) -> bytes:
    return prefix.encode() if isinstance(prefix, str) else bytes(prefix)


class WholeNumbers:
    """Redis with tokens that stand there as whole numbers: the one kind of value that every serializer of Django and
    django-redis leaves as it is. So `cache.get(key)` in other programs gives a number, and not an error."""

    def __init__(self, inner: Any, for_tasks: type | None) -> None:
        self.traits = inner.traits
        self.request_bound = inner.request_bound
        self.wait_adds = getattr(inner, "wait_adds", False)
        self.pipelines = getattr(inner, "pipelines", False)
        self.longest_pause = getattr(inner, "longest_pause", 0.0)
        self.place = inner.place
        self._inner = inner
        self._for_tasks = for_tasks

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        steps: Steps[Granted | Busy] = self._inner.add(ask._replace(token=to_number(ask.token)))
        return steps

    def remove(self, ask: Remove) -> Steps[bool]:
        steps: Steps[bool] = self._inner.remove(ask._replace(token=to_number(ask.token)))
        return steps

    def extend(self, ask: Extend) -> Steps[bool]:
        steps: Steps[bool] = self._inner.extend(ask._replace(token=to_number(ask.token)))
        return steps

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        holder: Holder | None = yield from self._inner.peek(ask)
        return holder and holder._replace(token=from_number(holder.token))

    def wait(self, ask: Wait) -> Steps[Granted | Busy | None]:
        steps: Steps[Granted | Busy | None] = self._inner.wait(ask._replace(token=to_number(ask.token)))
        return steps

    def channel(self) -> Channel:
        channel: Channel = self._inner.channel()
        return channel

    def async_channel(self) -> AsyncChannel:
        if self._for_tasks is None:
            raise ConfigurationError(
                f"{self.place}: its connections are of a class of your own, which has no twin in redis.asyncio: "
                "give AsyncLockManager a redis.asyncio.Redis instead"
            )
        channel: AsyncChannel = self._inner.async_channel()
        return channel


def to_number(token: str) -> str:
    """Another number for each token. The leading 1 keeps zeros."""
    return str(int.from_bytes(b"\1" + token.encode("utf-8", "surrogatepass"), "big"))


def from_number(text: str) -> str:
    """The token, or what other software has put there."""
    if len(text) < 4000 and text.isascii() and text.isdecimal():
        number = int(text)
        data = number.to_bytes((number.bit_length() + 7) // 8, "big")
        if data[:1] == b"\1":
            with suppress(UnicodeDecodeError):
                return data[1:].decode("utf-8", "surrogatepass")
    return text


def require_same(thing: Any, base: type, place: str, *names: str) -> None:
    """Refuse a subclass that finds its servers in a way that we do not know."""
    for name in names:
        if inspect.getattr_static(type(thing), name, None) is not inspect.getattr_static(base, name):
            raise ConfigurationError(
                f"{place}: {type(thing).__qualname__} has its own {name}, so which server has a key is not known; "
                "name the server in a URL of its own, such as redis://localhost:6379/0"
            )


def _made(make: Any, place: str) -> Any:
    """What `make` returns, or what is wrong with the settings."""
    try:
        return make()
    except (ImproperlyConfigured, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ConfigurationError(f"{place}: {mask(str(error))}") from None
