"""For tests of applications: a store in memory whose locks can be lost, on a clock that the test moves."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .. import _api, _options, _process
from .._lease import LeaseView
from .._manager import LockManager
from .._options import NONE, overrides
from ..backends import Holder
from ._fake_world import Fake, close_fake, current_party, open_fake

if TYPE_CHECKING:
    from .._async_lease import AsyncLease
    from .._sync_lease import Lease


class FakeStore:
    """A store in this process for the tests of an application, used in `with`.

        with FakeStore() as store:
            with acquire_lock("nightly") as lease:
                store.lose(lease)
                assert lease.lost

    Inside, locks that name no URL are here; `store.url` puts others here too. At the end, what `configure()` was
    told inside is undone. Other stores go on as ever beside it, on real time.

    Its clock stands still, however long the test takes, and only `advance` moves it. With one exception: who waits
    for a lock that only itself could give back would wait for ever, so for it the time runs, and a timeout ends it
    at once. Give back what you took in the same test, and any other waiter waits until you do, or `advance`.

    The whole of it is for threads and tasks of one process. A forked child finds it empty.
    """

    def __init__(self) -> None:
        self._fake = Fake(os.urandom(4).hex())
        self._state = "not open yet: write `with FakeStore() as store:`"
        self._before: dict[str, object] = {}

    @property
    def url(self) -> str:
        """The URL of this store, for whatever takes one in this process. It may be given options, as any URL."""
        return f"fake://{self._fake.name}"

    def __enter__(self) -> FakeStore:
        if self in _stack or self._fake.closed:
            raise RuntimeError("a FakeStore is opened once: make another")
        open_fake(self._fake)
        self._state = ""
        self._before = dict(_options._configured)
        _stack.append(self)
        _configure({**self._before, "url": self.url})
        self._manager = LockManager(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._state = "closed"
        above = _stack.index(self) + 1
        if above < len(_stack):  # not closed in order: let it be restored by who was opened after us
            _stack[above]._before = self._before
        else:
            _configure(self._before)
        _stack.remove(self)
        close_fake(self._fake)
        for cache in (_api._managers, _api._async_managers):
            for url in [url for url in cache if url.startswith(self.url)]:
                del cache[url]

    # Trouble

    def lose(self, lease: Lease | AsyncLease | str, *, namespace: str | None = NONE) -> None:
        """Lose a lock, as a store does by a flush, an eviction or a restart. `lease`: the lease, or the lock's name.

        Others can get in. The holder is told as by its next renewal, here at once: `lease.lost`, and `on_lost`,
        which has returned when this does; in async code it runs when the loop gets its turn. A lease that is not
        renewed (`renew=False`, or after `max_hold`) does not ask, so as ever it learns of it only at its next call
        or when its ttl is over. Raises `ValueError` if nobody holds the lock, or if the lease is over or elsewhere.
        """
        self._check()
        fake = self._fake
        with fake.clock.mutex:
            key, token = self._held(lease, namespace)
            fake.drop(key, token)
            fake.keeper.renew_now(token)
        fake.clock.settle()
        with fake.clock.mutex:
            if fake.current(key) is None:
                fake.wake(key)
        fake.clock.settle()

    def take(
        self, name: str, *, owner: str = "somebody else", ttl: float | None = None, namespace: str | None = NONE
    ) -> Taken:
        """Let somebody else hold `name`: for `ttl` seconds, or until it is released. Also for `with`.

        Raises `ValueError` if it is held already.
        """
        self._check()
        key = self._key(name, namespace)
        token = _process.new_token()
        with self._fake.clock.mutex:
            entry = self._fake.current(key)
            if entry is not None:
                raise ValueError(f"{name!r} is held by {entry.owner}: lose() it first, or wait for its release")
            self._fake.grant(key, token, owner, math.inf if ttl is None else ttl)
        return Taken(self._fake, name, key, token, owner)

    def down(self) -> None:
        """Stop answering: every request fails as at a server that cannot be reached. What is held stays held."""
        self._check()
        with self._fake.clock.mutex:
            self._fake.down = current_party()
            self._fake.clock.wake_all()
        self._fake.clock.settle()

    def up(self) -> None:
        """Answer again. Who was about to try again does so at once."""
        self._check()
        with self._fake.clock.mutex:
            self._fake.down = None
            self._fake.clock.wake_all()
        self._fake.clock.settle()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """`down` and, at the end, `up`."""
        self.down()
        try:
            yield
        finally:
            self.up()

    # Time

    def advance(self, seconds: float) -> None:
        """Let `seconds` go by. Renewals, losses and the ends of waits happen each at its time, one after the other.

        When it returns they have happened: `on_lost` has returned, and the threads that were woken have their lock
        or their error, or wait again. Raises `RuntimeError` if tasks of the running loop wait: see `aadvance`.
        """
        self._check()
        self._fake.clock.advance(_seconds(seconds))

    async def aadvance(self, seconds: float) -> None:
        """`advance` in async code: the loop's tasks get their turns on the way, also those that were just created."""
        self._check()
        await self._fake.clock.aadvance(_seconds(seconds))

    def wait_for_waiter(self, name: str, *, timeout: float = 5.0, namespace: str | None = NONE) -> None:
        """Return when somebody is waiting for `name`: for a test that has started a thread which will.

        `timeout`: real seconds, then a `TimeoutError`. In async code `await store.aadvance(0)` does it.
        """
        self._check()
        key, clock = self._key(name, namespace), self._fake.clock
        end = time.monotonic() + timeout
        with clock.changed:
            while not any(waiter.sleeper is not None for waiter in self._fake.waiters.get(key, {}).values()):
                if not clock.changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    raise TimeoutError(f"nobody waited for {name!r} within {timeout:g} real seconds")

    # Who holds what

    def holder(self, name: str, *, namespace: str | None = NONE) -> Holder | None:
        """Who holds `name`, or `None`."""
        self._check()
        with self._fake.clock.mutex:
            entry = self._fake.current(self._key(name, namespace))
            return None if entry is None else entry.holder(self._fake.clock())

    def holders(self) -> dict[str, Holder]:
        """All that is held at the moment, by name; outside of the namespace that is configured, by key."""
        self._check()
        prefix = f"{self._manager._core.options().namespace}:"
        with self._fake.clock.mutex:
            now = self._fake.clock()
            held = {key: entry for key, entry in self._fake.locks.items() if entry.expires > now}
            return {key.removeprefix(prefix): entry.holder(now) for key, entry in held.items()}

    def __repr__(self) -> str:
        return f"<FakeStore {self.url}{f' ({self._state})' if self._state else ''}>"

    def _check(self) -> None:
        if self._state:
            raise RuntimeError(f"this FakeStore is {self._state}")

    def _key(self, name: str, namespace: str | None) -> str:
        core = self._manager._core
        return core.key(name, core.options(overrides(namespace=namespace)))

    def _held(self, lease: Lease | AsyncLease | str, namespace: str | None) -> tuple[str, str]:
        """The key and the token of a lock that is held here."""
        if isinstance(lease, str):
            key = self._key(lease, namespace)
            entry = self._fake.current(key)
            if entry is None:
                raise ValueError(f"nobody holds {lease!r}: it cannot be lost; held are {sorted(self.holders())}")
            return key, entry.token
        if not isinstance(lease, LeaseView):
            raise TypeError(f"lose() takes a lease or the name of a lock, not {lease!r}")
        hold = lease._hold
        if getattr(hold.io, "fake", None) is not self._fake:
            raise ValueError(f"{lease!r} is not a lease of this FakeStore: was it acquired at another URL?")
        entry = self._fake.current(hold.key)
        if not lease or entry is None or entry.token != hold.token:
            raise ValueError(f"{lease!r} is not held any more: it cannot be lost")
        return hold.key, hold.token


class Taken:
    """A lock that `FakeStore.take` took, to be given back by `release` or at the end of `with`."""

    def __init__(self, fake: Fake, name: str, key: str, token: str, owner: str) -> None:
        self.name = name
        self.owner = owner
        self._fake = fake
        self._key = key
        self._token = token

    def release(self) -> None:
        """Give it back: who waits for it gets it. Nothing happens if it has ended already."""
        with self._fake.clock.mutex:
            if self._fake.drop(self._key, self._token):
                self._fake.wake(self._key)
        self._fake.clock.settle()

    def __enter__(self) -> Taken:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_stack: list[FakeStore] = []
"""Those that are open, in the order in which they were opened."""


def _configure(configured: dict[str, object]) -> None:
    """Let exactly this be configured, whoever has called `configure()` meanwhile."""
    _options._configured = dict(configured)
    _options.version += 1


def _seconds(seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"time goes by 0 or more finite seconds, not {seconds!r}")
    return float(seconds)
