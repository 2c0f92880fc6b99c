"""A checker of histories: what many processes did with one lock, by one clock, and which laws of locks that breaks.

Each process writes what it calls and what it gets, with CLOCK_MONOTONIC, which all processes of a machine share. A
holder writes, again and again, that it believes to hold: with the time from *before* it looked, so that every belief
in the history was really held at that time, and two that overlap prove two holders. No search is needed for that
(as for other objects, Wing and Gong 1993): for a lock it is a matter of intervals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

Span = tuple[float, float]
Fault = tuple[str, float, float]
"""Whom it befell, since when, until when."""


@dataclass
class Hold:
    """One grant, as its process saw it."""

    client: str
    invoked: float
    start: float
    """When the acquire had returned."""
    end: float
    """The last time of which it is known that it believed to hold."""
    over: float = 0.0
    """When its end was known to it; `end` if it died."""
    believed: bool = True
    """Whether it believed to hold at `start`: an answer may come when the lease is over, and then proves nothing."""
    token: str = ""
    fence: int | None = None
    fate: str = "died"
    """died, released, lost, or unknown: a release that was not answered."""


@dataclass
class Wait:
    """One acquire that did not end in a grant, or the wait before a grant."""

    client: str
    invoked: float
    ended: float
    outcome: str
    """granted, LockTimeout, BackendUnavailable, died, ..."""


@dataclass
class History:
    holds: list[Hold] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    rests: list[dict[str, Any]] = field(default_factory=list)
    """What each process had open at its beginning and at its end."""
    stops: list[Fault] = field(default_factory=list)
    """Who was stopped by SIGSTOP, from when to when."""
    cuts: list[Fault] = field(default_factory=list)
    """Whose network had a fault."""
    killed: dict[str, float] = field(default_factory=dict)
    """Who was killed by SIGKILL, and when."""

    @classmethod
    def read(
        cls, files: Iterable[Path], stops: Iterable[Fault], killed: Mapping[str, float], cuts: Iterable[Fault] = ()
    ) -> History:
        """The history in `files`, one for each process, of which some were `killed`, each at its time."""
        history = cls(stops=list(stops), cuts=list(cuts), killed=dict(killed))
        for path in files:
            lines = path.read_text().split("\n")[:-1]  # the last line of a killed process may be torn
            history._client(path.stem, [json.loads(line) for line in lines], killed.get(path.stem))
        history.holds.sort(key=lambda hold: hold.start)
        return history

    def _client(self, client: str, events: list[dict[str, Any]], killed: float | None) -> None:
        invoked, hold = None, None
        for event in events:
            at, what = event.get("at", 0.0), event["what"]
            if what == "acquire":
                invoked = at
            elif what == "held" and hold is not None:
                hold.end = hold.over = at
            elif what in ("released", "lost", "unknown") and hold is not None:
                hold.fate, hold.over, hold = what, at, None
            elif what == "rest":
                self.rests.append({"client": client, **event})
            elif what in ("got", "refused") and invoked is not None:
                self.waits.append(Wait(client, invoked, at, event.get("outcome", "granted")))
                if what == "got":
                    hold = Hold(client, invoked, at, at, at, event["believed"], event["token"], event["fence"])
                    self.holds.append(hold)
                invoked = None
        if invoked is not None and killed is not None:
            self.waits.append(Wait(client, invoked, killed, "died"))

    @property
    def believed(self) -> list[Hold]:
        """The holds but those whose answer came when the lease was over: those may stand anywhere."""
        return [hold for hold in self.holds if hold.believed]

    def __str__(self) -> str:
        fates = {
            fate: sum(hold.fate == fate for hold in self.holds) for fate in ("released", "lost", "unknown", "died")
        }
        return f"{len(self.holds)} holds ({', '.join(f'{count} {fate}' for fate, count in fates.items() if count)})"


def overlaps(history: History, forgiven: Sequence[Span] = ()) -> list[str]:
    """Never two leases at once. `forgiven`: spans after the store lost its data, in which nobody can know."""
    wrong, last = [], None
    for hold in history.believed:
        if last is not None and hold.start < last.end:
            both = (hold.start, min(hold.end, last.end))
            if not any(since <= both[0] and both[1] <= until for since, until in forgiven):
                wrong.append(f"{last.client} and {hold.client} both held for {both[1] - both[0]:.4f} s")
        if last is None or hold.end > last.end:
            last = hold
    return wrong


def fences(history: History) -> list[str]:
    """Fences grow in the order of the grants."""
    return [
        f"{later.client} got fence {later.fence} after {hold.client} had {hold.fence}"
        for hold, later in pairwise(history.believed)
        if hold.fence is None or later.fence is None or later.fence <= hold.fence
    ]


SENT = 1.0
"""Seconds in which who came surely has sent its request: on a busy machine others have many turns before that."""


def starved(history: History, most: int) -> list[str]:
    """No waiter is overtaken more than `most` times by others that surely came after it. The first wait connects."""
    wrong, connected = [], set()
    for wait in history.waits:
        if wait.client not in connected:
            connected.add(wait.client)
            continue
        by = sum(
            hold.client != wait.client and hold.invoked > wait.invoked + SENT and hold.start < wait.ended
            for hold in history.holds
        )
        if by > most and wait.outcome in ("granted", "LockTimeout"):
            wrong.append(f"{wait.client} waited {wait.ended - wait.invoked:.2f} s and was overtaken {by} times")
    return wrong


def stuck(history: History, most: float, places: bool = False) -> list[str]:
    """Nobody waits longer than `most` seconds while nobody holds: a ttl and a margin, if the last holder died.

    `places`: the store keeps the place of a waiter, too, for the ttl after its last word, and serves nobody behind it
    before. So it is told from the last fault that befell another waiter.
    """
    wrong = []
    held = [(hold.start, hold.over) for hold in history.holds]
    for wait in history.waits:
        others = struck(history, wait.client) if places else []
        stops = [(since, until) for client, since, until in history.stops if client == wait.client]
        longest = max((b - a for a, b in without((wait.invoked, wait.ended), [*held, *stops, *others])), default=0.0)
        if longest > most:
            wrong.append(f"{wait.client} waited {longest:.2f} s for a lock that nobody held ({wait.outcome})")
    return wrong


def struck(history: History, but: str) -> list[Span]:
    """The faults that befell waiters other than `but`. Who was stopped or killed has said nothing since it began; with
    a fault in its network it may be heard, and not hear, until that is over."""
    faults = [(client, at, at) for client, at in history.killed.items()]
    faults += [(client, since, since) for client, since, _ in history.stops]
    return [
        (since, until)
        for client, since, until in [*faults, *history.cuts]
        if client != but
        and any(wait.client == client and wait.invoked <= until and wait.ended >= since for wait in history.waits)
    ]


def without(span: Span, others: Iterable[Span]) -> list[Span]:
    """What is left of `span` without the `others`."""
    left, at = [], span[0]
    for since, until in sorted(others):
        if since > at:
            left.append((at, min(since, span[1])))
        at = max(at, until)
        if at >= span[1]:
            break
    if at < span[1]:
        left.append((at, span[1]))
    return [(since, until) for since, until in left if until > since]


def untold(history: History, loss: Span, within: float) -> list[str]:
    """Who held when the store lost its data, at some time in `loss`, knows it `within` seconds."""
    return [
        f"{hold.client} believed for {hold.end - loss[1]:.2f} s that it held what the store had lost"
        for hold in history.holds
        if hold.start < loss[0] and hold.end > loss[1] + within
    ]


def leaks(history: History, keys: Sequence[str], most: int = 3) -> list[str]:
    """Nothing is left: no key in the store; in the clients no threads and descriptors but the few of a pool."""
    wrong = [f"the store has {key!r}" for key in keys]
    for rest in history.rests:
        for what in ("threads", "descriptors"):
            begun, ended = rest[what]
            if ended > begun + most:
                wrong.append(f"{rest['client']} began with {begun} {what} and ended with {ended}")
    return wrong
