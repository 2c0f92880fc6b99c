"""How tasks talk to a cluster of etcd: as `_etcd_channel`, in a module of its own, which loads asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from .._process import clock
from ..errors import BackendRefused
from . import Unknown, _wire_tasks
from ._etcd_dial import address_of, explained
from ._etcd_session import Exchange, Hear, Link, Open, Send, Session, fit
from ._etcd_spares import Spares
from ._etcd_target import Target
from ._etcd_watch import Watches
from ._grpc import HELLO, Reader
from ._wire_tasks import AsyncDial, AsyncWire, AsyncWireChannel


def async_dial(target: Target, endpoint: str) -> AsyncDial:
    """Opens connections for tasks."""

    async def open_wire(deadline: float) -> AsyncWire:
        link: _wire_tasks.Link | None = None
        try:
            make = lambda: _wire_tasks.Link(Reader(endpoint, target.tls is not None))  # noqa: E731  # asyncio wants to call it
            made: _wire_tasks.Link = await _connected(target, endpoint, make, deadline)
            link = made
            await made.ask(HELLO, deadline)
            wire, link = AsyncWire(made), None
            return wire
        except (OSError, ValueError) as error:
            raise explained(error, target, endpoint) from error
        finally:
            if link is not None:
                link.abort()

    return open_wire


async def _connected(target: Target, endpoint: str, make: Callable[[], Any], deadline: float) -> Any:
    host, port = address_of(endpoint)
    # Without happy_eyeballs_delay: a cancellation leaves sockets of it open (Python 3.11).
    made = asyncio.get_running_loop().create_connection(make, host, port, ssl=target.tls)
    return (await _wire_tasks.within(made, deadline, lambda pair: pair[0].abort()))[1]


class TaskWatches(Watches, asyncio.Protocol):
    """The watches of an event loop: what comes is heard there."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self.begin())

    def data_received(self, data: bytes) -> None:
        try:
            self.came(data)
        except ValueError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # who waits asks again, and is told then
        self.close()

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def hang_up(self) -> None:
        self._transport.abort()


async def _open_watches(target: Target, endpoint: str, token: bytes, deadline: float) -> Watches:
    make = lambda: TaskWatches(endpoint, target.tls is not None, token)  # noqa: E731  # asyncio wants to call it
    try:
        watches: Watches = await _connected(target, endpoint, make, deadline)
    except (OSError, ValueError) as error:
        raise explained(error, target, endpoint) from error
    return watches


_TIME_IS_UP: Any = object()


class _Mailbox:
    """Where a task waits for one thing, which comes on its own event loop."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def put(self, value: Any) -> None:
        if not self.future.done():
            self.future.set_result(value)

    async def wait(self, until: float) -> Any:
        """What was put into it, or `TimeoutError`. Not by wait_for(), which up to Python 3.11 forgets a cancellation
        that comes together with the result."""
        alarm = asyncio.get_running_loop().call_later(max(0.0, until - clock()), self.put, _TIME_IS_UP)
        try:
            value = await self.future
        finally:
            alarm.cancel()
        if value is _TIME_IS_UP:
            raise TimeoutError
        return value


def _wires(target: Target, endpoint: str) -> AsyncWireChannel:
    return AsyncWireChannel(async_dial(target, endpoint), fit, target.where(endpoint))


class TaskChannel:
    """A cluster for the tasks of one event loop."""

    def __init__(self, target: Target, spares: Spares) -> None:
        self._session = Session(target, spares, _wires, _Mailbox)
        self._opening: asyncio.Future[None] | None = None  # one opens what all want to share

    async def call(self, request: Any, deadline: float) -> Any:
        return await self._run(self._session.exchange(request, deadline))

    async def call_all(self, requests: list[Any], deadline: float) -> list[Any]:
        """The replies to `requests`, in few round trips."""
        replies: list[Any] = await self._run(self._session.exchange_all(requests, deadline))
        return replies

    async def _run(self, steps: Exchange) -> Any:
        step: Any = steps.send
        value: Any = None
        try:
            while True:
                wanted = step(value)
                try:
                    value, step = await self._perform(wanted), steps.send
                except (TimeoutError, Unknown, BackendRefused) as error:
                    value, step = error, steps.throw
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    async def _perform(self, wanted: Send | Open | Hear) -> Any:
        if isinstance(wanted, Send):
            return await wanted.link.wires.call(wanted.ask, wanted.deadline)
        if isinstance(wanted, Hear):
            return await wanted.mailbox.wait(wanted.until)
        return await self._open(*wanted)

    async def _open(self, link: Link, token: bytes, deadline: float) -> Watches:
        """The stream of watches. While another task opens it, this one waits as long as it has time."""
        target = self._session.target
        while (found := link.open_watches()) is None:
            if self._opening is None:
                self._opening = opening = asyncio.get_running_loop().create_future()
                try:
                    return link.adopt(await _open_watches(target, link.endpoint, token, deadline))
                finally:
                    self._opening = None
                    opening.set_result(None)
            if deadline <= clock():
                raise explained(TimeoutError(), target, link.endpoint)
            await asyncio.wait({self._opening}, timeout=deadline - clock())
        return found

    def close(self) -> None:
        self._session.close()
