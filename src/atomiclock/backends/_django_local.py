"""Django's LocMemCache: the threads and tasks of one process exclude each other, on the entries that `cache.add` makes.

Every verb is one step under the cache's own mutex, so it compares and acts at once, also against Django's calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import _process
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Unknown, Wait
from ._django_values import LONGEST_PAUSE, Value, nap, packed, unpacked, warn_of_culling, warn_once
from ._wire import Nap

if TYPE_CHECKING:
    from . import AsyncChannel, Channel


def of_memory(cache: Any, place: str, bound: float) -> LocMemBackend:
    """For django.core.cache.backends.locmem.LocMemCache."""
    warn_once(f"{place} is a LocMemCache: its locks exclude the threads of one process, and no other process")
    warn_of_culling(cache, place)
    return LocMemBackend(cache, place, bound)


class LocMemBackend:
    """Locks in the memory that a LocMemCache has in this process."""

    traits = Traits(
        scope="process",
        fence="none",
        waits="poll",
        survives_restart="no",
        ttl_step=0.0,
        longest_ttl=1e9,
        loses="culling at MAX_ENTRIES; a jump of the machine's clock; the end of the process",
    )
    longest_pause = 1.5 * LONGEST_PAUSE

    def __init__(self, cache: Any, place: str, request_bound: float) -> None:
        self._cache = cache
        self.place = place
        self.request_bound = request_bound

    def _held(self, key: str) -> Value | None:
        """Who has the lock; a look at what others may change, so the mutex is held."""
        return None if self._cache._has_expired(key) else unpacked(self._cache._cache[key])

    def _remaining(self, key: str) -> float | None:
        expires = self._cache._expire_info[key]
        return None if expires is None else max(0.0, expires - time.time())

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        done: Granted | Busy = yield partial(self._add, ask)
        return done

    def _add(self, ask: Add) -> Granted | Busy:
        held = self._held(ask.key)
        if held is None:
            self._cache._set(ask.key, packed(ask.token, ask.owner, self._cache.pickle_protocol), ask.ttl)
            return Granted(None)
        if not _is(held, ask.token):
            return Busy(self._remaining(ask.key), held.owner, signals=False)
        self._renew(ask.key, ask.ttl)
        return Granted(None, repeated=True)

    def _renew(self, key: str, ttl: float) -> None:
        self._cache._expire_info[key] = time.time() + ttl
        self._cache._cache.move_to_end(key, last=False)  # culling takes what was not used for longest

    def remove(self, ask: Remove) -> Steps[bool]:
        done: bool = yield partial(self._remove, ask)
        return done

    def _remove(self, ask: Remove) -> bool:
        mine = _is(self._held(ask.key), ask.token)
        if mine:
            self._cache._delete(ask.key)
        return mine

    def extend(self, ask: Extend) -> Steps[bool]:
        done: bool = yield partial(self._extend, ask)
        return done

    def _extend(self, ask: Extend) -> bool:
        mine = _is(self._held(ask.key), ask.token)
        if mine:
            self._renew(ask.key, ask.ttl)
        return mine

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        done: Holder | None = yield partial(self._peek, ask)
        return done

    def _peek(self, ask: Peek) -> Holder | None:
        held = self._held(ask.key)
        return None if held is None else Holder(held.owner, held.token, None, self._remaining(ask.key))

    def wait(self, ask: Wait) -> Steps[None]:
        yield nap(ask)

    def channel(self) -> Channel:
        return _Channel(self._cache._lock, self.place)

    def async_channel(self) -> AsyncChannel:
        return _AsyncChannel(_Channel(self._cache._lock, self.place))


def _is(held: Value | None, token: str) -> bool:
    return held is not None and held.ours and held.token == token


class _Channel:
    """Runs requests under the cache's mutex."""

    def __init__(self, mutex: Any, place: str) -> None:
        self._mutex = mutex
        self._place = place

    def call(self, request: Callable[[], Any] | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return time.sleep(max(0.0, request.until - _process.clock()))
        # By the deadline: who was forked while another thread was in the cache finds its mutex taken for ever.
        if not self._mutex.acquire(timeout=max(0.0, deadline - _process.clock())):
            raise Unknown(f"{self._place}: the cache's mutex is taken", sent=False)
        try:
            return request()
        finally:
            self._mutex.release()

    def close(self) -> None:
        pass


class _AsyncChannel:
    """The same for tasks: inline, since it takes microseconds and is never held across a wait."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    async def call(self, request: Callable[[], Any] | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return await asyncio.sleep(max(0.0, request.until - _process.clock()))
        return self._channel.call(request, deadline)

    def close(self) -> None:
        pass
