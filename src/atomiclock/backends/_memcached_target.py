"""Which memcached a URL or a client of pymemcache means, and how it is reached."""

from __future__ import annotations

import ssl
from typing import Any, NamedTuple

from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.retrying import RetryingClient

from .._options import bound_from_text
from .._url import URL
from ..errors import ConfigurationError

SEVERAL = (
    "memcached:// takes one server: with several, clients that disagree about which of them is alive would take the "
    "same lock on two"
)


class Target(NamedTuple):
    """One memcached, and how to reach it."""

    server: tuple[str, int] | str
    place: str
    user: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None
    keepalive: Any = None
    classic: bool = False
    """Use no meta commands, whatever the server can do."""

    def __repr__(self) -> str:
        return f"<Target {self.place}>"  # without what is secret


def of_url(url: URL) -> tuple[Target, float]:
    """The server that `url` means, and the bound of requests to it."""
    options = url.take(io_timeout=bound_from_text, protocol=_protocol)
    bound, classic = options.get("io_timeout", 3.0), options.get("protocol") == "classic"
    if url.scheme == "memcached+unix":
        if url.host or not url.path.strip("/"):
            raise ConfigurationError(
                "memcached+unix:// needs the socket's absolute path: memcached+unix:///run/memcached/memcached.sock"
            )
        return Target(url.path, f"memcached+unix://{url.path}", classic=classic), bound
    if "," in url.netloc:
        raise ConfigurationError(SEVERAL)
    if url.host is None:
        raise ConfigurationError("memcached:// needs a host, as in memcached://localhost:11211")
    if url.port == 0:
        raise ConfigurationError(f"memcached://{url.host}:0 has no server: the port is from 1 to 65535")
    if url.path.strip("/"):
        raise ConfigurationError(f"memcached:// has no databases: leave out {url.path!r}")
    if (url.username is None) != (url.password is None):
        raise ConfigurationError("memcached:// takes user and password, or neither: memcached://user:password@host")
    port = 11211 if url.port is None else url.port
    place = f"memcached://{f'[{url.host}]' if ':' in url.host else url.host}:{port}"
    return Target((url.host, port), place, url.username, url.password, classic=classic), bound


def of_client(client: Any) -> tuple[Target, bytes]:
    """The server that a pymemcache client has, and the prefix of its keys."""
    while isinstance(client, RetryingClient):
        client = client._client
    if isinstance(client, HashClient):
        clients = list(client.clients.values())
        if len(clients) != 1:
            raise ConfigurationError(SEVERAL)
        client = clients[0]
    if not isinstance(client, (Client, PooledClient)):
        raise ConfigurationError(
            f"this manager takes a pymemcache client, not {type(client).__module__}.{type(client).__qualname__}"
        )
    server = client.server
    where = server if isinstance(server, str) else f"{server[0]}:{server[1]}"
    place = f"memcached client of {where}"
    return Target(server, place, tls=client.tls_context, keepalive=client.socket_keepalive), client.key_prefix


def _protocol(key: str, text: str) -> str:
    if text not in ("auto", "classic"):
        raise ConfigurationError(f"{key} is auto or classic, not {text}")
    return text
