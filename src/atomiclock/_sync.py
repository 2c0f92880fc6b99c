"""How threads perform the plans: one loop, one store, one keeper thread for each process."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from . import _process
from ._hold import Hold
from ._keep import Book, Dropped, Idle, On, Tell, keep
from ._lease import warn_dropped, warn_lost
from ._plans import Plan, Sleep, Terms, ended
from .backends import VERBS, Backend, Channel, Unknown

T = TypeVar("T")
log = logging.getLogger("atomiclock")


class Store:
    """Performs the asks of plans on one backend. Safe for threads and after a fork."""

    def __init__(self, backend: Backend, terms: Terms) -> None:
        self.backend = backend
        self.terms = terms
        self._channel: Channel | None = None
        self._generation = -1

    def run(self, plan: Plan[T]) -> T:
        """What `plan` returns or raises. Whatever interrupts a request is thrown into the plan."""
        step: Any = plan.send
        value: Any = None
        while True:
            try:
                value = self.perform(step(value))
                step = plan.send
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # the plan's own T
            except BaseException as error:
                if ended(plan):  # it is the plan that raised
                    raise
                step, value = plan.throw, error

    def perform(self, ask: Any) -> Any:
        """The answer to `ask`, or `Unknown`."""
        if type(ask) is Sleep:
            time.sleep(max(0.0, ask.until - _process.clock()))
            return None
        if self._generation != _process.generation:
            # Connections of the parent are left alone: to close them could be heard at the other end.
            self._channel, self._generation = self.backend.channel(), _process.generation
        call, deadline = self._channel.call, ask.deadline  # type: ignore[union-attr]  # just made
        steps = getattr(self.backend, VERBS[type(ask)])(ask)
        try:
            request = next(steps)
            while True:
                request = steps.send(call(request, deadline))
        except StopIteration as done:
            return done.value

    def close(self) -> None:
        """Close what is open; a later ask opens it again."""
        if self._channel is not None and self._generation == _process.generation:
            self._channel.close()


class KeeperThread:
    """Performs the keeper's plan for all sync leases of this process, on a daemon thread that starts when needed."""

    def __init__(self) -> None:
        # Re-entrant, and a queue instead of an event: a signal handler or a finalizer may come in between.
        self.book = Book(threading.RLock())
        self._wake: SimpleQueue[Hold | None] = SimpleQueue()
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None

    def add(self, hold: Hold) -> None:
        """Renew `hold` until it is discarded, and tell of its loss; or look again, since its times have changed."""
        rouse = True
        try:
            rouse = self.book.add(hold) or not self._runs()
        finally:  # the book counts on it that the keeper was woken, also if a signal interrupted right here
            if rouse:
                self._rouse()

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def nudge(self) -> None:
        """Let the keeper look again: somebody was interrupted, perhaps just before waking it."""
        if self._thread is not None:
            self._wake.put(None)

    def bury(self, hold: Hold) -> None:
        """Take back in the background what `hold` left at the store, until that is confirmed or the ttl is over."""
        hold.give_up()
        hold.buried = True
        hold.due = hold.valid_until = _process.clock()
        self.add(hold)

    def orphan(self, hold: Hold) -> None:
        """Bury `hold` from a finalizer, which may run anywhere: takes no lock, and starts no thread."""
        hold.give_up()
        self._wake.put(hold)

    def discard(self, hold: Hold) -> None:
        self.book.discard(hold)

    def _rouse(self) -> None:
        with self._starting:
            if not self._runs():
                self._thread = threading.Thread(target=self._keep, name="atomiclock-keeper", daemon=True)
                self._thread.start()
        self._wake.put(None)

    def _keep(self) -> None:
        plan = keep(self.book, lambda hold: hold.io.terms, _process.clock)
        step: Any = plan.send
        value: Any = None
        while True:
            ask = step(value)
            step, value = plan.send, None
            try:
                value = self._perform(ask)
            except Unknown as error:
                step, value = plan.throw, error
            except Exception:  # of a callback: the keeper has other leases to keep
                log.exception("keeping locks")

    def _perform(self, ask: Any) -> Any:
        if type(ask) is Idle:
            self._idle(ask.until - _process.clock())
        elif type(ask) is On:
            try:
                return ask.hold.io.perform(ask.ask)
            except Unknown:
                raise
            except Exception as error:  # the keeper must outlive whatever one store does
                log.warning("keeping the lock %r: %s: %s", ask.hold.name, type(error).__name__, error)
                raise Unknown(str(error)) from error
        elif type(ask) is Tell:
            self._tell(ask.hold)
        elif type(ask) is Dropped:
            warn_dropped(ask.hold)
        return None

    def _idle(self, seconds: float) -> None:
        with suppress(Empty):
            orphan = self._wake.get(timeout=min(max(seconds, 0.0), 86400.0))
            while True:
                if orphan is not None:
                    self.bury(orphan)
                orphan = self._wake.get_nowait()

    def _tell(self, hold: Hold) -> None:
        warn_lost(hold)
        lease = hold.lease() if hold.lease is not None else None
        if lease is not None and callable(hold.on_lost):
            # On a thread of its own, since it may take as long as it likes and other leases must be kept.
            teller = threading.Thread(target=hold.on_lost, args=(lease,), name="atomiclock-on-lost", daemon=True)
            try:
                teller.start()
            except RuntimeError:  # no more threads: better late than never
                hold.on_lost(lease)


keeper = KeeperThread()
"""This process's. Forked children get a new one: the parent's leases are not theirs to keep."""


def _new_keeper() -> None:
    global keeper
    keeper = KeeperThread()


_process.after_fork(_new_keeper)
