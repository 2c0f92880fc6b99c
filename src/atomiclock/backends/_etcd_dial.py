"""How connections to an endpoint of etcd are made, by a deadline: for threads here, for tasks in `_etcd_tasks`."""

from __future__ import annotations

import socket
import ssl

from .._process import clock
from ..errors import BackendRefused
from . import Unknown
from ._etcd_target import Target
from ._grpc import HELLO, Reader
from ._wire import DeadlineSocket, Dial, Wire, exchange

_NEEDS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE")
_WRONG_PROTOCOL = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")


def address_of(endpoint: str) -> tuple[str, int]:
    """The host, without the brackets of IPv6, and the port."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def dial(target: Target, endpoint: str) -> Dial:
    """Opens connections for threads."""

    def open_wire(deadline: float) -> Wire:
        sock: socket.socket | None = None
        try:
            sock = connected(target, endpoint, deadline)
            wire = Wire(DeadlineSocket(sock, deadline), Reader(endpoint, target.tls is not None))
            exchange(wire, HELLO, deadline)
            sock = None
            return wire
        except (OSError, ValueError) as error:
            raise explained(error, target, endpoint) from error
        finally:
            if sock is not None:
                sock.close()

    return open_wire


def connected(target: Target, endpoint: str, deadline: float) -> socket.socket:
    """A socket that is connected to `endpoint`, by TLS if that is wanted."""
    host, port = address_of(endpoint)
    trouble: OSError | None = None
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(_left(deadline) / left)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if target.tls is not None:
                sock.settimeout(_left(deadline))
                sock = target.tls.wrap_socket(sock, server_hostname=host)
            made, sock = sock, None
            return made
        except OSError as error:
            trouble = error
        finally:
            if sock is not None:
                sock.close()
    raise trouble or OSError("the host has no address")


def _left(deadline: float) -> float:
    left = deadline - clock()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def explained(error: Exception, target: Target, endpoint: str) -> Exception:
    """What a failure to connect means for the lock: nothing was asked yet."""
    where, text = target.where(endpoint), str(error) or "timed out"
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"{error.verify_message}; check ca= and the host's name"
        return BackendRefused(f"{where}: the server's certificate is not trusted: {why}")
    if isinstance(error, ssl.SSLError) and any(words in text for words in _NEEDS_CERTIFICATE):
        return BackendRefused(f"{where}: the server wants a certificate of ours: give cert= and key=; {text}")
    if isinstance(error, ValueError) or (isinstance(error, ssl.SSLError) and any(w in text for w in _WRONG_PROTOCOL)):
        advice = "check the port, and etcd:// or etcds://"
        return BackendRefused(f"{where} is not reachable: it does not speak gRPC ({text}); {advice}")
    return Unknown(f"{where} is not reachable: {text} (is it an etcd?)", sent=False)
