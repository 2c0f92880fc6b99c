"""django://ALIAS: the cache CACHES["ALIAS"] of a Django project, on the keys that `cache.add(name, ...)` would use.

So with namespace="" these locks and the cookbook's `cache.add(lock_id, oid, LOCK_EXPIRE)` exclude each other, and a
fleet can move from one to the other worker by worker. What is in the key is compared before it is removed.

Which adapter works behind an alias follows from the class of its cache; a cache whose `add` lets two in is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from .._names import digest
from .._options import bound_from_text
from .._url import URL, mask
from ..errors import ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Wait
from ._django_values import Adapter

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

_DJANGO = "django.core.cache.backends."
INSTEAD = "use a cache on Redis or memcached, or another URL such as redis://localhost:6379/0 or sqlite://"
REFUSED = {
    f"{_DJANGO}filebased.FileBasedCache": "its add looks first and writes afterwards, so two get the same key "
    "(8 of 60 rounds, measured)",
    f"{_DJANGO}dummy.DummyCache": "its add stores nothing, so everybody gets every lock",
}
DRIVERS = {"redis": "redis", "pymemcache": "memcached"}
"""Which extra brings a package that may be missing."""


class DjangoBackend:
    """Locks behind an alias of Django's cache framework."""

    traits = Traits(  # the least that any alias offers but for the scope; an instance has those of its own cache
        scope="network",
        fence="none",
        waits="poll",
        survives_restart="no",
        ttl_step=1.0,
        longest_ttl=1e9,
        loses="what loses it in the store behind the cache; `cache.clear()`, `cache.delete()`",
    )

    def __init__(self, inner: Adapter, cache: Any, version: int | None) -> None:
        self.traits = inner.traits._replace(loses=f"{inner.traits.loses}; `cache.clear()`, `cache.delete()`")
        self.request_bound = inner.request_bound
        self.wait_adds = getattr(inner, "wait_adds", False)
        self.pipelines = getattr(inner, "pipelines", False)
        self.longest_pause = getattr(inner, "longest_pause", 0.0)
        self.place = inner.place
        self._inner = inner
        self._cache = cache
        self._version = version

    @classmethod
    def from_url(cls, url: URL) -> DjangoBackend:
        options = url.take(version=_version, io_timeout=bound_from_text)
        if url.password or url.path.strip("/"):
            raise ConfigurationError("django:// takes the alias of a cache and nothing more: django://ALIAS")
        alias = unquote(url.netloc) or "default"  # not url.host, which is in lower case
        try:
            cache = _cache(alias)
            inner = _adapter(cache)(cache, f"django://{alias}", options.get("io_timeout", 3.0))
        except ImportError as error:
            extra = DRIVERS.get((error.name or "").partition(".")[0])
            raise ConfigurationError(
                f"django://{alias}: {error}" + (f": pip install 'atomiclock[{extra}]'" if extra else "")
            ) from error
        return cls(inner, cache, options.get("version"))

    def _key(self, key: str) -> str:
        made = self._cache.make_key(key, self._version)
        if not isinstance(made, str):
            raise ConfigurationError(f"{self.place}: its KEY_FUNCTION gives {type(made).__name__}, not str")
        try:
            made.encode()
        except UnicodeEncodeError:  # a lone surrogate, which some caches cannot store, nor any other software mean
            made = f"{made.encode('ascii', 'replace').decode()[:64]}~{digest(made)}"
        return str(made)

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        return self._inner.add(ask._replace(key=self._key(ask.key)))

    def remove(self, ask: Remove) -> Steps[bool]:
        return self._inner.remove(ask._replace(key=self._key(ask.key)))

    def extend(self, ask: Extend) -> Steps[bool]:
        return self._inner.extend(ask._replace(key=self._key(ask.key)))

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        return self._inner.peek(ask._replace(key=self._key(ask.key)))

    def wait(self, ask: Wait) -> Steps[Granted | Busy | None]:
        return self._inner.wait(ask._replace(key=self._key(ask.key)))

    def channel(self) -> Channel:
        return self._inner.channel()

    def async_channel(self) -> AsyncChannel:
        return self._inner.async_channel()


def _cache(alias: str) -> Any:
    """A cache object of our own: those in `caches` belong to threads, and are closed at the end of a request."""
    place = f"django://{alias}"
    try:
        configured = sorted(iter(caches))
    except ImproperlyConfigured as error:
        raise ConfigurationError(
            f"{place}: Django's settings are not configured: set DJANGO_SETTINGS_MODULE, or call "
            "django.conf.settings.configure(...), before the first lock"
        ) from error
    except ImportError as error:
        raise ConfigurationError(f"{place}: Django's settings cannot be loaded: {error}") from error
    if alias not in configured:
        raise ConfigurationError(f"{place}: CACHES has no {alias!r}; it has {', '.join(configured)}")
    try:
        return caches.create_connection(alias)
    except (ImproperlyConfigured, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{place}: Django cannot make this cache: {mask(str(error))}") from error


ADAPTERS = {
    f"{_DJANGO}redis.RedisCache": "_django_native:of_redis",
    "django_redis.cache.RedisCache": "_django_native:of_django_redis",
    f"{_DJANGO}memcached.PyMemcacheCache": "_django_native:of_memcached",
    f"{_DJANGO}memcached.PyLibMCCache": "_django_native:of_memcached",
    f"{_DJANGO}db.DatabaseCache": "_django_db:of_database",
    f"{_DJANGO}locmem.LocMemCache": "_django_local:of_memory",
}
"""Which function makes the adapter for a cache, its driver loaded only then."""


def _adapter(cache: Any) -> Callable[[Any, str, float], Adapter]:
    """What makes the adapter for a cache of this class, or of one derived from it."""
    for cls in type(cache).__mro__:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name in REFUSED:
            raise ConfigurationError(f"a {cls.__qualname__} is no place for locks: {REFUSED[name]}; {INSTEAD}")
        if name in ADAPTERS:
            module, _, function = ADAPTERS[name].partition(":")
            make: Callable[[Any, str, float], Adapter] = getattr(import_module(f"{__package__}.{module}"), function)
            return make
    supported = ", ".join(name.rpartition(".")[2] for name in ADAPTERS if name.startswith(_DJANGO))
    raise ConfigurationError(
        f"django:// knows no {type(cache).__module__}.{type(cache).__qualname__}: it knows {supported} and that of "
        "django_redis; name the server in a URL of its own, such as redis://localhost:6379/0"
    )


def _version(key: str, text: str) -> int:
    if not text.isdecimal() or not text.isascii():
        raise ConfigurationError(f"{key} is a whole number, not {text!r}")
    return int(text)
