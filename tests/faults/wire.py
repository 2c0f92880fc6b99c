"""A proxy before any store that speaks over TCP: it does to the bytes what networks do, and knows no protocol.

A fault strikes the next message from the client, on whichever connection that is. What a message is, is all that it
has to know of a store: for most the bytes that come in one go, for HTTP/2 the frames that carry a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Kind = Literal[
    "delay", "drip", "request cut", "request late", "reply late", "reply lost", "reply cut", "reply never",
    "black hole", "never answers", "refused",
]  # fmt: skip
AT_REQUEST = ("request cut", "request late", "black hole")
AT_REPLY = ("drip", "reply late", "reply lost", "reply cut", "reply never")
AT_CONNECT = ("never answers", "refused")
DELAY, LATE, BEAT = 0.15, 0.35, 0.1
"""Seconds by which a request is delayed, by which a reply is, and between two bytes that drip."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that close() sends RST."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS = 0, 1


class Cut(Exception):
    """The connection is to be reset now."""


class Frames:
    """Tells which bytes of a stream carry messages; `http2`: frames of a kind in `wanted`, else all."""

    def __init__(self, http2: bool, wanted: tuple[int, ...]) -> None:
        self._http2 = http2
        self._wanted = wanted
        self._rest = b""
        self._begun = DATA not in wanted or len(wanted) > 1  # only a client sends the preface

    def carry(self, data: bytes) -> bool:
        """Whether a message begins in `data`, which follows what was seen before."""
        if not self._http2:
            return True
        self._rest += data
        if not self._begun:
            self._begun, self._rest = True, self._rest.removeprefix(PREFACE)
        found = False
        while len(self._rest) >= 9:
            length, kind = int.from_bytes(self._rest[:3], "big"), self._rest[3]
            if len(self._rest) < 9 + length:
                break
            found = found or (kind in self._wanted and length > 0)
            self._rest = self._rest[9 + length :]
        return found


class Wire:
    """Listens on loopback before the server at `port`, on an event loop in a thread of its own."""

    def __init__(self, port: int, http2: bool) -> None:
        self.upstream = port
        self.http2 = http2
        self.fault: Kind | None = None
        self.hit = threading.Event()
        """Set when the fault has struck: at a reply, after the server acted."""
        self._times = 0.0
        self._skip = 0
        self.links: set[Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._thread.start()
        self.port = 0
        self._run(self._open())

    def strike(self, kind: Kind, times: float = 9**9, skip: int = 0) -> None:
        """Let the fault `kind` hit the next `times` messages after `skip` of them."""
        self.hit.clear()
        self._run(self._strike(kind, times, skip))

    def heal(self) -> None:
        """Carry everything again. Connections that were struck are reset, but for what is to be delivered late."""
        self._run(self._heal())

    def deliver(self) -> int:
        """Pass on, at last, the requests that were kept. Returns how many, when the server has acted."""
        return self._run(self._deliver())

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def takes(self) -> bool:
        """Whether the fault hits the message at hand."""
        if self.fault is None or self._times <= 0:
            return False
        if self._skip > 0:
            self._skip -= 1
            return False
        self._times -= 1
        return True

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._loop.add_reader(self._listener, self._accept)

    def _shut(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            link = Link(self, self._listener.accept()[0])
            self.links.add(link)
            link.task = self._loop.create_task(link.run())
            link.task.add_done_callback(link.over)

    async def _strike(self, kind: Kind, times: float, skip: int) -> None:
        self.fault, self._times, self._skip = kind, times, skip
        if kind in AT_CONNECT:
            await self._reset(list(self.links))
        if kind == "refused":
            self._shut()
            self.hit.set()

    async def _heal(self) -> None:
        was, self.fault = self.fault, None
        await self._reset([link for link in self.links if link.struck and not link.kept])
        if was == "refused":
            await self._open()

    async def _deliver(self) -> int:
        late = [link for link in self.links if link.kept]
        for link in late:
            await link.deliver()
        await self._reset(late)
        return len(late)

    async def _end(self) -> None:
        if self.fault != "refused":
            self._shut()
        await self._reset(list(self.links))

    async def _reset(self, links: list[Link]) -> None:
        for link in links:
            if link.task is not None:
                link.task.cancel()
        await asyncio.gather(*(link.task for link in links if link.task is not None), return_exceptions=True)
        await asyncio.sleep(0)  # so that they have hung up


class Link:
    """One client's connection, and ours to the server."""

    def __init__(self, wire: Wire, sock: socket.socket) -> None:
        self.wire = wire
        self.task: asyncio.Task[None] | None = None
        self.struck: Kind | None = None
        self.kept: list[bytes] = []
        self._sock = sock
        self._writers: list[asyncio.StreamWriter] = []
        self._asks, self._answers = Frames(wire.http2, (DATA,)), Frames(wire.http2, (DATA, HEADERS))

    async def run(self) -> None:
        self._sock.setblocking(False)
        with contextlib.suppress(OSError, Cut):
            self._from_client, self._to_client = await asyncio.open_connection(sock=self._sock)
            self._writers.append(self._to_client)
            await self._serve()

    def over(self, _: object) -> None:
        """Close what is open, also of one that was reset before it began to run."""
        self.wire.links.discard(self)
        self._hang_up()

    async def _serve(self) -> None:
        if self.wire.fault == "never answers":
            self.struck = "never answers"
            self.wire.hit.set()
            await self._from_client.read()
            return
        self._from_server, self._to_server = await asyncio.open_connection("127.0.0.1", self.wire.upstream)
        self._writers.append(self._to_server)
        pumps = {asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._replies())}
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                pump.result()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _requests(self) -> None:
        while data := await self._from_client.read(65536):
            await self._request(data)
        if self.kept:
            await asyncio.sleep(3600)  # its client has gone, and the request is still on its way

    async def _request(self, data: bytes) -> None:
        carries = self._asks.carry(data)
        if self.struck is None and carries and self.wire.takes():
            self.struck = self.wire.fault
            if self.struck in AT_REQUEST:
                self.wire.hit.set()
        if self.struck == "request late":
            self.kept.append(data)
            return
        if self.struck == "black hole":
            return
        if self.struck == "delay":
            self.struck = None
            await asyncio.sleep(DELAY)
            self.wire.hit.set()
        whole = self.struck != "request cut"
        self._to_server.write(data if whole else data[: len(data) // 2])
        await self._to_server.drain()
        if not whole:
            raise Cut

    async def _replies(self) -> None:
        while data := await self._from_server.read(65536):
            carries = self._answers.carry(data)
            if self.struck in AT_REPLY and carries:
                await self._answer(data)
            elif self.struck not in ("request late", "black hole"):
                self._to_client.write(data)

    async def _answer(self, data: bytes) -> None:
        self.wire.hit.set()
        if self.struck == "reply lost":
            raise Cut
        if self.struck == "reply late":
            self.struck = None
            await asyncio.sleep(LATE)
            self._to_client.write(data)
            return
        if self.struck == "reply never":
            await asyncio.sleep(3600)
        if self.struck == "reply cut":
            self._to_client.write(data[: len(data) // 2])
            await self._to_client.drain()
            self._to_client.close()
            return
        for index in range(len(data)):
            self._to_client.write(data[index : index + 1])
            await asyncio.sleep(BEAT)

    async def deliver(self) -> None:
        self._to_server.write(b"".join(self.kept))
        await self._to_server.drain()
        await asyncio.sleep(0.1)

    def _hang_up(self) -> None:
        """Reset the connection, if it was not closed."""
        if not self._writers:
            self._sock.close()
        elif not self._to_client.is_closing():
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for writer in self._writers:
            writer.transport.abort()


@contextlib.contextmanager
def wire_to(port: int, http2: bool = False) -> Iterator[Wire]:
    wire = Wire(port, http2)
    try:
        yield wire
    finally:
        wire.close()


@contextlib.contextmanager
def nobody_accepts(port: int = 0) -> Iterator[int]:
    """A port whose backlog is full: connecting hangs, as with a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", port), backlog=0) as sock, contextlib.ExitStack() as fillers:
        address = sock.getsockname()
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        time.sleep(0.05)
        yield address[1]
