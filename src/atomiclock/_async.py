"""How tasks perform the plans: the asynchronous twin of `_sync`, with one keeper task for each event loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakSet

from . import _process
from ._hold import HELD, Hold
from ._keep import Book, Dropped, Idle, On, OnAll, Tell, keep, needed_at
from ._lease import warn_dropped, warn_lost, warn_stuck
from ._line import Lines, Ticket
from ._loops import ByLoop
from ._plans import Plan, Sleep, Terms, ended
from .backends import AsyncChannel, Backend, Unknown, after_part_of, facts_of, verbs_of
from .errors import LockError

T = TypeVar("T")
log = logging.getLogger("atomiclock")


_stores: WeakSet[AsyncStore] = WeakSet()


class AsyncStore:
    """Performs the asks of plans on one backend, with connections of its own for each event loop."""

    def __init__(self, backend: Backend, terms: Terms) -> None:
        self.backend = backend
        self.terms = terms
        self._verbs: dict[type, Any] = {}
        self._facts: dict[type, Any] = {}
        self._channels: ByLoop[AsyncChannel] = ByLoop()
        self._lines: ByLoop[Lines] = ByLoop()
        _stores.add(self)

    async def run(self, plan: Plan[T]) -> T:
        """What `plan` returns or raises. Whatever interrupts a request, a cancellation too, is thrown into the plan."""
        send, perform = plan.send, self.perform
        step: Any = send
        value: Any = None
        while True:
            try:
                while True:
                    value = await perform(step(value))
                    step = send
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # the plan's own T
            except BaseException as error:
                if ended(plan):  # it is the plan that raised
                    raise
                step, value = plan.throw, error

    async def perform(self, ask: Any) -> Any:
        """The answer to `ask`, or `Unknown`."""
        kind = type(ask)
        if kind is Sleep:
            return await asyncio.sleep(max(0.0, ask.until - _process.clock()))
        channel = self._channels.get() or await self._open()
        fact = self._facts.get(kind)
        if fact is not None:
            return fact(ask)
        steps, deadline, reply = self._verbs[kind](ask), ask.deadline, None
        send, call = steps.send, channel.call
        try:
            while True:
                reply = await call(send(reply), deadline)
        except StopIteration as done:
            return done.value
        except Unknown as error:
            if not ended(steps):
                after_part_of(kind, reply, error)
            raise

    async def _open(self) -> AsyncChannel:
        self._verbs, self._facts = verbs_of(self.backend), facts_of(self.backend)
        with _process.loading:  # of the driver
            channel = self._channels.put(self.backend.async_channel())
        await at_loop_end(channel.close)
        return channel

    async def perform_all(self, asks: list[Any]) -> list[Any]:
        """The answer to each of `asks`, or `Unknown`, in one round trip. All have the same deadline."""
        channel: Any = self._channels.get() or await self._open()
        steps = [self._verbs[type(ask)](ask) for ask in asks]
        replies = await channel.call_all([next(each) for each in steps], asks[0].deadline)
        return [await _rest(channel, *pair, asks[0].deadline) for pair in zip(steps, replies, strict=True)]

    @property
    def lines(self) -> Lines:
        """Where the tasks of the running loop wait for each other."""
        return self._lines.get() or self._lines.put(Lines(RLock(), _process.clock))

    async def stand(self, lines: Lines, ticket: Ticket[TaskGate], begun: float, timeout: float | None) -> None:
        """Wait in this loop's line for the lock, until we are in front, or it was passed on to us.

        Raises `LockTimeout`, or `BackendUnavailable` if who is in front got no answer.
        """
        if timeout is None and _is_ours(lines.front(ticket.hold.key)):
            warn_stuck(ticket.hold, "task")
        for seconds in lines.stand(ticket, keeper(), begun, timeout):
            await ticket.gate.wait(seconds)

    def close(self) -> None:
        """Close what is open on the running loop; a later ask opens it again."""
        channel = self._channels.get()
        if channel is not None:
            channel.close()

    def leave_to_parent(self) -> None:
        """In a forked child: to close these, even by finalizing them, would deafen the parent's event loop."""
        _process.keep_for_ever(self._channels.values())
        self._channels.clear()
        self._lines.clear()


async def _rest(channel: AsyncChannel, steps: Any, reply: Any, deadline: float) -> Any:
    try:
        while True:
            reply = await channel.call(steps.send(reply), deadline)
    except StopIteration as done:
        return done.value
    except LockError as error:
        return Unknown(str(error))
    except Unknown as error:
        return error


def look_for_ourselves(hold: Hold) -> None:
    """Warn if this task holds what it is about to wait for without end, through another manager."""
    if any(_is_ours(other) for other in keeper().book.live if other.key == hold.key):
        warn_stuck(hold, "task")


def _is_ours(front: Hold | None) -> bool:
    """Whether the running task is inside the `async with` block that holds `front`."""
    lease = None if front is None or front.state != HELD or front.lease is None else front.lease()
    return lease is not None and lease._body is asyncio.current_task()


class TaskGate:
    """Where one task waits to be let through."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()

    def open(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return when it was opened since the last wait, after `seconds` at the latest."""
        alarm = self._loop.call_later(seconds, self.open)
        try:
            await self._future
        finally:
            alarm.cancel()
        self._future = self._loop.create_future()


_ends: ByLoop[tuple[AsyncGenerator[None, None], list[Callable[[], None]]]] = ByLoop()


async def at_loop_end(close: Callable[[], None]) -> None:
    """Call `close` when the running loop ends, while it can still close connections.

    An event loop tells nobody of its end but the asynchronous generators that were started on it.
    """
    end = _ends.get()
    if end is None:
        closers: list[Callable[[], None]] = []
        guard = _until_loop_end(closers)
        end = _ends.put((guard, closers))
        await guard.__anext__()
    end[1].append(close)


async def _until_loop_end(closers: list[Callable[[], None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        for close in closers:
            close()
        _ends.pop()  # these would keep a loop alive that nobody else has any more
        keeping = _keepers.pop()
        if keeping is not None:
            await keeping.stop()
        await asyncio.sleep(0)  # a turn of the loop for the transports to let go of their sockets


class KeeperTask:
    """Performs the keeper's plan for all async leases of one event loop: a task whenever something is due.

    Between its turns there is a timer and no task, so nothing is pending when the loop is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.book = Book(RLock())
        self.discard = self.book.discard
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._plan = keep(self.book, lambda hold: hold.io.terms, _process.clock)
        self._next: tuple[Any, Any] = (self._plan.send, None)

    def add(self, hold: Hold) -> None:
        """Renew `hold` until it is discarded, and tell of its loss; or look again, since its times have changed."""
        if self.book.add(hold):
            self._arm(needed_at(hold))

    def bury(self, hold: Hold) -> None:
        """Take back in the background what `hold` left at the store, until that is confirmed or the ttl is over."""
        hold.give_up()
        hold.buried = True
        hold.due = hold.valid_until = _process.clock()
        self.add(hold)
        hold.io.lines.leave(hold)

    async def stop(self) -> None:
        """The loop is about to end: leave no task that it would never run to its end."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    def _arm(self, at: float) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(min(max(at - _process.clock(), 0.0), 86400.0), self._start)

    def _start(self) -> None:
        self._timer = None
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._keep(), name="atomiclock-keeper")

    async def _keep(self) -> None:
        while True:
            step, value = self._next
            ask = step(value)
            self._next = (self._plan.send, None)
            if type(ask) is Idle:
                if ask.until < math.inf:
                    self._arm(ask.until)
                return
            try:
                self._next = (self._plan.send, await self._perform(ask))
            except Unknown as error:
                self._next = (self._plan.throw, error)
            except asyncio.CancelledError:
                # Somebody cancels every task of the loop. If the loop goes on, so do the renewals.
                self._next = (self._plan.throw, Unknown("the renewal was cancelled"))
                self._arm(_process.clock())
                raise

    async def _perform(self, ask: Any) -> Any:
        if type(ask) is On:
            try:
                return await ask.hold.io.perform(ask.ask)
            except Unknown:
                raise
            except Exception as error:  # the keeper must outlive whatever one store does
                log.warning("keeping the lock %r: %s: %s", ask.hold.name, type(error).__name__, error)
                raise Unknown(str(error)) from error
        elif type(ask) is OnAll:
            return await self._perform_all(ask)
        elif type(ask) is Tell:
            tell(ask.hold)
        elif type(ask) is Dropped:
            warn_dropped(ask.hold)
            ask.hold.io.lines.leave(ask.hold)
        return None

    async def _perform_all(self, ask: OnAll) -> list[Any]:
        try:
            return await ask.holds[0].io.perform_all(ask.asks)  # type: ignore[no-any-return]  # a store's
        except Unknown:
            raise
        except Exception as error:  # the keeper must outlive whatever one store does
            log.warning("keeping %d locks: %s: %s", len(ask.holds), type(error).__name__, error)
            raise Unknown(str(error)) from error


def tell(hold: Hold) -> None:
    """Tell the holder of its loss, on the holder's own loop."""
    warn_lost(hold)
    hold.io.lines.leave(hold)
    lease = hold.lease() if hold.lease is not None else None
    if lease is None:
        return
    if hold.on_lost == "cancel":
        lease._cancel_body()
    elif callable(hold.on_lost):
        asyncio.get_running_loop().call_soon(_call, hold.on_lost, lease)


def _call(on_lost: Callable[[Any], object], lease: Any) -> None:
    outcome = on_lost(lease)
    if inspect.iscoroutine(outcome):
        background(outcome)


_background: set[asyncio.Task[Any]] = set()


def background(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """`work` as a task that is not forgotten while it runs."""
    task = asyncio.get_running_loop().create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
    return task


_keepers: ByLoop[KeeperTask] = ByLoop()


def keeper() -> KeeperTask:
    """The running loop's."""
    return _keepers.get() or _keepers.put(KeeperTask(asyncio.get_running_loop()))


def _forget_parents() -> None:
    for store in list(_stores):
        store.leave_to_parent()
    _ends.clear()
    _keepers.clear()
    _background.clear()


_process.after_fork(_forget_parents)
