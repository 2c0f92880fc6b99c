"""memory://: the threads and tasks of one process exclude each other.

`memory://NAME` is a space of its own. A forked child starts with empty spaces: its parent's threads do not
exist there, so their locks would never be released.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from .. import _process
from .._url import URL
from ..errors import ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Wait, at_once, quick
from ._local import Listen, Mailbox, TaskMailbox, ThreadMailbox

if TYPE_CHECKING:
    from . import AsyncChannel, Channel


class Entry(NamedTuple):
    """A lock that is held, on the process's monotonic clock."""

    token: str
    owner: str
    fence: int
    expires: float


class Waiter:
    """Somebody in a lock's queue; without a mailbox while it asks by itself."""

    __slots__ = ("grace", "mailbox")

    def __init__(self) -> None:
        self.mailbox: Mailbox | None = None
        self.grace: float | None = None


class Space:
    """All locks of one memory://NAME, and who waits for them."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.locks: dict[str, Entry] = {}
        self.waiters: dict[str, dict[str, Waiter]] = {}  # by key, then by token in the order of arrival
        self.fence = 0
        self.swept = 1024  # beyond so many locks those that expired may be the larger part

    def current(self, key: str, now: float) -> Entry | None:
        entry = self.locks.get(key)
        if entry is None:
            return None
        _, _, _, expires = entry
        return entry if expires > now else None

    def sweep(self, now: float) -> None:
        """Forget locks that expired and were never asked for again."""
        self.locks = {key: entry for key, entry in self.locks.items() if entry.expires > now}
        self.swept = max(1024, 2 * len(self.locks))

    def turn_of_another(self, key: str, mine: str, now: float) -> float | None:
        """Seconds for which a free lock is left to who has waited longest; `None` if that is us.

        Else whoever releases in order to acquire again starves the others, who need a moment to wake up.
        """
        queue = self.waiters.get(key, {})
        for token, waiter in list(queue.items()):
            if token == mine:
                return None
            if waiter.grace is None:
                waiter.grace = now + GRACE
            if waiter.grace > now:
                return waiter.grace - now
            del queue[token]
        return None

    def leave(self, key: str, token: str) -> None:
        """`token` waits no more."""
        queue = self.waiters.get(key)
        if queue is not None:
            queue.pop(token, None)
            if not queue:
                del self.waiters[key]

    def wake(self, key: str) -> None:
        """Wake the two who have waited longest, of those that can be woken: the second, who only gets it if the first
        lets its grace pass, since the first may be a task whose loop was stopped."""
        if key not in self.waiters:
            return
        asleep = (waiter.mailbox for waiter in self.waiters[key].values() if waiter.mailbox is not None)
        woken = (mailbox for mailbox in asleep if mailbox.wake())
        next(woken, None)
        next(woken, None)


GRACE = 0.05
"""Seconds for which a free lock is kept for the waiter whose turn it is."""

_spaces: dict[str, Space] = {}
_process.after_fork(_spaces.clear)


class MemoryBackend:
    """Locks in this process's memory."""

    traits = Traits(
        scope="process",
        fence="process",
        waits="wake",
        survives_restart="no",
        ttl_step=0.0,
        longest_ttl=1e9,
        loses="the end of the process",
    )
    request_bound = 3.0

    def __init__(self, space: str = "") -> None:
        self._name = space
        self.place = f"memory://{space}"

    @classmethod
    def from_url(cls, url: URL) -> MemoryBackend:
        url.take()
        if url.path.strip("/") or url.port is not None or url.password or url.username:
            raise ConfigurationError("memory:// takes a name and nothing more: memory://NAME")
        return cls(unquote(url.netloc))  # not url.host, which is in lower case

    @property
    def space(self) -> Space:
        return _spaces.get(self._name) or _spaces.setdefault(self._name, Space())

    @at_once
    def add(self, ask: Add) -> Granted | Busy:
        key, token, ttl, owner, waiting, _, _, _ = ask
        space, now = _spaces.get(self._name) or self.space, _process.clock()
        with space.mutex:
            entry = space.current(key, now) if key in space.locks else None
            if entry is not None and entry.token != token:
                return Busy(entry.expires - now, entry.owner)
            if entry is not None:
                fence, repeated = entry.fence, True
            else:
                if key in space.waiters:
                    if waiting and (left := space.turn_of_another(key, token, now)) is not None:
                        return Busy(left, "a waiter who came before")
                    space.leave(key, token)
                space.fence = fence = space.fence + 1
                repeated = False
            space.locks[key] = quick(Entry, (token, owner, fence, now + ttl))
            if len(space.locks) > space.swept:
                space.sweep(now)
        return quick(Granted, (fence, repeated))

    @at_once
    def remove(self, ask: Remove) -> bool:
        key, token, _, _, _, _ = ask
        space, now = _spaces.get(self._name) or self.space, _process.clock()
        with space.mutex:
            if wanted := key in space.waiters:
                space.leave(key, token)
            entry = space.current(key, now)
            if entry is not None and entry.token != token:
                return False
            space.locks.pop(key, None)
            if wanted:
                space.wake(key)
            return entry is not None

    @at_once
    def extend(self, ask: Extend) -> bool:
        space, now = self.space, _process.clock()
        with space.mutex:
            entry = space.current(ask.key, now)
            if entry is None or entry.token != ask.token:
                return False
            space.locks[ask.key] = entry._replace(expires=now + ask.ttl)
            return True

    @at_once
    def peek(self, ask: Peek) -> Holder | None:
        space, now = self.space, _process.clock()
        with space.mutex:
            entry = space.current(ask.key, now)
        return None if entry is None else Holder(entry.owner, entry.token, entry.fence, entry.expires - now)

    def wait(self, ask: Wait) -> Steps[None]:
        space = self.space

        def enlist(mailbox: Mailbox) -> bool:
            with space.mutex:
                queue = space.waiters.setdefault(ask.key, {})
                waiter = queue.setdefault(ask.token, Waiter())
                waiter.mailbox, waiter.grace = mailbox, None
                return space.current(ask.key, _process.clock()) is not None or next(iter(queue)) != ask.token

        def leave(_: Mailbox) -> None:
            with space.mutex:
                waiter = space.waiters.get(ask.key, {}).get(ask.token)
                if waiter is not None:  # it keeps its place
                    waiter.mailbox = None

        yield Listen(enlist, leave, ask.until)

    def channel(self) -> Channel:
        return _Channel()

    def async_channel(self) -> AsyncChannel:
        return _AsyncChannel()


class _Channel:
    def call(self, request: Any, deadline: float) -> Any:  # noqa: ARG002  # nothing here takes time
        if not isinstance(request, Listen):
            return request()
        mailbox = ThreadMailbox()
        try:
            if request.enlist(mailbox):
                mailbox.wait(request.until)
        finally:
            request.leave(mailbox)
        return None

    def close(self) -> None:
        pass


class _AsyncChannel:
    async def call(self, request: Any, deadline: float) -> Any:  # noqa: ARG002  # nothing here takes time
        if not isinstance(request, Listen):
            return request()
        import asyncio

        mailbox = TaskMailbox(asyncio.get_running_loop())
        try:
            if request.enlist(mailbox):
                await mailbox.wait(request.until)
        finally:
            request.leave(mailbox)
        return None

    def close(self) -> None:
        pass
