"""A connection of tasks: a reply is taken for the answer to its own request, in time, or the connection is closed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from atomiclock._process import clock
from atomiclock.backends import Unknown
from atomiclock.backends._resp import Reader, pack
from atomiclock.backends._wire import Several
from atomiclock.backends._wire_tasks import AsyncWire, AsyncWireChannel, Link, within

PING, PONG = pack(b"PING"), b"+PONG\r\n"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request as its test says, and counts connections."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.connections: list[asyncio.StreamWriter] = []
        self.tasks: list[Any] = []
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        self.tasks.append(asyncio.current_task())
        with suppress(ConnectionError):
            while await reader.read(4096):
                await (self.answers.pop(0) if self.answers else saying(PONG))(writer)
        writer.close()


def saying(*parts: bytes, pause: float = 0.0) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause)

    return answer


async def channel_to(server: Server) -> AsyncWireChannel:
    async def dial(_: float) -> AsyncWire:
        loop = asyncio.get_running_loop()
        return AsyncWire((await loop.create_connection(lambda: Link(Reader()), "127.0.0.1", server.port))[1])

    return AsyncWireChannel(dial, lambda _: True, "the test's server")


def run(test: Callable[[Server, AsyncWireChannel], Awaitable[None]]) -> None:
    """Run it. Whatever the loop has to complain of is a failure, too."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        server = Server()
        async with await asyncio.start_server(server, "127.0.0.1") as listening:
            server.port = listening.sockets[0].getsockname()[1]
            channel = await channel_to(server)
            await test(server, channel)
            channel.close()
            await asyncio.wait(server.tasks)

    asyncio.run(main())
    assert complaints == []


def soon(seconds: float = 5.0) -> float:
    return clock() + seconds


def test_a_reply_is_the_same_in_pieces_of_any_size() -> None:
    async def test(server: Server, channel: AsyncWireChannel) -> None:
        told = b"$5\r\nhello\r\n:7\r\n"
        for size in range(1, len(told) + 1):
            pieces = [told[at : at + size] for at in range(0, len(told), size)]
            server.answers.append(saying(*pieces, pause=0.001))
            assert await channel.call(Several.of([PING, PING]), soon()) == [b"hello", 7]
        assert len(server.connections) == 1

    run(test)


def test_a_reply_with_more_behind_it_ends_the_connection() -> None:
    async def test(server: Server, channel: AsyncWireChannel) -> None:
        server.answers.append(saying(PONG + b"+LATE\r\n"))
        assert await channel.call(PING, soon()) == b"PONG"
        assert await channel.call(PING, soon()) == b"PONG"
        assert len(server.connections) == 2

    run(test)


@pytest.mark.parametrize("loop_turns", [True, False], ids=["noticed", "not yet noticed"])
@pytest.mark.parametrize("what", ["bytes", "end"])
def test_what_comes_while_nobody_asks_ends_the_connection(what: str, loop_turns: bool) -> None:
    """Also if the loop was kept busy and has not read it."""

    async def test(server: Server, channel: AsyncWireChannel) -> None:
        assert await channel.call(PING, soon()) == b"PONG"
        sock: socket.socket = server.connections[0].get_extra_info("socket")
        with socket.socket(fileno=socket.dup(sock.fileno())) as twin:
            if what == "bytes":
                twin.sendall(b"+LATE\r\n")
            else:
                twin.shutdown(socket.SHUT_WR)
        if loop_turns:
            await asyncio.sleep(0.05)
        assert await channel.call(PING, soon()) == b"PONG"
        assert len(server.connections) == 2

    run(test)


def test_the_answer_to_a_cancelled_request_is_nobody_elses() -> None:
    async def test(server: Server, channel: AsyncWireChannel) -> None:
        for turns in range(12):
            server.answers[:] = [saying(b"+OLD\r\n")]
            task = asyncio.ensure_future(channel.call(PING, soon()))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            server.answers.clear()
            assert await channel.call(PING, soon()) == b"PONG", turns

    run(test)


def test_a_request_ends_at_its_own_deadline_whatever_that_of_the_one_before() -> None:
    async def test(server: Server, channel: AsyncWireChannel) -> None:
        for before in (0.1, 30.0):
            assert await channel.call(PING, soon(before)) == b"PONG"
            server.answers.append(saying(b"+PO", b"NG\r\n", pause=0.4))
            begun = clock()
            with pytest.raises(Unknown, match="timed out") as caught:
                await channel.call(PING, soon(0.2))
            assert 0.19 < clock() - begun < 0.39
            assert caught.value.fresh
            await asyncio.sleep(0.5)
        assert await channel.call(PING, soon(0.1)) == b"PONG"
        server.answers.append(saying(b"+PO", b"NG\r\n", pause=0.3))
        assert await channel.call(PING, soon()) == b"PONG", "the alarm of the one before is not its own"

    run(test)


def test_a_hundred_requests_need_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(_: Server, channel: AsyncWireChannel) -> None:
        loop, set_timers = asyncio.get_running_loop(), []
        call_at = loop.call_at

        def counting(*args: Any, **more: Any) -> Any:
            set_timers.append(args)
            return call_at(*args, **more)

        monkeypatch.setattr(loop, "call_at", counting)
        for _ in range(100):
            await channel.call(PING, soon())
        assert len(set_timers) <= 2

    run(test)


def test_a_stream_that_was_told_more_than_it_read_is_no_connection() -> None:
    async def test(server: Server, _: AsyncWireChannel) -> None:
        for told, error in ((b"+LATE\r\n", ValueError), (b"", ConnectionError)):
            stream, writer = await asyncio.open_connection("127.0.0.1", server.port)
            server.answers.append(saying(PONG + told))
            writer.write(PING)
            await stream.readexactly(len(PONG))
            if not told:
                server.connections[-1].close()
                await asyncio.sleep(0.05)
            with pytest.raises(error):
                Link.instead(stream, writer, Reader())
            writer.close()

    run(test)


def test_a_stream_that_has_read_all_goes_on_as_a_connection() -> None:
    async def test(server: Server, _: AsyncWireChannel) -> None:
        stream, writer = await asyncio.open_connection("127.0.0.1", server.port)
        link = Link.instead(stream, writer, Reader())
        assert await link.ask(PING, soon()) == b"PONG"
        server.answers.append(saying(b"nonsense\r\n"))
        with pytest.raises(ValueError, match="protocol"):
            await link.ask(PING, soon())
        link.abort()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await link.ask(PING, soon())

    run(test)


@pytest.mark.parametrize("ends", ["cancelled", "late"])
def test_a_connection_that_nobody_takes_is_undone_and_no_cancellation_is_forgotten(ends: str) -> None:
    async def main() -> None:
        undone: list[str] = []
        made = asyncio.get_running_loop().create_future()

        async def work() -> str:
            with suppress(asyncio.CancelledError):  # as libraries do that retry
                await made
            return "connection"

        seconds = 5.0 if ends == "cancelled" else 0.01
        task = asyncio.create_task(within(work(), clock() + seconds, undone.append))
        await asyncio.sleep(0)
        if ends == "cancelled":
            await asyncio.sleep(0)
            made.set_result(None)  # in the same moment
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError if ends == "cancelled" else TimeoutError):
            await task
        await asyncio.sleep(0.01)
        assert undone == ["connection"]

    asyncio.run(main())


def test_a_connection_that_is_taken_is_not_undone() -> None:
    async def main() -> None:
        undone: list[str] = []
        assert await within(asyncio.sleep(0, "connection"), clock() + 5, undone.append) == "connection"
        await asyncio.sleep(0.01)
        assert undone == []

    asyncio.run(main())
