"""Who keeps the leases of fakes: the keeper's own plan, performed by whoever moves the clock."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from .. import _async, _sync
from .._hold import Hold
from .._keep import Book, Dropped, Idle, On, Tell, keep
from .._lease import warn_dropped, warn_lost
from ..backends import Unknown
from ._clock import Loop, running_loop

log = logging.getLogger("atomiclock")


class FakeKeeper:
    """The keeper of one fake's leases, sync and async, with the methods of `KeeperThread` and `KeeperTask`.

    It has no thread and no timer: `turn` does what is due on the virtual clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.book = Book(threading.RLock())
        self._clock = clock
        self._plan = keep(self.book, lambda hold: hold.io.terms, clock)
        self._next: tuple[Any, Any] = (self._plan.send, None)
        self._until = math.inf
        self._turning = threading.RLock()
        self._inside = False
        self._orphans: deque[Hold] = deque()
        self._loops: WeakKeyDictionary[Hold, Loop] = WeakKeyDictionary()
        self._tellers: list[threading.Thread] = []
        self.expected: dict[str, Callable[[], None]] = {}
        """What to call when the lease of a token that was just granted arrives here, or turns out not to come."""

    def add(self, hold: Hold) -> None:
        loop = running_loop()
        if loop is not None and isinstance(hold.io, _async.AsyncStore):
            with self.book.mutex:
                self._loops[hold] = loop
        if self.book.add(hold):
            self.turn()
        self._arrived(hold)

    def _arrived(self, hold: Hold) -> None:
        arrived = self.expected.pop(hold.token, None)
        if arrived is not None:
            arrived()

    def bury(self, hold: Hold) -> None:
        hold.give_up()
        hold.buried = True
        hold.due = hold.valid_until = self._clock()
        self.add(hold)

    def orphan(self, hold: Hold) -> None:
        """From a finalizer, which may run anywhere: done at the next turn."""
        hold.give_up()
        self._orphans.append(hold)

    def discard(self, hold: Hold) -> None:
        self.book.discard(hold)
        self._arrived(hold)

    def renew_now(self, token: str) -> None:
        """Renew the lease of `token` at the next turn, if it is renewed at all: it finds out what happened to it."""
        hold = next((hold for hold in self.book.live if hold.token == token), None)
        if hold is not None:
            self.book.works(hold.io)
            self.book.again(hold, self._clock())

    # What the clock calls

    def due(self) -> float:
        return self._until

    def turn(self) -> None:
        with self._turning:
            if self._inside:  # a signal handler or a finalizer came in between: whom it interrupted goes on
                return
            self._inside = True
            try:
                while self._orphans:
                    orphan = self._orphans.popleft()
                    orphan.buried = True
                    orphan.due = orphan.valid_until = self._clock()
                    self.book.add(orphan)
                self._keep()
            finally:
                self._inside = False

    def _keep(self) -> None:
        while True:
            step, value = self._next
            ask = step(value)
            self._next = (self._plan.send, None)
            if type(ask) is Idle:
                self._until = ask.until
                return
            try:
                self._next = (self._plan.send, self._perform(ask))
            except Unknown as error:
                self._next = (self._plan.throw, error)

    def _perform(self, ask: Any) -> Any:
        if type(ask) is On:
            io = ask.hold.io
            try:
                return _sync.Store(io.backend, io.terms).perform(ask.ask)  # of either colour: nothing here waits
            except Unknown:
                raise
            except Exception as error:
                log.warning("keeping the lock %r: %s: %s", ask.hold.name, type(error).__name__, error)
                raise Unknown(str(error)) from error
        elif type(ask) is Tell:
            self._tell(ask.hold)
        elif type(ask) is Dropped:
            warn_dropped(ask.hold)
        return None

    def _tell(self, hold: Hold) -> None:
        loop = self._loops.get(hold)
        if loop is not None:
            self._tell_on(loop, hold)
            return
        warn_lost(hold)
        lease = hold.lease() if hold.lease is not None else None
        if lease is not None and callable(hold.on_lost):
            # On a thread of its own, as it is in earnest: what is wrong with that should show in a test.
            teller = threading.Thread(target=hold.on_lost, args=(lease,), name="atomiclock-on-lost", daemon=True)
            teller.start()
            self._tellers.append(teller)

    def _tell_on(self, loop: Loop, hold: Hold) -> None:
        if running_loop() is loop:
            _async.tell(hold)
        elif loop.is_closed():
            warn_lost(hold)
        else:
            loop.call_soon_threadsafe(_async.tell, hold)
            if loop.is_running():
                teller = threading.Thread(target=_turn, args=(loop,), daemon=True)
                teller.start()
                self._tellers.append(teller)

    def told(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        for teller in list(self._tellers):
            if teller is not threading.current_thread():
                teller.join(max(0.0, end - time.monotonic()))
        self._tellers = [teller for teller in self._tellers if teller.is_alive()]
        return not any(teller is not threading.current_thread() for teller in self._tellers)


def _turn(loop: Loop) -> None:
    """Return when `loop` has had a few turns, for the callbacks of what was put into it."""
    for _ in range(3):
        turned = threading.Event()
        try:
            loop.call_soon_threadsafe(turned.set)
        except RuntimeError:  # closed meanwhile
            return
        turned.wait(1.0)


class _Router:
    """Stands for the real keeper while a fake is open: leases of a fake go to that fake's own."""

    def __init__(self, real: Callable[[], Any], fakes: Callable[[], Iterable[FakeKeeper]]) -> None:
        self._real = real
        self._fakes = fakes

    def _of(self, hold: Hold) -> Any:
        fake = getattr(hold.io, "fake", None)
        return self._real() if fake is None else fake.keeper

    def add(self, hold: Hold) -> None:
        self._of(hold).add(hold)

    def bury(self, hold: Hold) -> None:
        self._of(hold).bury(hold)

    def orphan(self, hold: Hold) -> None:
        self._of(hold).orphan(hold)

    def discard(self, hold: Hold) -> None:
        self._of(hold).discard(hold)

    @property
    def book(self) -> Any:
        return SimpleNamespace(live=self._real().book.live.union(*(keeper.book.live for keeper in self._fakes())))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)


class Routing:
    """Puts the routers in the real keepers' places, and the real ones back. Costs nobody anything while it is off."""

    def __init__(self, fakes: Callable[[], Iterable[FakeKeeper]]) -> None:
        self._fakes = fakes
        self._put_back: Callable[[], None] | None = None

    def on(self) -> None:
        if self._put_back is not None:
            return
        thread_keeper, task_keeper = _sync.keeper, _async.keeper
        router: Any = _Router(lambda: thread_keeper, self._fakes)
        task_router: Any = _Router(task_keeper, self._fakes)
        _sync.keeper = router
        _async.keeper = lambda: task_router

        def put_back() -> None:
            _async.keeper = task_keeper
            if _sync.keeper is router:  # a forked child got a new one
                _sync.keeper = thread_keeper

        self._put_back = put_back

    def off(self) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None
