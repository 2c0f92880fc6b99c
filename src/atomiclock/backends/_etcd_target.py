"""Which cluster: its endpoints, credentials and bounds, from a URL or from another library's client object."""

from __future__ import annotations

import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .._options import bound_from_text
from .._url import URL, mask
from ..errors import ConfigurationError

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/\s]+)(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class Target:
    """Where the cluster is and who we are to it."""

    endpoints: tuple[str, ...]
    """HOST:PORT, tried in this order."""
    place: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """`None` for plain text."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    """One that somebody else was given, and that we cannot renew."""
    bound: float = 3.0

    def where(self, endpoint: str) -> str:
        """`endpoint`, for people."""
        return self.place if len(self.endpoints) == 1 else f"{self.place}, of it {endpoint}"


def target_of_url(url: URL) -> Target:
    options = url.take(ca=_path, cert=_path, key=_path, io_timeout=bound_from_text)
    shown = mask(f"{url.scheme}://{url.netloc}")
    bound = options.pop("io_timeout", 3.0)
    if url.path.strip("/"):
        raise ConfigurationError(f"{shown} takes no path: {url.path!r} would be ignored; use namespace= for a prefix")
    if options and url.scheme != "etcds":
        raise ConfigurationError(f"{', '.join(options)} need etcds://, not etcd://")
    if ("cert" in options) != ("key" in options):
        raise ConfigurationError("cert and key go together: give both files, or none of them")
    if (url.username is None) != (url.password is None):
        raise ConfigurationError(f"{shown} has half of user:password@: give both, or none of them")
    return Target(
        endpoints=_endpoints(url, shown),
        place=shown,
        tls=_tls(options) if url.scheme == "etcds" else None,
        user=url.username,
        password=url.password,
        bound=bound,
    )


def _endpoints(url: URL, shown: str) -> tuple[str, ...]:
    found = []
    for part in unquote(url.netloc.rpartition("@")[2]).split(","):
        match = _HOST.fullmatch(part)
        port = int(match["port"] or 2379) if match else 0
        if match is None or not 0 < port < 65536:
            raise ConfigurationError(
                f"{shown} needs hosts with ports from 1 to 65535, as in {url.scheme}://h1:2379,[::1]:2379"
            )
        found.append(f"{match['host']}:{port}")
    return tuple(found)


def _tls(paths: dict[str, str]) -> ssl.SSLContext:
    for key, path in paths.items():
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigurationError(f"{key}={path} cannot be read: {error.strerror}") from error
    context = _context()
    if "ca" in paths:
        with _refusing(f"ca={paths['ca']}", "certificates"):
            context.load_verify_locations(cafile=paths["ca"])
    else:
        context.load_default_certs()
    if "cert" in paths:
        with _refusing(f"cert={paths['cert']} and key={paths['key']}", "a certificate and its key without a password"):
            context.load_cert_chain(paths["cert"], paths["key"], password=b"")  # who has one is not to be asked for it
    return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    return context


@contextmanager
def _refusing(what: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{what}: not {wanted} ({error})") from error


def _path(_: str, path: str) -> str:
    return path


def target_of_client(client: Any, colour: str) -> Target:
    """The cluster of a python-etcd3 client, for threads, or of an aetcd client, for tasks."""
    package = {cls.__module__.partition(".")[0] for cls in type(client).__mro__}
    wanted = ("etcd3", "an etcd3.client()") if colour == "sync" else ("aetcd", "an aetcd.Client")
    if wanted[0] not in package:
        raise ConfigurationError(
            f"this manager takes {wanted[1]}, not {type(client).__module__}.{type(client).__qualname__}"
        )
    return _of_aetcd(client) if colour == "async" else _of_etcd3(client)


def _of_etcd3(client: Any) -> Target:
    points = getattr(client, "endpoints", None)
    tls = None
    if isinstance(points, dict) and points:
        endpoints = tuple(point.netloc for point in points.values())
        secure = next((point.credentials for point in points.values() if point.secure), None)
        tls = secure and _tls_of_grpc(secure)
    elif getattr(client, "_url", None) and not getattr(client, "uses_secure_channel", False):
        endpoints = (client._url,)  # etcd3 0.12
    else:
        raise ConfigurationError(SECRETIVE)
    token = next((value for key, value in client.metadata or () if key == "token"), None)
    return Target(endpoints, f"etcd3 client of {','.join(endpoints)}", tls, token=token)


def _tls_of_grpc(credentials: Any) -> ssl.SSLContext:
    """The same for ours, out of grpc's credentials of a TLS channel."""
    inside: Any = getattr(credentials, "_credentials", None)
    try:
        ca, key, cert = inside._pem_root_certificates, inside._private_key, inside._certificate_chain
    except AttributeError:
        raise ConfigurationError(SECRETIVE) from None
    context = _context()
    if ca:
        context.load_verify_locations(cadata=ca.decode())
    else:
        context.load_default_certs()
    if cert and key:
        with tempfile.TemporaryDirectory() as folder:  # OpenSSL reads them from a file only
            path = os.path.join(folder, "pem")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(key + b"\n" + cert)
            context.load_cert_chain(path)
    return context


SECRETIVE = "this etcd3 client does not tell its certificates: give a URL such as etcds://host:2379"


def _of_aetcd(client: Any) -> Target:
    endpoint = f"{client._host}:{client._port}"
    return Target((endpoint,), f"aetcd client of {endpoint}", user=client._username, password=client._password)
