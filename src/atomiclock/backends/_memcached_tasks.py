"""How connections to memcached are made for tasks, by asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

from .._process import clock
from ..errors import BackendRefused
from ._memcached_dial import check_nap, explained
from ._memcached_greet import greet
from ._memcached_reader import Reader
from ._memcached_target import Target
from ._meta import Facts
from ._wire import Nap
from ._wire_tasks import AsyncDial, AsyncWire, Link, within


def async_dial(target: Target) -> AsyncDial:
    """Opens connections for tasks."""

    async def open_wire(deadline: float) -> AsyncWire:
        link: Link | None = None
        try:
            link = await within(_connected(target), deadline, Link.abort)
            reader: Any = link.reader
            reader.facts = await _greeted(target, link, deadline)
            wire, link = AsyncWire(link), None
            return wire
        except BackendRefused:
            raise
        except (OSError, ValueError) as error:
            raise explained(error, target.place) from error
        finally:
            if link is not None:
                link.abort()

    return open_wire


async def _connected(target: Target) -> Link:
    loop = asyncio.get_running_loop()
    if isinstance(target.server, str):
        return (await loop.create_unix_connection(_link, target.server))[1]
    return (await loop.create_connection(_link, *target.server, ssl=target.tls))[1]


def _link() -> Link:
    return Link(Reader())


async def _greeted(target: Target, link: Link, deadline: float) -> Facts:
    questions, reply = greet(target), None
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
        else:
            reply = await link.ask(request, deadline)
