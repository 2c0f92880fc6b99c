"""Who imported what when, and whether two did at once: arithmetic over recorded marks, without the lock's opinion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import inf

from runner.journal import Event


@dataclass(frozen=True)
class Interval:
    """One import, from the first thing it did inside the lock to the last; `end` is infinite if none is known."""

    feed: str
    worker: str
    pid: int
    task: str
    begin: float
    end: float
    error: str = ""
    killed: bool = False

    @property
    def imported(self) -> bool:
        """Whether it reached its end, and without an error."""
        return not self.killed and not self.error and self.end < inf


@dataclass(frozen=True)
class Overlap:
    """Two imports of one feed at once, from `begin` to `end`."""

    feed: str
    first: Interval
    second: Interval

    @property
    def begin(self) -> float:
        """When the second began."""
        return max(self.first.begin, self.second.begin)

    @property
    def end(self) -> float:
        """When the first of the two ended."""
        return min(self.first.end, self.second.end)


@dataclass(frozen=True)
class Kill:
    """The SIGKILL: which import it hit, when it was sent, when the child did nothing any more."""

    feed: str
    pid: int
    task: str
    sent: float
    dead: float


def intervals(events: Iterable[Event], deaths: Mapping[int, float]) -> list[Interval]:
    """The imports in `events`, by begin; one without an end ends with its process, and if that lives, never."""
    found: list[Interval] = []
    marks = [event for event in events if event["event"] in ("begin", "end")]
    ends = {(mark["task"], mark["pid"]): mark for mark in marks if mark["event"] == "end"}
    for mark in (mark for mark in marks if mark["event"] == "begin"):
        who = mark["feed"], mark["worker"], mark["pid"], mark["task"], mark["time"]
        if end := ends.get((mark["task"], mark["pid"])):
            found.append(Interval(*who, end["time"], end["error"]))
            continue
        death = deaths.get(mark["pid"], -inf)
        killed = death >= mark["time"]
        found.append(Interval(*who, death if killed else inf, killed=killed))
    return sorted(found, key=lambda interval: interval.begin)


def overlaps(found: Iterable[Interval]) -> list[Overlap]:
    """Every pair of imports of the same feed that shared a moment, by when they did."""
    by_feed: dict[str, list[Interval]] = {}
    for interval in found:
        by_feed.setdefault(interval.feed, []).append(interval)
    pairs = (Overlap(feed, *pair) for feed, group in by_feed.items() for pair in combinations(group, 2))
    return sorted((pair for pair in pairs if pair.begin < pair.end), key=lambda pair: pair.begin)


def takeover(found: Iterable[Interval], kill: Kill) -> Interval | None:
    """The first import of the killed import's feed that began after the kill."""
    later = [interval for interval in found if interval.feed == kill.feed and interval.begin > kill.sent]
    return min(later, key=lambda interval: interval.begin, default=None)
