"""The synchronous face: `LockManager`, which makes leases and locks for threads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from . import _observe, _plans, _process, _sync
from ._core import Core, named, unavailable
from ._hints import Missing, refuse_cancel, warn_in_event_loop
from ._hold import HELD, LOST, Hold, margin
from ._line import Lines
from ._options import NONE, TRUE, TTL, ZERO, OnLost, Options, overrides
from ._sync_lease import Lease
from ._sync_lock import ManagedLock
from .backends import Extend, Holder, Peek, Remove, Unknown
from .errors import BackendUnavailable, LockError, LockLost, LockTimeout, NotHeld

GRACE = 1.0
"""Seconds that an interrupted call takes to take back what it sent, before that goes on in the background."""


def grace_after(error: BaseException) -> float:
    """Seconds for taking back an attempt that ended with `error`, before that goes on in the background."""
    if isinstance(error, LockTimeout):
        return 0.1  # no time is left, but the store has just answered, so it will not take long
    return 0.0 if isinstance(error, LockError) else GRACE


class LockManager:
    """Locks of one backend, for threads. Connects when first used; safe for threads and after a fork.

    `url` is the backend's URL (default: what `configure()` or ATOMICLOCK_URL set, else sqlite://), or an
    existing client (of redis-py, pymemcache or python-etcd3) may be given instead, as `url` or as `client`: its
    settings are used, on connections of our own. `handover`: whether a release may pass the lock on to a waiter of
    this manager without telling the store, for at most 100 turns or 0.1 s. The other arguments are the defaults for
    this manager's locks, as in `acquire_lock`, and beat those in the URL. Raises `ConfigurationError`; nothing is sent.
    """

    def __init__(
        self,
        url: str | object | None = None,
        *,
        client: object | None = None,
        ttl: float = TTL,
        timeout: float | None = NONE,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
        handover: bool = TRUE,
    ) -> None:
        given = overrides(ttl, timeout, renew, max_hold, namespace, owner, on_lost, lock_delay, handover)
        self._core = Core(url, client, given, "sync", _sync.look_for_ourselves)
        refuse_cancel(self._core.options())
        self._store: _sync.Store = self._core.performer("virtual_store", _sync.Store)

    def acquire(
        self,
        name: str,
        *,
        ttl: float = TTL,
        timeout: float | None = NONE,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
    ) -> Lease:
        """A lease on `name`, which is also a context manager that releases it.

        Raises `LockTimeout` if somebody else held it until `timeout` seconds were over, `BackendUnavailable` if
        the store did not answer, and `ConfigurationError` before anything is sent.
        """
        given = overrides(ttl, timeout, renew, max_hold, namespace, owner, on_lost, lock_delay)
        options = self._core.options_for(name, given)
        return self._acquire(self._attempt(name, options), options.timeout)

    def try_acquire(
        self,
        name: str,
        *,
        ttl: float = TTL,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
    ) -> Lease | None:
        """A lease on `name`, or `None` if somebody else holds it. Never waits for the lock; errors as `acquire`."""
        given = overrides(ttl, NONE, renew, max_hold, namespace, owner, on_lost, lock_delay)
        try:
            return self._acquire(self._attempt(name, self._core.options_for(name, given)), 0)
        except LockTimeout:
            return None

    def lock(
        self,
        name: str,
        *,
        ttl: float = TTL,
        renew: bool = TRUE,
        max_hold: float | None = NONE,
        namespace: str | None = NONE,
        owner: str | None = NONE,
        on_lost: OnLost = NONE,
        lock_delay: float = ZERO,
    ) -> ManagedLock:
        """A lock on `name` for code that takes a `threading.Lock`. Nothing is sent before its first use."""
        given = overrides(ttl, NONE, renew, max_hold, namespace, owner, on_lost, lock_delay)
        options = self._core.options_for(name, given)
        self._core.key(name, options)
        return ManagedLock(self, name, refuse_cancel(options))

    def holder(self, name: str, *, namespace: str | None = NONE) -> Holder | None:
        """Who holds `name`, or `None` if nobody does. For people: it may have changed before you read it.

        Raises `BackendUnavailable` if the store did not answer.
        """
        key = self._core.key(name, self._core.options(overrides(namespace=namespace)))
        deadline = _process.clock() + self._core.terms.bound
        try:
            return self._core.shown(self._store.perform(Peek(key, deadline)), self._store.lines.front(key))
        except Unknown as error:
            raise unavailable(name, "look at", error) from error
        except LockError as error:
            raise named(error, name) from error.__cause__

    def close(self) -> None:
        """Close the connections. Leases that are held stay held; a later call connects again."""
        self._store.close()

    def __enter__(self) -> LockManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    if not TYPE_CHECKING:
        __aenter__ = Missing(
            "a LockManager is for threads: in async code write `async with AsyncLockManager(url) as locks`"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LockManager has connections of this process: make one from its URL in each process")

    def __repr__(self) -> str:
        return f"<LockManager {self._core.backend.place}>"

    def _attempt(self, name: str, options: Options) -> Hold:
        """A new attempt, checked; nothing is sent yet."""
        warn_in_event_loop()
        hold = self._core.hold(name, options, self._store)
        if hold.on_lost is not None:
            refuse_cancel(options)
        return hold

    # For callers in this package that know a token: another process's, or one that is made from something else.

    def _adopt(self, name: str, token: str | None, given: Mapping[str, Any], make: Callable[..., Hold] = Hold) -> Hold:
        """An attempt under `token` (`None`: a new one), which is never passed on within this process."""
        options = refuse_cancel(self._core.options_for(name, given))
        hold = self._core.hold(name, options, self._store, token, make)
        hold.handover = False
        return hold

    def _extend_token(self, hold: Hold, deadline: float) -> bool:
        """Whether the store has the token of `hold`, whose ttl counts from now if so. One request; or `Unknown`."""
        return bool(self._store.perform(Extend(hold.key, hold.token, hold.ttl, deadline, hold.notes)))

    def _remove_token(self, hold: Hold, deadline: float, in_flight: int = 0) -> bool:
        """Whether the store had the token of `hold`, which it has no more. One request; or `Unknown`."""
        return bool(self._store.perform(Remove(hold.key, hold.token, in_flight, deadline, hold.notes)))

    def _take_over(self, hold: Hold) -> Lease:
        """The lease of what stands in the store under the token of `hold`, left there by `_leave_standing`.

        Raises `NotHeld` if it stands no more, and `BackendUnavailable`: then it is removed in the background.
        """
        terms = self._core.terms
        hold.claimed, hold.last_sent = True, terms.clock()  # nobody else removes it, whatever happens to us
        try:
            seen = self._store.perform(Peek(hold.key, hold.last_sent + terms.each))
            sent = terms.clock()
            gone = NotHeld(f"the lock {hold.name!r} stands no more", name=hold.name)
            kept = seen is not None and seen.token == hold.token and self._extend_token(hold, sent + terms.each)
            if seen is None or not kept:
                hold.claimed = False
                raise gone
            if not hold.granted(sent, terms.clock(), self._core.fence(seen.fence), repeated=True):
                raise Unknown(f"it answered when the ttl of {hold.ttl:g} s was over")
            lease = Lease(hold, self)
            _sync.keeper.add(hold)
            if _observe.observers:
                _observe.acquired(hold)
            return lease
        except Unknown as error:
            self._take_back(hold, error)
            raise unavailable(hold.name, "take over", error) from error
        except BaseException as error:
            self._take_back(hold, error)
            raise

    def _leave_standing(self, hold: Hold, seconds: float) -> None:
        """Hold it no more, but let the store keep it for `seconds` from now, for who knows the token.

        Raises `LockLost`, and `BackendUnavailable`: it then stands for `seconds`, or ends with the ttl it had. In no
        case does this process renew or remove it any more.
        """
        _sync.keeper.discard(hold)  # else it might tell of a loss when a short time is over
        hold.ttl, begun = seconds, _process.clock()
        until, end = begun + self._core.terms.each, begun + seconds - margin(seconds)
        lost = hold.over(begun)
        try:
            # A renewal with the old ttl may be obeyed after us, as long as it is not answered.
            while hold.renewing is not None and _process.clock() < until:
                time.sleep(0.001)
            self._extend(hold, seconds)
        except LockLost:
            if lost or hold.lost_reason == _plans.GONE or _process.clock() < end:
                raise
            hold.released(False, False)  # it was held until now, and stood until the answer came: that was long enough
        finally:
            self._let_stand(hold)

    def _let_stand(self, hold: Hold) -> None:
        """Have nothing to do any more with what stands in the store: neither renew it, nor remove it, nor tell of its
        end."""
        _sync.keeper.discard(hold)
        if hold.state != LOST:
            hold.released(False, False)
        self._store.lines.leave(hold)
        if _observe.observers:
            _observe.ended(hold)

    def _acquire(self, hold: Hold, timeout: float | None) -> Lease:
        """The lease of `hold`. Whatever is raised meanwhile, even by a signal, leaves nothing behind."""
        lines = self._store.lines
        try:
            self._get(hold, timeout, lines)
            lease = Lease(hold, self)
            if hold.renew or hold.on_lost is not None or _observe.observers or lines.followed(hold):
                _sync.keeper.add(hold)  # also to tell of its end, which nobody may look at
            if _observe.observers:
                _observe.acquired(hold)
            return lease
        except BaseException as error:
            try:
                self._store.lines.withdraw(hold)
                self._take_back(hold, error)
            finally:
                self._store.lines.leave(hold)
            named(error, hold.name)
            if _observe.observers:
                _observe.failed(hold, error)
            raise

    def _get(self, hold: Hold, timeout: float | None, lines: Lines) -> None:
        """Get the lock for `hold`, from the store or from within this process."""
        core, store, rest = self._core, self._store, 0.0
        terms = core.terms
        begun = terms.clock()
        if core.in_line and timeout != 0:
            ticket = lines.enter(hold, _sync.ThreadGate)
            if ticket is not None:
                store.stand(lines, ticket, begun, timeout)
                if hold.state == HELD:
                    return
                rest = lines.rest(hold, core.pause) if core.pause else 0.0
        try:
            store.run(_plans.acquire(hold, timeout, terms, begun, rest))
        except BackendUnavailable as error:
            left = math.inf if timeout is None else begun + timeout - terms.clock()
            lines.fail(hold, error, left)
            raise
        if core.fence_bits and hold.fence is not None:
            hold.fence <<= core.fence_bits  # turns in this process follow in the low bits

    def _take_back(self, hold: Hold, error: BaseException) -> None:
        """Leave nothing of an attempt that failed or was interrupted; what takes longer, in the background."""
        keeper = _sync.keeper
        keeper.discard(hold)
        keeper.nudge()
        hold.give_up()
        if not hold.lingers:
            return
        settled = False
        try:
            grace = grace_after(error)
            settled = self._store.run(_plans.abandon(hold, self._core.terms.clock() + grace, self._core.terms))
        except LockError:
            settled = False  # it refuses us: the error under way says why
        finally:
            if not settled:
                keeper.bury(hold)

    def _release(self, hold: Hold) -> None:
        store = self._store
        lines, keeper, left = store.lines, _sync.keeper, None
        try:
            if lines.followed(hold):
                keeper.discard(hold)  # first: whoever it is passed on to is kept instead
                if lines.pass_on(hold):
                    return
                if not hold.waited:  # else another process may be the next
                    left = partial(lines.leave, hold)
            store.run(_plans.release(hold, store.terms, left))
            keeper.discard(hold)  # now that the store has been told: a hold that is being released is not renewed
            if hold.in_flight:
                keeper.bury(hold)
        except (LockLost, NotHeld):
            keeper.discard(hold)
            if hold.lingers and hold.generation == _process.generation:
                keeper.bury(hold)
            raise
        except BaseException as error:
            if lines.passed(hold):
                (keeper.bury if hold.lingers else keeper.discard)(hold)  # removed, but an add may land still
            else:
                self._take_back(hold, error)
            named(error, hold.name)
            raise
        finally:
            lines.leave(hold)
            if _observe.observers:
                _observe.ended(hold)

    def _extend(self, hold: Hold, ttl: float | None) -> None:
        seconds = self._core.ttl(ttl, hold)
        try:
            self._store.run(_plans.extend(hold, seconds, self._core.terms))
        except LockError as error:
            named(error, hold.name)
            raise
        finally:
            if hold in _sync.keeper.book.live:
                _sync.keeper.add(hold)
