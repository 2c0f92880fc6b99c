"""fake://: a backend as any other, but on a clock of its own. `FakeStore` makes its URLs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from inspect import getgeneratorlocals
from typing import Any, TypeVar

from .. import _async, _sync
from .._hold import Hold
from .._plans import Plan, Sleep, Terms
from .._url import URL
from ..backends import Add, Backend, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Unknown, Wait
from ..errors import ConfigurationError
from ._clock import Sleeper
from ._fake_world import Fake, Waiter, open_fakes

T = TypeVar("T")

FOR_EVER = 86400.0
"""Seconds that a waiter waits for itself before it is told that this will never end."""


class FakeBackend:
    """A fake as the policy sees it."""

    traits = Traits(
        scope="process",
        fence="process",
        waits="wake",
        survives_restart="no",
        ttl_step=0.0,
        longest_ttl=1e9,
        loses="the test, and the end of its FakeStore",
    )
    request_bound = 3.0

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.place = f"fake://{fake.name}"

    @classmethod
    def from_url(cls, url: URL) -> FakeBackend:
        url.take()
        fake = open_fakes.get(url.host or "")
        if fake is None:
            raise ConfigurationError(
                f"no FakeStore is open in this process at fake://{url.host or ''}: such a URL is that of an "
                "atomiclock.testing.FakeStore, and works in its `with` block and in its process only"
            )
        return cls(fake)

    # What `Core` and the managers take instead of their own, where a backend has it:

    def virtual_clock(self) -> float:
        return self.fake.clock()

    def virtual_store(self, backend: Backend, terms: Terms) -> FakePerformer:
        return FakePerformer(backend, terms, self.fake)

    def virtual_async_store(self, backend: Backend, terms: Terms) -> AsyncFakePerformer:
        return AsyncFakePerformer(backend, terms, self.fake)

    # The verbs

    def _ask(self, do: Callable[[Any], T], ask: Any) -> T:
        with self.fake.clock.mutex:
            self.fake.clock.activity += 1
            if self.fake.down is not None:
                raise Unknown("the FakeStore is down", sent=False)
            return do(ask)

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        return (yield partial(self._ask, self._add, ask))  # type: ignore[no-any-return]  # what `_add` returns

    def _add(self, ask: Add) -> Granted | Busy:
        fake = self.fake
        if fake.closed:
            raise ConfigurationError(f"the FakeStore of {self.place} is closed")
        entry = fake.current(ask.key)
        if entry is not None and entry.token != ask.token:
            left = entry.expires - fake.clock()
            return Busy(None if math.isinf(left) else left, entry.owner)
        if entry is not None:
            fake.locks[ask.key] = entry._replace(expires=fake.clock() + ask.ttl)
            return Granted(entry.fence, repeated=True)
        if ask.waiting and (grace := fake.turn_of_another(ask.key, ask.token)) is not None:
            return Busy(grace, "a waiter who came before")
        fake.leave(ask.key, ask.token)
        return Granted(fake.grant(ask.key, ask.token, ask.owner, ask.ttl))

    def remove(self, ask: Remove) -> Steps[bool]:
        return (yield partial(self._ask, self._remove, ask))  # type: ignore[no-any-return]  # what `_remove` returns

    def _remove(self, ask: Remove) -> bool:
        fake = self.fake
        fake.leave(ask.key, ask.token)
        removed = fake.drop(ask.key, ask.token)
        if fake.current(ask.key) is None:
            fake.wake(ask.key)
        return removed

    def extend(self, ask: Extend) -> Steps[bool]:
        return (yield partial(self._ask, self._extend, ask))  # type: ignore[no-any-return]  # what `_extend` returns

    def _extend(self, ask: Extend) -> bool:
        entry = self.fake.current(ask.key)
        if entry is None or entry.token != ask.token:
            return False
        self.fake.locks[ask.key] = entry._replace(expires=self.fake.clock() + ask.ttl)
        return True

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        return (yield partial(self._ask, self._peek, ask))  # type: ignore[no-any-return]  # what `_peek` returns

    def _peek(self, ask: Peek) -> Holder | None:
        entry = self.fake.current(ask.key)
        return None if entry is None else entry.holder(self.fake.clock())

    def wait(self, ask: Wait) -> Steps[None]:
        yield ask

    def channel(self) -> _Channel:
        return _Channel(self.fake)

    def async_channel(self) -> _AsyncChannel:
        return _AsyncChannel(self.fake)


class _Channel:
    """Performs the requests for threads: functions, called as they are, and waits."""

    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def call(self, request: Any, deadline: float) -> Any:  # noqa: ARG002  # nothing here takes time
        if not isinstance(request, Wait):
            return request()
        sleeper = Sleeper(self._fake.clock)
        try:
            if _enlist(self._fake, request, sleeper):
                sleeper.sleep(request.until, partial(_waits_for_itself, self._fake, request))
        finally:
            _delist(self._fake, request)
        return None

    def close(self) -> None:
        pass


class _AsyncChannel(_Channel):
    async def call(self, request: Any, deadline: float) -> Any:  # noqa: ARG002  # nothing here takes time
        if not isinstance(request, Wait):
            return request()
        sleeper = Sleeper(self._fake.clock, asyncio.get_running_loop())
        try:
            if _enlist(self._fake, request, sleeper):
                await sleeper.asleep(request.until, partial(_waits_for_itself, self._fake, request))
        finally:
            _delist(self._fake, request)
        return None


def _enlist(fake: Fake, ask: Wait, sleeper: Sleeper) -> bool:
    """Join the queue; false if there is nothing to wait for."""
    with fake.clock.changed:
        if fake.down is not None:
            raise Unknown("the FakeStore is down", sent=False)
        if fake.closed:
            return False
        queue = fake.waiters.setdefault(ask.key, {})
        waiter = queue.setdefault(ask.token, Waiter())
        waiter.sleeper, waiter.grace = sleeper, None
        return fake.current(ask.key) is not None or next(iter(queue)) != ask.token


def _delist(fake: Fake, ask: Wait) -> None:
    """Sleep no more, but keep the place in the queue."""
    with fake.clock.mutex:
        waiter = fake.waiters.get(ask.key, {}).get(ask.token)
        if waiter is not None:
            waiter.sleeper = None


def _waits_for_itself(fake: Fake, ask: Wait) -> bool:
    if not fake.hopeless(ask.key):
        return False
    if fake.clock() - ask.since > FOR_EVER:
        raise RuntimeError(
            f"waited a day of virtual time for {ask.key!r}, which only who waits for it could give back: "
            "without a FakeStore this test would hang"
        )
    return True


_wanted: ContextVar[str | None] = ContextVar("_wanted", default=None)
"""The key that this thread or task tried last: what it sleeps for."""


def _hold_of(plan: Plan[Any]) -> Hold:
    """Whose plan it is: they all have it as an argument."""
    hold: Hold = getgeneratorlocals(plan)["hold"]
    return hold


class FakePerformer(_sync.Store):
    """Performs plans for threads, which sleep on the virtual clock."""

    def __init__(self, backend: Backend, terms: Terms, fake: Fake) -> None:
        super().__init__(backend, terms)
        self.fake = fake

    def run(self, plan: Plan[T]) -> T:
        hold = _hold_of(plan)
        with self.fake.clock.working(None):
            result = super().run(plan)
            self.fake.expect(hold, None)
            return result

    def perform(self, ask: Any) -> Any:
        if type(ask) is Sleep:
            return Sleeper(self.fake.clock).sleep(ask.until, partial(self.fake.hopeless, _wanted.get()))
        if type(ask) is Add:
            _wanted.set(ask.key)
        return super().perform(ask)


class AsyncFakePerformer(_async.AsyncStore):
    """The same for tasks."""

    def __init__(self, backend: Backend, terms: Terms, fake: Fake) -> None:
        super().__init__(backend, terms)
        self.fake = fake

    async def run(self, plan: Plan[T]) -> T:
        hold, loop = _hold_of(plan), asyncio.get_running_loop()
        with self.fake.clock.working(loop):
            result = await super().run(plan)
            self.fake.expect(hold, loop)
            return result

    async def perform(self, ask: Any) -> Any:
        if type(ask) is Sleep:
            sleeper = Sleeper(self.fake.clock, asyncio.get_running_loop())
            return await sleeper.asleep(ask.until, partial(self.fake.hopeless, _wanted.get()))
        if type(ask) is Add:
            _wanted.set(ask.key)
        return await super().perform(ask)
