"""A backend with scripted trouble around its verbs: replies that are lost, late or never come, and interruptions.

What the store does stays the backend's own. The trouble strikes between it and the policy, before the request is
sent or when the store has acted and the answer is on its way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .. import _process
from ..backends import VERBS, Backend, Steps, Unknown
from ._facade import Interrupted, Locks

When = Literal["before", "after"]
BOUND = 0.15
"""Seconds that one request may take in a troubled manager, so that giving up is quick."""


@dataclass(frozen=True)
class Delay:
    """The answer takes `seconds` longer."""

    seconds: float


class Lose:
    """The connection breaks: nobody knows whether the store has acted."""


class Hang:
    """Nothing comes back before the deadline."""


class Interrupt:
    """A signal handler raises, or the task is cancelled."""


Blow = Delay | Lose | Hang | Interrupt


class _Strike(NamedTuple):
    when: When
    verb: str


class Trouble:
    """What strikes when. Shared by all channels of one troubled backend."""

    def __init__(self) -> None:
        self._planned: dict[_Strike, list[Blow]] = {}
        self._always: dict[_Strike, Blow] = {}
        self.struck = 0

    def once(self, when: When, verb: str, blow: Blow) -> None:
        """Strike the next `verb`."""
        self._planned.setdefault(_Strike(when, verb), []).append(blow)

    @contextmanager
    def always(self, when: When, verb: str, blow: Blow) -> Iterator[None]:
        """Strike each `verb` in the body."""
        self._always[_Strike(when, verb)] = blow
        try:
            yield
        finally:
            del self._always[_Strike(when, verb)]

    def next(self, strike: _Strike) -> Blow | None:
        planned = self._planned.get(strike)
        blow = planned.pop(0) if planned else self._always.get(strike)
        self.struck += blow is not None
        return blow


class _Channel:
    def __init__(self, inner: Any, trouble: Trouble, clock: Callable[[], float]) -> None:
        self._inner = inner
        self._trouble = trouble
        self._clock = clock

    def call(self, request: Any, deadline: float) -> Any:
        if not isinstance(request, _Strike):
            return self._inner.call(request, deadline)
        blow = self._trouble.next(request)
        if isinstance(blow, Interrupt):
            raise Interrupted
        end = _end(blow, self._clock(), deadline)
        while (left := end - self._clock()) > 0:
            time.sleep(left)
        return _raise(blow)

    def close(self) -> None:
        self._inner.close()


class _AsyncChannel:
    def __init__(self, inner: Any, trouble: Trouble, clock: Callable[[], float]) -> None:
        self._inner = inner
        self._trouble = trouble
        self._clock = clock

    async def call(self, request: Any, deadline: float) -> Any:
        if not isinstance(request, _Strike):
            return await self._inner.call(request, deadline)
        blow = self._trouble.next(request)
        if isinstance(blow, Interrupt):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        end = _end(blow, self._clock(), deadline)
        await asyncio.sleep(0)
        while (left := end - self._clock()) > 0:  # noqa: ASYNC110  # a clock has no event
            await asyncio.sleep(left)
        return _raise(blow)

    def close(self) -> None:
        self._inner.close()


def _end(blow: Blow | None, now: float, deadline: float) -> float:
    """Until when nothing comes, on the clock by which the backend's leases end."""
    if isinstance(blow, Delay):
        return now + blow.seconds
    return deadline if isinstance(blow, Hang) else now


def _raise(blow: Blow | None) -> None:
    if isinstance(blow, (Lose, Hang)):
        raise Unknown(f"trouble: {type(blow).__name__.lower()}")


class TroubledBackend:
    """`inner` with trouble around its verbs."""

    def __init__(self, inner: Backend, trouble: Trouble) -> None:
        self._inner = inner
        self._trouble = trouble
        self.traits = inner.traits
        self.place = inner.place
        self.request_bound = BOUND
        self._clock = getattr(inner, "virtual_clock", _process.clock)

    def __getattr__(self, name: str) -> Any:
        if name not in VERBS.values():
            raise AttributeError(name)
        return lambda ask: self._around(name, getattr(self._inner, name)(ask))

    def _around(self, verb: str, steps: Steps[Any]) -> Steps[Any]:
        yield _Strike("before", verb)
        fact = yield from steps
        yield _Strike("after", verb)
        return fact

    def channel(self) -> _Channel:
        return _Channel(self._inner.channel(), self._trouble, self._clock)

    def async_channel(self) -> _AsyncChannel:
        return _AsyncChannel(self._inner.async_channel(), self._trouble, self._clock)


def trouble_for(locks: Locks) -> Trouble:
    """Put trouble between the policy and the store of `locks`, which was not used yet."""
    trouble = Trouble()
    manager = locks.manager
    core, store = manager._core, manager._store
    store.backend = core.backend = TroubledBackend(core.backend, trouble)
    store.terms.each = BOUND / 2  # the manager's are the same
    return trouble
