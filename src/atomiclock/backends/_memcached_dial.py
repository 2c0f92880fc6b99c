"""How connections to memcached are made, by a deadline: for threads by pymemcache, for tasks in `_memcached_tasks`."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Generator
from typing import Any

from pymemcache.client.base import Client

from .._process import clock
from ..errors import BackendRefused
from . import Unknown
from ._memcached_greet import greet
from ._memcached_reader import Reader
from ._memcached_target import Target
from ._meta import Facts
from ._wire import DeadlineSocket, Dial, Nap, Wire, exchange


class _Sockets:
    """The socket module that pymemcache is given: every wait on its sockets ends at the deadline."""

    def __init__(self, deadline: float, info: Any) -> None:
        self._deadline = deadline
        self._info = info
        self.made: list[DeadlineSocket] = []

    def getaddrinfo(self, *_: Any) -> Any:
        return [self._info]

    def socket(self, *args: Any) -> DeadlineSocket:
        self.made.append(DeadlineSocket(socket.socket(*args), self._deadline))
        return self.made[-1]

    def close(self) -> None:
        while self.made:
            self.made.pop().close()

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


class _TLS:
    """The TLS context that pymemcache is given."""

    def __init__(self, context: ssl.SSLContext, sockets: _Sockets, deadline: float) -> None:
        self._context = context
        self._sockets = sockets
        self._deadline = deadline

    def wrap_socket(self, link: DeadlineSocket, server_hostname: str) -> DeadlineSocket:
        plain: Any = link._sock
        self._sockets.made.append(
            DeadlineSocket(self._context.wrap_socket(plain, server_hostname=server_hostname), self._deadline)
        )
        return self._sockets.made[-1]


def dial(target: Target) -> Dial:
    """Opens connections for threads."""

    def open_wire(deadline: float) -> Wire:
        sockets: _Sockets | None = None
        try:
            sockets = _connect(target, deadline)
            reader = Reader()
            wire = Wire(sockets.made[-1], reader)
            reader.facts = _perform(greet(target), wire, deadline)
            sockets.made.clear()  # ours now
            return wire
        except BackendRefused:
            raise
        except (OSError, ValueError) as error:
            raise explained(error, target.place) from error
        finally:
            if sockets is not None:
                sockets.close()

    return open_wire


def _connect(target: Target, deadline: float) -> _Sockets:
    """The sockets module with one that is connected. Each of the host's addresses is tried, not only the first."""
    if isinstance(target.server, str):
        infos: Any = [None]
    else:
        infos = socket.getaddrinfo(*target.server, type=socket.SOCK_STREAM)
    for index, info in enumerate(infos):
        sockets: Any = _Sockets(deadline, info)  # for the client, the socket module
        tls: Any = target.tls and _TLS(target.tls, sockets, deadline)
        client = Client(
            target.server,
            connect_timeout=max(0.001, deadline - clock()),
            no_delay=True,
            socket_module=sockets,
            socket_keepalive=target.keepalive,
            tls_context=tls,
        )
        try:
            client._connect()
            return sockets  # type: ignore[no-any-return]  # as it was made
        except BaseException as error:
            sockets.close()
            if index == len(infos) - 1 or not isinstance(error, OSError):
                raise
    raise OSError("the host has no address")


def _perform(questions: Generator[Any, Any, Facts], wire: Wire, deadline: float) -> Facts:
    reply = None
    while True:
        try:
            request = questions.send(reply)
        except StopIteration as done:
            facts: Facts = done.value
            return facts
        if isinstance(request, Nap):
            check_nap(request, deadline)
            time.sleep(request.until - clock())
            reply = None
            continue
        reply = exchange(wire, request, deadline)


def check_nap(nap: Nap, deadline: float) -> None:
    if nap.until >= deadline:
        text = "memcached was started less than two seconds ago: its fences could still be those of its last life"
        raise Unknown(text, sent=False, alive=True)


def explained(error: Exception, place: str) -> Exception:
    """What a failure to connect means for the lock."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return BackendRefused(f"{place}: the server's certificate is not trusted: {error.verify_message}")
    text = str(error) or "timed out"
    return Unknown(f"{place} is not reachable: {text}", sent=False)
