"""A proxy before memcached that does to a lock's requests and replies what networks do, as a test scripts it.

One request at a time on each connection, as locks send them: what arrives is one request, what the server answers to
it is one reply.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that close() sends RST."""


def verb_of(request: bytes) -> str:
    """Which step of a lock the request is."""
    words = request.split(b"\r\n", 1)[0].split(b" ")
    if words[0] == b"ms":
        return "add" if b"ME" in words else "extend"
    if words[0] == b"cas":
        return "remove" if words[3] == b"-1" else "extend"
    if words[:1] == [b"mg"] and b"t" not in words:
        return "handshake"  # the probe
    return {b"add": "add", b"md": "remove", b"mg": "look", b"gets": "look"}.get(words[0], "handshake")


@dataclass
class Fault:
    """What happens to the next `times` requests of `verb`, after `skip` of them."""

    verb: str
    times: float = 1
    skip: int = 0
    late: bool = False
    """The request is kept, until `deliver()`, and the connection reset."""
    reply: str = "whole"
    """whole, reset, truncated, never, drip: one byte every 0.1 s."""
    delay: float = 0.0
    """Seconds before the reply is passed on."""
    forge: Callable[[bytes], bytes] | None = None
    """Makes another reply of the real one."""
    before: Callable[[], object] | None = None
    """Called when the request has come, before it is passed on."""
    hit: threading.Event = field(default_factory=threading.Event)

    def takes(self, verb: str) -> bool:
        if self.verb != verb or self.times <= 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Proxy:
    """Listens on loopback before the server at `port`."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.faults: list[Fault] = []
        self.seen: list[str] = []
        """The verbs of all requests, in the order in which they came."""
        self.said: list[bytes] = []
        self.kept: list[bytes] = []
        self.links = 0
        self._socks: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"memcached://127.0.0.1:{self.port}"

    def script(self, *faults: Fault) -> Fault:
        """From now on these, and no others; what was seen before is forgotten. Returns the first."""
        self.seen.clear()
        self.said.clear()
        self.faults = list(faults)
        return faults[0] if faults else Fault("nothing")

    def deliver(self) -> list[bytes]:
        """Pass on what was kept, long after its client has gone. Returns the server's replies."""
        kept, self.kept = self.kept, []
        replies = []
        for request in kept:
            with socket.create_connection(("127.0.0.1", self.upstream), 5) as sock:
                sock.sendall(request)
                replies.append(sock.recv(65536))
        return replies

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self.links += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            server = socket.create_connection(("127.0.0.1", self.upstream), 5)
            self._socks += [client, server]
            with server:
                while request := client.recv(65536):
                    if not self._pass_on(request, client, server):
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        return

    def _pass_on(self, request: bytes, client: socket.socket, server: socket.socket) -> bool:
        """Whether the connection goes on."""
        verb = verb_of(request)
        self.seen.append(verb)
        self.said.append(request)
        fault = next((fault for fault in self.faults if fault.takes(verb)), None)
        if fault is None:
            server.sendall(request)
            client.sendall(_reply(request, server))
            return True
        if fault.before is not None:
            fault.before()
        if fault.late:
            self.kept.append(request)
            fault.hit.set()
            return False
        server.sendall(request)
        reply = _reply(request, server)
        fault.hit.set()
        time.sleep(fault.delay)
        if fault.forge is not None:
            reply = fault.forge(reply)
        if fault.reply == "never":
            client.recv(1)
        elif fault.reply == "truncated":
            client.sendall(reply[: len(reply) // 2])
            client.shutdown(socket.SHUT_WR)
        elif fault.reply == "drip":
            for index in range(len(reply)):
                client.sendall(reply[index : index + 1])
                time.sleep(0.1)
        elif fault.reply == "whole":
            client.sendall(reply)
            return True
        return False


def _reply(request: bytes, server: socket.socket) -> bytes:
    end = (
        b"END\r\n" if request.startswith((b"stats", b"gets", b"add", b"cas")) and b" -1 0 " not in request else b"\r\n"
    )
    reply = b""
    while not reply.endswith(end) or (reply.startswith(b"VA ") and reply.count(b"\r\n") < 2):
        data = server.recv(65536)
        if not data:
            raise ConnectionError
        reply += data
    return reply


@contextlib.contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
