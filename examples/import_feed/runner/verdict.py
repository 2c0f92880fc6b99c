"""Whether the run shows what it should, from the marks and the database; each doubt is one plain sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from runner.analysis import overlaps
from runner.scene import Outcome


@dataclass(frozen=True)
class Expected:
    """What should be known of one feed afterwards; `guids` is None for one that cannot be imported."""

    url: str
    guids: frozenset[str] | None
    fails_at_first: bool = False


@dataclass(frozen=True)
class Stored:
    """What the database knows of one feed."""

    imports: int
    last_error: str
    guids: tuple[str, ...]


def doubts(outcome: Outcome, expected: Iterable[Expected], stored: Mapping[str, Stored]) -> list[str]:
    """Everything that is not as it should be; an empty list is a good run."""
    found = [*_locking(outcome), *_killing(outcome), *_tasks(outcome)]
    for feed in expected:
        row = stored.get(feed.url)
        if row is None:
            found.append(f"{feed.url} is not in the database")
        elif feed.guids is None:
            found += _unimportable(outcome, feed, row)
        else:
            found += _imported(outcome, feed, feed.guids, row)
    return found


def _locking(outcome: Outcome) -> Iterator[str]:
    if pairs := overlaps(outcome.found):
        worst = max(pairs, key=lambda pair: pair.end - pair.begin)
        yield (
            f"{len(pairs)} overlaps: two children imported one feed at the same time, for example {worst.first.pid} "
            f"and {worst.second.pid} {worst.feed} for {worst.end - worst.begin:.2f} s"
        )
    if not outcome.skipped:
        yield "no duplicate was skipped, so no call ever met a lock that was held: the run proves nothing"


def _killing(outcome: Outcome) -> Iterator[str]:
    kill = outcome.kill
    if kill is None:
        yield "no import was killed"
        return
    if not any(i.killed and i.task == kill.task for i in outcome.found):
        yield f"child {kill.pid} was killed, but its import had ended just before"
    if outcome.taken_over is None:
        yield f"nobody took over the killed import of {kill.feed}"
    if not any(i.imported and i.feed == kill.feed and i.begin > kill.sent for i in outcome.found):
        yield f"{kill.feed} was not imported after the child that imported it was killed"


def _tasks(outcome: Outcome) -> Iterator[str]:
    if outcome.unfinished:
        yield f"{len(outcome.unfinished)} of {len(outcome.published)} tasks never ended"
    unknown = [event for event in outcome.done.values() if event["error"] not in ("", "FeedError")]
    for error, number in Counter(event["error"] for event in unknown).items():
        why = next(event["why"] for event in unknown if event["error"] == error)
        yield f"{number} tasks failed with {error}, for example: {why}"
    ended = sum(i.imported or bool(i.error) for i in outcome.found)
    ran = sum(not event["skipped"] for event in outcome.done.values())
    if not unknown and ended != ran:
        yield f"{ran} tasks say that they imported or failed, but {ended} imports were recorded"


def _unimportable(outcome: Outcome, feed: Expected, row: Stored) -> Iterator[str]:
    if row.imports or not row.last_error or any(i.imported and i.feed == feed.url for i in outcome.found):
        yield f"{feed.url} cannot be read, but that was not recorded as an error"


def _imported(outcome: Outcome, feed: Expected, guids: frozenset[str], row: Stored) -> Iterator[str]:
    if row.last_error:
        yield f"the last import of {feed.url} failed: {row.last_error}"
    if not row.imports:
        yield f"{feed.url} was never imported"
    if set(row.guids) != guids:
        yield f"the entries of {feed.url} in the database are not those of the feed"
    if len(set(row.guids)) < len(row.guids):
        yield f"{feed.url} has entries that are in the database more than once"
    if feed.fails_at_first and not any("500" in i.error for i in outcome.found if i.feed == feed.url):
        yield f"{feed.url} should have answered 500 at first, but did not"
