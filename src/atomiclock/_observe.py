"""What happens to locks, told to whoever observes: logs, metrics, traces. Nobody observes at first.

The hot path looks at `observers` and no further while it is empty. What an observer has to be told later is noted at
the hold (`seen`), so that a grant that was told of is followed by exactly one end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from ._hold import LOST, RELEASED, RELEASING, Hold
from .errors import BackendUnavailable, LockTimeout

log = logging.getLogger("atomiclock")

Kind = Literal["acquired", "contended", "timeout", "unavailable", "renewed", "released", "lost"]


class Event(NamedTuple):
    """Something that happened to one lock. Fields that a kind has nothing to say of are `None`."""

    kind: Kind
    """`contended`: somebody else has it, told once for each attempt. `timeout`: the attempt was given up because of
    that. `unavailable`: it was given up because the store did not answer. `renewed`: by the keeper."""
    name: str
    place: str
    """The store, without secrets."""
    owner: str
    """Our own label."""
    token: str
    """That of the lease; empty while no lock was granted yet."""
    ttl: float
    fence: int | None = None
    waited: float | None = None
    """Seconds from the call to this event, of those before the grant and of the grant itself."""
    held: float | None = None
    """Seconds since the grant, of those after it."""
    holder: str | None = None
    """The label of who has it instead, of `contended` and `timeout`, where the store knows."""
    reason: str | None = None
    """Why it was lost, or what went wrong with its release or with the store."""

    @property
    def backend(self) -> str:
        """The kind of the store, such as "redis": the first word of its place."""
        return self.place.replace(":", " ").partition(" ")[0]


NO_LEASE = ("contended", "timeout", "unavailable")
"""What happens before a lock is granted."""

Observer = Callable[[Event], object]

observers: tuple[Observer, ...] = ()
_complained: set[int] = set()


class _Seen:
    """What was told of one hold: when its attempt began, and when it was granted."""

    __slots__ = ("begun", "since")

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.since: float | None = None


def observe(observer: Observer) -> Callable[[], None]:
    """Call `observer` with an `Event` whenever something happens to a lock of this process. Returns what ends that.

    It is called on the thread or event loop where it happens, also on the keeper's, and must be quick. What it raises
    is logged once and harms no lock. Locks that are held already are not told of; forked children inherit observers.
    """
    global observers
    observers = (*observers, observer)

    def stop() -> None:
        global observers
        rest = list(observers)
        with suppress(ValueError):  # it was stopped before
            rest.remove(observer)
        observers = tuple(rest)
        if observer not in rest:
            _complained.discard(id(observer))  # which may be another's when it is gone

    return stop


def log_event(event: Event) -> None:
    """An observer that writes each event to the logger `atomiclock`, at DEBUG, or at INFO when an attempt failed.

    The fields are in the record as `lock_event`, `lock_name` and so on, `lock_` before the name of the event's field.
    A loss is a warning of its own, with the same fields, whether anybody observes or not.
    """
    if event.kind == "lost":
        return
    level = logging.INFO if event.kind in ("timeout", "unavailable") else logging.DEBUG
    if log.isEnabledFor(level):
        log.log(level, "lock %s: %r%s", event.kind, event.name, _details(event), extra=fields(event))


def _details(event: Event) -> str:
    said = (
        None if event.waited is None else f" after {event.waited:.3g} s",
        None if event.held is None else f", held {event.held:.3g} s",
        None if event.holder is None else f", {event.holder} has it",
        None if event.reason is None else f": {event.reason}",
    )
    return "".join(text for text in said if text)


def fields(event: Event) -> dict[str, Any]:
    """The fields of a log record: no name in it is one that logging has for itself."""
    return {
        "lock_event": event.kind,
        **{f"lock_{key}": value for key, value in event._asdict().items() if key != "kind"},
    }


def event_of(kind: Kind, hold: Hold, **facts: Any) -> Event:
    place = getattr(getattr(hold.io, "backend", None), "place", "")
    token = "" if kind in NO_LEASE else hold.grant
    return Event(kind, hold.name, place, hold.owner, token, hold.ttl, hold.fence, **facts)


# What happens. Each is called only if somebody observes.


def acquired(hold: Hold) -> None:
    now, seen = hold.io.terms.clock(), _seen(hold, hold.last_sent)
    seen.since = now
    _tell(event_of("acquired", hold, waited=now - seen.begun))


def contended(hold: Hold, holder: str | None, begun: float) -> None:
    if getattr(hold, "seen", None) is None:
        _seen(hold, begun)
        _tell(event_of("contended", hold, waited=hold.io.terms.clock() - begun, holder=holder))


def failed(hold: Hold, error: BaseException) -> None:
    """The attempt of `hold` ended with `error`, and if it was granted it is not any more."""
    seen = getattr(hold, "seen", None)
    if seen is not None and seen.since is not None:
        ended(hold)
    elif isinstance(error, LockTimeout):
        _tell(event_of("timeout", hold, waited=error.waited, holder=error.owner))
    elif isinstance(error, BackendUnavailable):
        waited = None if seen is None else hold.io.terms.clock() - seen.begun
        _tell(event_of("unavailable", hold, waited=waited, reason=str(error)))


def renewed(hold: Hold) -> None:
    seen = getattr(hold, "seen", None)
    if seen is not None and seen.since is not None:
        _tell(event_of("renewed", hold, held=hold.io.terms.clock() - seen.since))


def ended(hold: Hold, reason: str | None = None) -> None:
    """`hold` was released or lost: told once, and only of what was told to be acquired."""
    seen = getattr(hold, "seen", None)
    if seen is None or seen.since is None:
        return
    held = hold.io.terms.clock() - seen.since
    if hold.state == LOST or reason is not None:
        hold.seen = None
        _tell(event_of("lost", hold, held=held, reason=reason or hold.lost_reason))
    elif hold.state in (RELEASED, RELEASING):
        hold.seen = None
        silent = "the store has not confirmed it" if hold.state == RELEASING else None
        _tell(event_of("released", hold, held=held, reason=silent))


def _seen(hold: Hold, begun: float) -> _Seen:
    seen: _Seen | None = getattr(hold, "seen", None)
    if seen is None:
        hold.seen = seen = _Seen(begun)
    return seen


def _tell(event: Event) -> None:
    for observer in observers:
        try:
            observer(event)
        except Exception:
            if id(observer) not in _complained:
                _complained.add(id(observer))
                log.exception("an observer of locks raised: it is told of further events, but this is logged only once")
