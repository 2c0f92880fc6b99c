"""A Redis proxy that does to a lock's requests and replies what networks do, as a test scripts it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from atomiclock.backends import redis as adapter

T = TypeVar("T")
SCRIPTS = {
    script: verb
    for verb, made in (
        ("add", adapter.ADD),
        ("remove", adapter.REMOVE),
        ("extend", adapter.EXTEND),
        ("peek", adapter.PEEK),
    )
    for script in (made.sha, made.text)
}
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that close() sends RST."""


@dataclass
class Fault:
    """What happens to requests of `verb` (add, remove, extend, peek, wait, handshake; `None`: any).

    The first `skip` of them pass, the next `times` are hit.
    """

    verb: str | None
    times: float = 1
    skip: int = 0
    delay: float = 0.0
    """Seconds before the request is forwarded."""
    forward: Literal["whole", "half", "no", "late"] = "whole"
    """`late`: kept until `Proxy.deliver()`."""
    reply: Literal["whole", "reset", "truncated", "never", "drip"] = "whole"
    reply_delay: float = 0.0
    hits: int = 0
    hit: threading.Event = field(default_factory=threading.Event)
    """Set when it hits for the first time, after the server has acted if it was let."""

    def takes(self, verb: str) -> bool:
        if self.verb not in (None, verb) or self.hits >= self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True


def frame_end(data: bytes, at: int = 0) -> int | None:
    """Where the first RESP2 frame of `data` from `at` on ends; `None` if it is not complete."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    kind, rest, end = data[at : at + 1], data[at + 1 : line_end], line_end + 2
    if kind == b"$" and int(rest) >= 0:
        end += int(rest) + 2
        return end if len(data) >= end else None
    for _ in range(max(0, int(rest)) if kind == b"*" else 0):
        inner = frame_end(data, end)
        if inner is None:
            return None
        end = inner
    return end


def verb_of(frame: bytes) -> str:
    """Which verb of a lock the request is."""
    words = frame.split(b"\r\n", 5)
    command = words[2].upper()
    if command == b"EVALSHA":
        return SCRIPTS.get(words[4], "other")
    if command == b"EVAL":
        return next((verb for script, verb in SCRIPTS.items() if script in frame), "other")
    return {b"BLPOP": "wait"}.get(command, "handshake")


class Proxy:
    """Listens on loopback before the server at `port`, on an event loop in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.faults: list[Fault] = []
        self.latency = 0.0
        self.silent = False
        """Accept connections and never answer."""
        self.seen: list[str] = []
        """The verbs of all requests, in the order in which they came."""
        self.kept: list[bytes] = []
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def script(self, *faults: Fault) -> Fault:
        """From now on these, and no others. Returns the first."""
        self.faults = list(faults)
        return faults[0]

    def clear(self) -> None:
        """Be a faithful proxy again, for new requests."""
        self.faults, self.silent, self.latency = [], False, 0.0

    def open(self) -> None:
        self._run(self._open())

    def shut(self) -> None:
        """Refuse connections and reset those that are open."""
        self._run(self._shut())

    def reset(self) -> None:
        """Reset every open connection."""
        self._run(self._reset())

    def deliver(self) -> list[bytes]:
        """Forward what was kept, long after its client has gone. Returns the server's replies."""
        kept, self.kept = self.kept, []
        replies = []
        for request in kept:
            with socket.create_connection(("127.0.0.1", self.upstream), 5) as sock:
                sock.sendall(request)
                reply = b""
                while frame_end(reply) is None:
                    reply += sock.recv(65536)
                replies.append(reply)
        return replies

    @property
    def connections(self) -> int:
        return len(self._links)

    def close(self) -> None:
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock = self._listener.accept()[0]
            link = _Link(self, sock)
            self._links[link] = task = self._loop.create_task(link.run())
            task.add_done_callback(lambda _: self._links.pop(link))
            task.add_done_callback(lambda _: link.hang_up())

    async def _shut(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await self._reset()

    async def _reset(self) -> None:
        tasks = list(self._links.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.001)  # turns of the loop for transports to let go of their sockets


class _Link:
    """One client's connection and, once needed, ours to the server."""

    def __init__(self, proxy: Proxy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._sock = sock
        self._writers: list[asyncio.StreamWriter] = []
        self._pending: list[Fault | None] = []

    async def run(self) -> None:
        self._sock.setblocking(False)
        with contextlib.suppress(OSError):
            self._from_client, self._to_client = await asyncio.open_connection(sock=self._sock)
            self._writers.append(self._to_client)
            await self._serve()

    async def _serve(self) -> None:
        if self._proxy.silent:
            await self._from_client.read()
            return
        server = socket.create_connection(("127.0.0.1", self._proxy.upstream))
        from_server, self._to_server = await asyncio.open_connection(sock=server)
        self._writers.append(self._to_server)
        down = asyncio.ensure_future(self._replies(from_server))
        up = asyncio.ensure_future(self._requests())
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _requests(self) -> None:
        buffer = b""
        while True:
            while (end := frame_end(buffer)) is None:
                data = await self._from_client.read(65536)
                if not data:
                    return
                buffer += data
            frame, buffer = buffer[:end], buffer[end:]
            verb = verb_of(frame)
            self._proxy.seen.append(verb)
            if self._proxy.latency:
                await asyncio.sleep(self._proxy.latency / 2)
            if self._proxy.silent:
                await self._from_client.read()
                return
            fault = next((fault for fault in self._proxy.faults if fault.takes(verb)), None)
            if await self._forward(frame, fault):
                return

    async def _forward(self, frame: bytes, fault: Fault | None) -> bool:
        """Whether the connection is to be reset now."""
        if fault is None:
            self._pending.append(None)
            self._to_server.write(frame)
            return False
        await asyncio.sleep(fault.delay)
        if fault.forward == "whole":
            self._pending.append(fault)
            self._to_server.write(frame)
            return False
        if fault.forward == "half":
            self._to_server.write(frame[: len(frame) // 2])
            await self._to_server.drain()
        elif fault.forward == "late":
            self._proxy.kept.append(frame)
        fault.hit.set()
        if fault.reply == "never":
            await self._from_client.read()
        return True

    async def _replies(self, from_server: asyncio.StreamReader) -> None:
        buffer = b""
        while True:
            while (end := frame_end(buffer)) is None:
                data = await from_server.read(65536)
                if not data:
                    return
                buffer += data
            frame, buffer = buffer[:end], buffer[end:]
            fault = self._pending.pop(0)
            if self._proxy.latency:
                await asyncio.sleep(self._proxy.latency / 2)
            if fault is not None:
                fault.hit.set()
            if await self._answer(frame, fault):
                return

    async def _answer(self, frame: bytes, fault: Fault | None) -> bool:
        """Whether the connection is to be reset now."""
        if fault is None or fault.reply == "whole":
            await asyncio.sleep(fault.reply_delay if fault is not None else 0)
            self._to_client.write(frame)
            return False
        await asyncio.sleep(fault.reply_delay)
        if fault.reply == "never":
            await asyncio.sleep(3600)
        elif fault.reply == "truncated":
            self._to_client.write(frame[: len(frame) // 2])
            await self._to_client.drain()
            self._to_client.close()
        elif fault.reply == "drip":
            for index in range(len(frame)):
                self._to_client.write(frame[index : index + 1])
                await asyncio.sleep(0.1)
            return False
        return True

    def hang_up(self) -> None:
        """Reset the connection, if it was not closed."""
        if not self._writers:
            self._sock.close()
        elif not self._to_client.is_closing():
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for writer in self._writers:
            writer.transport.abort()


@contextlib.contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
