"""How connections to memcached are made for tasks, by asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from .._process import clock
from ..errors import BackendRefused
from ._memcached_dial import check_nap, explained, some
from ._memcached_greet import greet
from ._memcached_reader import Reader
from ._memcached_target import Target
from ._meta import Facts
from ._wire import MORE, AsyncDial, AsyncWire, Nap


def async_dial(target: Target) -> AsyncDial:
    """Opens connections for tasks."""

    async def open_wire(deadline: float) -> AsyncWire:
        writer: Any = None
        try:
            left = max(0.001, deadline - clock())
            stream, writer = await asyncio.wait_for(_streams(target), left)
            reader = Reader()
            reader.facts = await asyncio.wait_for(
                _perform_async(greet(target), stream, writer, reader, deadline), max(0.001, deadline - clock())
            )
            ours, writer = writer, None
            return AsyncWire.of(stream, ours, reader)
        except BackendRefused:
            raise
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            raise explained(error, target.place) from error
        finally:
            if writer is not None:
                writer.transport.abort()

    return open_wire


async def _streams(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(target.server, str):
        return await asyncio.open_unix_connection(target.server)
    return await asyncio.open_connection(*target.server, ssl=target.tls)


async def _perform_async(
    questions: Generator[Any, Any, Facts],
    stream: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    reader: Reader,
    deadline: float,
) -> Facts:
    reply = None
    while True:
        try:
            request = questions.send(reply)
        except StopIteration as done:
            facts: Facts = done.value
            return facts
        if isinstance(request, Nap):
            check_nap(request, deadline)
            await asyncio.sleep(request.until - clock())
            reply = None
            continue
        said, reply = reader.prepare(request)
        writer.write(said)
        while reply is MORE:
            reply = reader.take(some(await stream.read(65536)), request)
