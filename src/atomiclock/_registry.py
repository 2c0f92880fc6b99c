"""Which backend serves a URL or a client object: one row each."""

from __future__ import annotations

from importlib import import_module
from os import PathLike, fspath
from typing import Any, NamedTuple

from ._url import mask, nearest, parse
from .backends import Backend
from .errors import ConfigurationError

ENTRY_POINTS = "atomiclock.backends"


class Row(NamedTuple):
    """A backend's class, the extra with its driver, and the package whose client objects it takes."""

    path: str
    extra: str | None = None
    clients: str | None = None


_REDIS = Row("atomiclock.backends.redis:RedisBackend", "redis", "redis")

_MEMCACHED = Row("atomiclock.backends.memcached:MemcachedBackend", "memcached", "pymemcache")

_ETCD = "atomiclock.backends.etcd:EtcdBackend"

ROWS: dict[str, Row] = {
    "memory": Row("atomiclock.backends.memory:MemoryBackend"),
    "sqlite": Row("atomiclock.backends.sqlite:SQLiteBackend"),
    "redis": _REDIS,
    "rediss": _REDIS,
    "redis+unix": _REDIS,
    "valkey": _REDIS,
    "valkeys": _REDIS,
    "memcached": _MEMCACHED,
    "memcached+unix": _MEMCACHED,
    "etcd": Row(_ETCD, "etcd", "etcd3"),
    "etcds": Row(_ETCD, "etcd", "aetcd"),  # the same backend: the clients are looked for in all rows
    "django": Row("atomiclock.backends.django:DjangoBackend", "django"),
}

_ONE_SERVER = "a lock lives on one server, so Sentinel and Cluster are not served: write redis://host:6379/0"

INSTEAD = {
    "file": "a lock in a file is sqlite:///relative.db or sqlite:////absolute.db",
    "unix": "write redis+unix:///path, or memcached+unix:///path",
    **dict.fromkeys(("sentinel", "redis+sentinel", "redis-sentinel", "redis+cluster", "redis-cluster"), _ONE_SERVER),
}
"""What to say of schemes that other libraries have."""

FAKES: dict[str, Row] = {"fake": Row("atomiclock.testing._fake_backend:FakeBackend")}
"""For tests, and therefore in no table of stores."""


def backend_for(url: object) -> tuple[Backend, dict[str, Any]]:
    """The backend for `url` and the lock options that the URL sets. Connects to nothing.

    Raises `ConfigurationError` for a URL, scheme or option that is not known, or a driver that is missing.
    """
    if not isinstance(url, str):
        raise ConfigurationError(
            f"url is a str such as 'redis://localhost:6379/0', not {type(url).__name__}; "
            "give a client object to LockManager(client=...)"
        )
    parts = parse(url)
    cls = _load(parts.scheme, mask(url))
    return cls.from_url(parts), parts.options


def backend_of(client: object, colour: str) -> Backend:
    """The backend that works through `client`'s server, on connections of its own. `colour`: "sync" or "async"."""
    packages = {cls.__module__.partition(".")[0] for cls in type(client).__mro__}
    for row in ROWS.values():
        if row.clients is not None and row.clients in packages:
            backend: Backend = _import(row).from_client(client, colour)
            return backend
    if isinstance(client, type):
        raise ConfigurationError(f"give a client, not its class: {client.__name__}(...)")
    if isinstance(client, PathLike):
        raise ConfigurationError(f"a path is no URL: write 'sqlite:///{fspath(client)}'")
    raise ConfigurationError(
        f"no backend takes a {type(client).__module__}.{type(client).__qualname__}: give a URL such as "
        "'redis://localhost:6379/0', or a client of redis-py, pymemcache, python-etcd3 or aetcd"
    )


def check(url: str) -> None:
    """Raise `ConfigurationError` for a URL that no backend takes. Loads no driver."""
    scheme = parse(url).scheme
    if scheme not in ROWS and scheme not in FAKES and scheme not in _others():
        raise _unknown(scheme, mask(url))


def _load(scheme: str, shown: str) -> Any:
    row = ROWS.get(scheme) or FAKES.get(scheme)
    if row is not None:
        return _import(row, f"{scheme}://")
    others = _others()
    if scheme in others:
        return others[scheme].load()
    raise _unknown(scheme, shown)


def _others() -> dict[str, Any]:
    from importlib.metadata import entry_points  # slow: only for a scheme that is not ours

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _unknown(scheme: str, shown: str) -> ConfigurationError:
    hint = INSTEAD.get(scheme) or nearest(scheme, [*ROWS, *_others()])
    return ConfigurationError(f"no backend for {shown!r}: {scheme}:// is unknown; {hint}")


def _import(row: Row, what: str = "a client of it") -> Any:
    module, _, name = row.path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if row.extra is None or (error.name or "").startswith("atomiclock"):
            raise
        package = (error.name or "").partition(".")[0]
        raise ConfigurationError(
            f"{what} needs the package {package!r}: pip install 'atomiclock[{row.extra}]'"
        ) from error
