"""How threads talk to a cluster of etcd; for tasks see `_etcd_tasks`."""

from __future__ import annotations

import threading
from queue import Empty
from typing import Any

from .. import _process
from .._post import Post
from ..errors import BackendRefused
from . import Unknown
from ._etcd_dial import dial, explained
from ._etcd_session import Exchange, Hear, Link, Open, Send, Session, fit
from ._etcd_spares import Spares
from ._etcd_target import Target
from ._etcd_watch import Watches, open_watches
from ._wire_pool import WireChannel


class _Mailbox(Post[Any]):
    """Where a thread waits for one thing."""

    def wait(self, until: float) -> Any:
        """What was put into it, or `TimeoutError`."""
        try:
            return self.get(timeout=max(0.0, until - _process.clock()))
        except Empty:
            raise TimeoutError from None


def _wires(target: Target, endpoint: str) -> WireChannel:
    return WireChannel(dial(target, endpoint), fit, target.where(endpoint))


class ThreadChannel:
    """A cluster for threads."""

    def __init__(self, target: Target, spares: Spares) -> None:
        self._session = Session(target, spares, _wires, _Mailbox)
        self._opening: Any = threading.RLock()  # one opens what all want to share

    def call(self, request: Any, deadline: float) -> Any:
        return self._run(self._session.exchange(request, deadline))

    def call_all(self, requests: list[Any], deadline: float) -> list[Any]:
        """The replies to `requests`, in few round trips."""
        replies: list[Any] = self._run(self._session.exchange_all(requests, deadline))
        return replies

    def _run(self, steps: Exchange) -> Any:
        step: Any = steps.send
        value: Any = None
        try:
            while True:
                wanted = step(value)
                try:
                    value, step = self._perform(wanted), steps.send
                except (TimeoutError, Unknown, BackendRefused) as error:
                    value, step = error, steps.throw
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    def _perform(self, wanted: Send | Open | Hear) -> Any:
        if isinstance(wanted, Send):
            return wanted.link.wires.call(wanted.ask, wanted.deadline)
        if isinstance(wanted, Hear):
            return wanted.mailbox.wait(wanted.until)
        return self._open(*wanted)

    def _open(self, link: Link, token: bytes, deadline: float) -> Watches:
        """The stream of watches. While another thread opens it, this one waits as long as it has time."""
        opening, target = self._opening, self._session.target
        try:
            if not opening.acquire(timeout=max(0.0, deadline - _process.clock())):
                raise explained(TimeoutError(), target, link.endpoint)
            return link.open_watches() or open_watches(target, link.endpoint, token, deadline, link.adopt)
        finally:
            if opening._is_owned():  # a signal may come before it is noted what acquire() returned
                opening.release()

    def close(self) -> None:
        self._session.close()
