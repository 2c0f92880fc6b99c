"""How threads perform the plans: one loop, one store, one keeper thread for each process."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from contextlib import suppress
from queue import Empty
from typing import Any, TypeVar

from . import _process
from ._hold import HELD, Hold
from ._keep import Book, Dropped, Idle, On, OnAll, Tell, keep
from ._lease import warn_dropped, warn_lost, warn_stuck
from ._line import Lines, Ticket
from ._plans import Plan, Sleep, Terms, ended
from ._post import Post
from .backends import Backend, Channel, Unknown, after_part_of, facts_of, verbs_of
from .errors import LockError

T = TypeVar("T")
log = logging.getLogger("atomiclock")


_stores: list[weakref.ref[Store]] = []


def _new_lines() -> None:
    for store in [ref() for ref in _stores]:
        if store is not None:
            store.lines = Lines(threading.RLock(), _process.clock)


_process.after_fork(_new_lines)


class Store:
    """Performs the asks of plans on one backend. Safe for threads and after a fork."""

    def __init__(self, backend: Backend, terms: Terms) -> None:
        self.backend = backend
        self.terms = terms
        self._verbs: dict[type, Any] = {}
        self._facts: dict[type, Any] = {}
        self._channel: Channel | None = None
        self._generation = -1
        self.lines = Lines(threading.RLock(), _process.clock)
        """Where threads wait for each other. A forked child has none of its parent's threads."""
        with _process.loading:  # one at a time, and never during a fork
            _process.remember(_stores, self)

    def run(self, plan: Plan[T]) -> T:
        """What `plan` returns or raises. Whatever interrupts a request is thrown into the plan."""
        send, perform = plan.send, self.perform
        step: Any = send
        value: Any = None
        while True:
            try:
                while True:
                    value = perform(step(value))
                    step = send
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # the plan's own T
            except BaseException as error:
                if ended(plan):  # it is the plan that raised
                    raise
                step, value = plan.throw, error

    def perform(self, ask: Any) -> Any:
        """The answer to `ask`, or `Unknown`."""
        kind = type(ask)
        if kind is Sleep:
            time.sleep(max(0.0, ask.until - _process.clock()))
            return None
        if self._generation != _process.generation:
            self._open()
        fact = self._facts.get(kind)
        if fact is not None:
            return fact(ask)
        steps, deadline, reply = self._verbs[kind](ask), ask.deadline, None
        send, call = steps.send, self._channel.call  # type: ignore[union-attr]  # just made
        try:
            while True:
                reply = call(send(reply), deadline)
        except StopIteration as done:
            return done.value
        except Unknown as error:
            if not ended(steps):
                after_part_of(kind, reply, error)
            raise

    def _open(self) -> None:
        """Begin anew. Connections of a parent are left alone: to close them could be heard at the other end."""
        self._verbs, self._facts = verbs_of(self.backend), facts_of(self.backend)
        with _process.loading:  # of the driver
            self._channel, self._generation = self.backend.channel(), _process.generation

    def perform_all(self, asks: list[Any]) -> list[Any]:
        """The answer to each of `asks`, or `Unknown`, in one round trip. All have the same deadline."""
        if self._generation != _process.generation:
            self._open()
        channel: Any = self._channel
        steps = [self._verbs[type(ask)](ask) for ask in asks]
        replies = channel.call_all([next(each) for each in steps], asks[0].deadline)
        return [self._rest(*pair, asks[0].deadline) for pair in zip(steps, replies, strict=True)]

    def _rest(self, steps: Any, reply: Any, deadline: float) -> Any:
        try:
            while True:
                reply = self._channel.call(steps.send(reply), deadline)  # type: ignore[union-attr]  # it was made
        except StopIteration as done:
            return done.value
        except LockError as error:
            return Unknown(str(error))
        except Unknown as error:
            return error

    def stand(self, lines: Lines, ticket: Ticket[ThreadGate], begun: float, timeout: float | None) -> None:
        """Wait in this process's line for the lock, until we are in front, or it was passed on to us.

        Raises `LockTimeout`, or `BackendUnavailable` if who is in front got no answer.
        """
        if timeout is None and (front := lines.front(ticket.hold.key)) is not None and _is_ours(front, ticket.hold):
            warn_stuck(ticket.hold)
        for seconds in lines.stand(ticket, keeper, begun, timeout):
            ticket.gate.wait(seconds)

    def close(self) -> None:
        """Close what is open; a later ask opens it again."""
        if self._channel is not None and self._generation == _process.generation:
            self._channel.close()


def look_for_ourselves(hold: Hold) -> None:
    """Warn if this thread holds what it is about to wait for without end, through another manager."""
    kept = list(keeper.book.live)  # in one step, whatever other threads do to it
    if any(_is_ours(other, hold) for other in kept if other.key == hold.key):
        warn_stuck(hold)


def _is_ours(front: Hold, hold: Hold) -> bool:
    """Whether the thread of `hold` has the lock through `front`: a label that nobody chose is made once for each."""
    return front.state == HELD and front.owner is hold.owner and front.label is None and hold.label is None


class ThreadGate:
    """Where one thread waits to be let through."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the fastest thing to wait on that Python has
        self._lock.acquire()

    def open(self) -> None:
        with suppress(RuntimeError):  # it is open
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Return when it was opened since the last wait, after `seconds` at the latest."""
        self._lock.acquire(timeout=seconds)


class KeeperThread:
    """Performs the keeper's plan for all sync leases of this process, on a daemon thread that starts when needed."""

    def __init__(self) -> None:
        # Re-entrant, and a queue instead of an event: a signal handler or a finalizer may come in between.
        self.book = Book(threading.RLock())
        self.discard = self.book.discard
        self._wake: Post[Hold | None] = Post()
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None
        self._running = False  # what the thread itself says: to ask it takes longer

    def add(self, hold: Hold) -> None:
        """Renew `hold` until it is discarded, and tell of its loss; or look again, since its times have changed."""
        rouse = True
        try:
            rouse = self.book.add(hold) or not self._running
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
        hold.io.lines.leave(hold)

    def orphan(self, hold: Hold) -> None:
        """Bury `hold` from a finalizer, which may run anywhere: takes no lock, and starts no thread."""
        hold.give_up()
        self._wake.put(hold)

    def _rouse(self) -> None:
        with self._starting:
            if not self._runs():
                self._thread = threading.Thread(target=self._run, name="atomiclock-keeper", daemon=True)
                self._thread.start()
        self._wake.put(None)

    def _run(self) -> None:
        try:
            self._running = True
            self._keep()
        finally:
            self._running = False

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
        elif type(ask) is OnAll:
            return self._perform_all(ask)
        elif type(ask) is Tell:
            self._tell(ask.hold)
        elif type(ask) is Dropped:
            warn_dropped(ask.hold)
            ask.hold.io.lines.leave(ask.hold)
        return None

    def _perform_all(self, ask: OnAll) -> list[Any]:
        try:
            return ask.holds[0].io.perform_all(ask.asks)  # type: ignore[no-any-return]  # a store's
        except Unknown:
            raise
        except Exception as error:  # the keeper must outlive whatever one store does
            log.warning("keeping %d locks: %s: %s", len(ask.holds), type(error).__name__, error)
            raise Unknown(str(error)) from error

    def _idle(self, seconds: float) -> None:
        with suppress(Empty):
            orphan = self._wake.get(timeout=min(max(seconds, 0.0), 86400.0))
            while True:
                if orphan is not None:
                    self.bury(orphan)
                orphan = self._wake.get(0)

    def _tell(self, hold: Hold) -> None:
        warn_lost(hold)
        hold.io.lines.leave(hold)
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
