"""How threads and tasks talk to a cluster: one endpoint at a time, the next one when it fails, a token when asked.

What to exchange for a request is written once, as a generator (`Session`); threads and tasks differ in how they wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, NamedTuple

import grpc

from .. import _process
from ..errors import BackendRefused
from . import Unknown
from ._etcd_errors import explain, is_fact, stale_token
from ._etcd_hands import Mailbox, in_safe_hands
from ._etcd_link import Link, gate
from ._etcd_recipe import AUTHENTICATE, Attempt, Call, Fault, KeepAlive, Watch, revoke
from ._etcd_spares import Spares
from ._etcd_target import Target
from ._etcd_wire import decode, encode, text

GOODBYE = 0.25
"""Seconds that a close may take to give back the leases that were kept."""


class Unary(NamedTuple):
    """To the one who waits: make this call. The reply is bytes, or a `grpc.RpcError` is raised."""

    link: Link
    call: Call
    metadata: Any
    deadline: float


class Hear(NamedTuple):
    """To the one who waits: return what comes into the mailbox, or raise `TimeoutError` at `until`."""

    mailbox: Any
    until: float


class Do(NamedTuple):
    """To the one who waits: return what `function` returns, which uses grpcio but does not wait for the server."""

    function: Callable[[], Any]


Exchange = Generator[Unary | Hear | Do, Any, Any]


class Session:
    """What a channel knows of its cluster: the endpoint in use, and the token that it was given."""

    def __init__(self, target: Target, spares: Spares, mailbox: Any) -> None:
        self._target = target
        self._spares = spares
        self._mailbox = mailbox  # makes one, for whoever waits here
        self._mutex = threading.RLock()
        self._at = 0
        self._missed = 0  # endpoints that were left since the last answer
        self._link: Link | None = None
        self._token: bytes | None = target.token.encode() if target.token else None

    def exchange(self, request: Any, deadline: float) -> Exchange:
        if isinstance(request, Attempt):
            try:
                return (yield from self.exchange(request.request, deadline))
            except (Unknown, BackendRefused) as error:
                return error
        if deadline <= _process.clock():
            raise Unknown(f"{self._target.place}: no time was left to ask", sent=False)
        if isinstance(request, Call):
            return (yield from self._call(request, deadline))
        if isinstance(request, KeepAlive):
            return (yield from self._keep_alive(request, deadline))
        return (yield from self._watch(request, deadline))

    def _call(self, call: Call, deadline: float) -> Exchange:
        for again in (False, True):
            link = self._link
            if link is None or not link.open:
                link = yield Do(self._connect)
            metadata = None
            if self._token is not None or self._target.password is not None:
                metadata = yield from self._metadata(link, deadline)
            sent = _process.clock()
            if link.silent_since is None:
                link.silent_since = sent
            try:
                data = yield Unary(link, call, metadata, self._share(link, sent, deadline))
                link.heard()
                self._missed = 0
                return decode(data)
            except grpc.RpcError as error:
                if again or not stale_token(error) or self._target.password is None:
                    return (yield from self._failed(link, error))
                if metadata is None or metadata[0][1] == self._token:  # else another thread has a new one
                    self._token = None
                    yield Do(link.end_streams)
            except ValueError as error:  # of the codec
                yield from self._leave(link)
                raise Unknown(f"{self._target.place}: not the answer of an etcd: {error}") from error
        raise AssertionError("not reached")

    def _share(self, link: Link, now: float, deadline: float) -> float:
        """Until when an endpoint that has not answered yet may take, so that time is left for the others."""
        others = len(self._target.endpoints) - 1 - self._missed
        return deadline if link.proven or others <= 0 else now + (deadline - now) / (others + 1)

    def _failed(self, link: Link, error: Any) -> Exchange:
        """What `error` means: a fact, or an exception."""
        if is_fact(error):
            link.heard()
            return Fault(error.details())
        fresh, open_before = not link.proven, link.open
        problem = explain(error, self._target, link.endpoint)
        others = self._missed < len(self._target.endpoints) - 1
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            # One request with little time says nothing; nothing heard for a while does.
            silent = link.silent_since is not None and _process.clock() - link.silent_since
            if (silent and silent >= self._target.bound / 4) or (fresh and others):
                yield from self._leave(link)
                if isinstance(problem, Unknown) and fresh and others:
                    problem.fresh = False  # there is another endpoint to ask at once
        elif isinstance(problem, Unknown):
            yield from self._leave(link)
            # Closed by a fork, or by another thread, or there is another endpoint: ask again at once.
            problem.fresh = fresh and open_before and not others
        elif fresh and others and isinstance(problem, BackendRefused):  # perhaps another one serves us
            yield from self._leave(link)
            problem = Unknown(str(problem), sent=False, fresh=False)
        else:
            link.heard()
        raise problem from error

    # Endpoints

    def _open(self) -> Generator[Do, Link, Link]:
        link = self._link
        if link is not None and link.open:
            return link
        return (yield Do(self._connect))

    def _connect(self) -> Link:
        with self._mutex:
            if self._link is None or not self._link.open:
                self._link = Link(self._target, self._target.endpoints[self._at])
            return self._link

    def _leave(self, link: Link) -> Exchange:
        """Go on with the next endpoint, over a new connection."""
        with self._mutex:
            if self._link is link:
                self._link = None
                self._at = (self._at + 1) % len(self._target.endpoints)
                self._missed += 1
        yield Do(link.close)

    def close(self) -> None:
        with self._mutex:
            link, self._link = self._link, None
        if link is not None:
            in_safe_hands(lambda: self._end(link))

    def _end(self, link: Link) -> None:
        """Close `link`, and give back what is kept, if the server answers quickly. Else it ends with its ttl."""
        until, calls = _process.clock() + GOODBYE, []
        with suppress(Unknown), gate(), link.usable():
            if link.proven and link.silent_since is None:
                metadata = (("token", self._token),) if self._token else None
                for call in [revoke(lease) for lease in self._spares.take_all()]:
                    calls.append(link.method(call.method).future(call.payload, timeout=GOODBYE, metadata=metadata))
            for each in calls:
                with suppress(grpc.RpcError, grpc.FutureTimeoutError):
                    each.result(max(0.0, until - _process.clock()))
        link.close()

    # Tokens

    def _metadata(self, link: Link, deadline: float) -> Exchange:
        if self._token is None and self._target.password is not None:
            yield from self._authenticate(link, deadline)
        return (("token", self._token),) if self._token else None

    def _authenticate(self, link: Link, deadline: float) -> Exchange:
        target = self._target
        ask = encode({1: (target.user or "").encode(), 2: (target.password or "").encode()})
        try:
            reply = yield Unary(link, Call(AUTHENTICATE, ask), None, deadline)
        except grpc.RpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                self._token = b""  # whoever may do without a password may also give one, as with etcdctl
                return
            yield from self._failed(link, error)
            raise
        self._token = text(decode(reply), 2)

    # Streams

    def _keep_alive(self, ask: KeepAlive, deadline: float) -> Exchange:
        """The keep-alive travels beside the call, which comes first back as a rule."""
        link = yield from self._open()
        metadata = yield from self._metadata(link, deadline)
        mailbox = self._mailbox()
        yield Do(lambda: link.keep_alive(metadata).renew(ask.lease, mailbox.put))
        reply = yield from self._call(ask.beside, deadline)
        try:
            left = yield Hear(mailbox, deadline)
        except TimeoutError:
            left = None
        if left is None:
            raise Unknown(f"{self._target.place}: the lease was not kept alive in time", fresh=False)
        return left, reply

    def _watch(self, ask: Watch, deadline: float) -> Exchange:
        link = yield from self._open()
        metadata = yield from self._metadata(link, deadline)
        mailbox = self._mailbox()
        begun: list[Callable[[], None]] = []  # by another thread perhaps, and this one may be interrupted meanwhile
        try:
            yield Do(lambda: begun.append(link.watching(metadata).watch(ask, mailbox.put)))
            with suppress(TimeoutError):
                return (yield Hear(mailbox, min(ask.until, deadline)))
        finally:
            for stop in begun:
                stop()


class ThreadChannel:
    """A cluster for threads."""

    def __init__(self, target: Target, spares: Spares) -> None:
        self._session = Session(target, spares, Mailbox)

    def call(self, request: Any, deadline: float) -> Any:
        steps = self._session.exchange(request, deadline)
        step: Any = steps.send
        value: Any = None
        try:
            while True:
                wanted = step(value)
                try:
                    value, step = _perform(wanted), steps.send
                except (grpc.RpcError, TimeoutError, Unknown) as error:
                    value, step = error, steps.throw
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    def close(self) -> None:
        self._session.close()


def _perform(wanted: Unary | Hear | Do) -> Any:
    if isinstance(wanted, Hear):
        return wanted.mailbox.wait(wanted.until - _process.clock())
    return in_safe_hands(wanted.function if isinstance(wanted, Do) else lambda: _ask(wanted))


def _ask(wanted: Unary) -> Any:
    left = wanted.deadline - _process.clock()
    with gate(), wanted.link.usable():
        method = wanted.link.method(wanted.call.method)
        return method(wanted.call.payload, timeout=max(0.001, left), metadata=wanted.metadata)


class TaskMailbox:
    """Where a task waits for what comes on another thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def put(self, value: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._set, value)

    def _set(self, value: Any) -> None:
        if not self.future.done():
            self.future.set_result(value)


class TaskChannel:
    """A cluster for the tasks of one event loop.

    By grpcio's futures, not by grpc.aio: that keeps one thread in grpcio for ever, so nothing could be forked, and
    its cycle takes as long (1.5 ms against 1.6 ms on one machine).
    """

    def __init__(self, target: Target, spares: Spares) -> None:
        self._session = Session(target, spares, TaskMailbox)

    async def call(self, request: Any, deadline: float) -> Any:
        steps = self._session.exchange(request, deadline)
        step: Any = steps.send
        value: Any = None
        try:
            while True:
                wanted = step(value)
                try:
                    value, step = await _perform_async(wanted), steps.send
                except (grpc.RpcError, TimeoutError, Unknown) as error:
                    value, step = error, steps.throw
                except asyncio.TimeoutError as error:  # another class in Python 3.10
                    value, step = TimeoutError(*error.args), steps.throw
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    def close(self) -> None:
        self._session.close()


async def _perform_async(wanted: Unary | Hear | Do) -> Any:
    if isinstance(wanted, Do):
        return wanted.function()
    if isinstance(wanted, Hear):
        return await asyncio.wait_for(wanted.mailbox.future, max(0.0, wanted.until - _process.clock()))
    mailbox, left = TaskMailbox(), wanted.deadline - _process.clock()
    with gate(), wanted.link.usable():
        method = wanted.link.method(wanted.call.method)
        call = method.future(wanted.call.payload, timeout=max(0.001, left), metadata=wanted.metadata)
    call.add_done_callback(mailbox.put)
    try:
        await mailbox.future
    finally:
        call.cancel()  # if the task was cancelled; else it is done
    return call.result()
