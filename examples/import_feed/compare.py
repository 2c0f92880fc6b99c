"""The Celery Cookbook's recipe and atomiclock side by side: what does each do with a slow feed, a kill, a storm?

Starts everything it needs on 127.0.0.1, takes about a minute and a half, leaves nothing running. What it prints was
computed from the marks of the imports and from the database; no lock was asked. The exit code is 0 if atomiclock
never imported a feed twice at once, lost no change, and was locked out for less than its ttl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from demo import EXAMPLE, WORKERS, fresh, prepare, reach_store
from feedserver import FEEDS, FeedServer
from runner.journal import JournalReader

if TYPE_CHECKING:
    from runner.queue import Queue

PACE = 2.0
"""The slow feed takes seven seconds at this pace."""
LOCK_EXPIRE = 4.0
"""Seconds of the recipe's lock, less than the slow feed takes: the recipe has 600, and a feed may take 1000."""
FEED = "slow.xml"
NEW = b"<item><title>Published in between</title><guid>published-in-between</guid></item></channel>"
PINGS = 20
SETTLE = 3 * 10.0
"""Seconds at most that a scene goes on after its last call."""


@dataclass
class Row:
    """What one contestant did in one scene."""

    scene: str
    contestant: str
    calls: int
    imports: int
    doubled_seconds: float
    result: str
    good: bool


class Stage:
    """The workers, and what their tasks have recorded."""

    def __init__(self, queue: Queue, journal: JournalReader, server: FeedServer) -> None:
        self.queue = queue
        self.journal = journal
        self.server = server
        self.dead: dict[int, float] = {}
        self.published: dict[str, set[str]] = {}

    def address(self, contestant: str, scene: str) -> str:
        """One feed for each contestant and scene, so that all can run at once."""
        return f"{self.server.url(FEED)}?{contestant}-{scene}"

    def call(self, task: Any, feed: str, times: int = 1) -> None:
        self.published.setdefault(feed, set()).update(self.queue.publish(task, [feed] * times))

    def intervals(self, feed: str) -> list[Any]:
        from runner.analysis import intervals

        self.journal.read()
        return [each for each in intervals(self.journal.events, self.dead) if each.feed == feed]

    def wait(self, condition: Any, seconds: float) -> bool:
        """Whether it came true in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def ready(self) -> bool:
        """Whether all workers take tasks."""
        self.journal.read()
        return sum(event["event"] == "ready" for event in self.journal.events) >= len(WORKERS)

    def ended(self, feed: str) -> bool:
        """Whether every call for the feed has an end; one that was put back ends when it comes again."""
        self.journal.read()
        done = {e["task"] for e in self.journal.events if e["event"] == "done" and e["state"] != "IGNORED"}
        killed = {each.task for each in self.intervals(feed) if each.killed}
        return self.published[feed] <= done | killed

    def row(self, scene: str, contestant: str, feed: str, result: str, good: bool) -> Row:
        from runner.analysis import overlaps

        found = self.intervals(feed)
        doubled = sum(pair.end - pair.begin for pair in overlaps(found))
        imports = sum(each.imported for each in found)
        return Row(
            scene, contestant, len(self.published[feed]), imports, round(doubled, 1), result, good and not doubled
        )


def overrun(stage: Stage, tasks: dict[str, Any]) -> list[Row]:
    """A feed that takes longer than the recipe's lock, called every two seconds."""
    feeds = {name: stage.address(name, "overrun") for name in tasks}
    for _ in range(4):
        for name, task in tasks.items():
            stage.call(task, feeds[name])
        time.sleep(2)
    for feed in feeds.values():
        stage.wait(lambda feed=feed: stage.ended(feed), SETTLE)
    rows = []
    for name, feed in feeds.items():
        found = stage.intervals(feed)
        most = max(sum(a.begin <= b.begin < a.end for a in found) for b in found)
        rows.append(stage.row("overrun", name, feed, f"{most} at once", True))
    return rows


def kill(stage: Stage, tasks: dict[str, Any]) -> list[Row]:
    """SIGKILL to the child in the middle of its import, then a call every quarter of a second."""
    from runner.workers import kill_and_see_dead

    feeds = {name: stage.address(name, "kill") for name in tasks}
    for name, task in tasks.items():
        stage.call(task, feeds[name])
    sent: dict[str, float] = {}
    for name, feed in feeds.items():
        stage.wait(lambda feed=feed: stage.intervals(feed), SETTLE)
        victim = stage.intervals(feed)[0]
        sent[name], dead = kill_and_see_dead(victim.pid)
        stage.dead[victim.pid] = dead
    free: dict[str, float] = {}
    end = time.monotonic() + SETTLE
    while len(free) < len(feeds) and time.monotonic() < end:
        for name, feed in feeds.items():
            later = [each.begin for each in stage.intervals(feed) if each.begin > sent[name]]
            if later:
                free.setdefault(name, later[0] - sent[name])
            elif name not in free:
                stage.call(tasks[name], feed)
        time.sleep(0.25)
    for feed in feeds.values():
        stage.wait(lambda feed=feed: stage.ended(feed), SETTLE)
    return [
        stage.row("kill", name, feed, f"locked out for {free.get(name, SETTLE):.1f} s", free.get(name, SETTLE) < 5)
        for name, feed in feeds.items()
    ]


def storm(stage: Stage, tasks: dict[str, Any]) -> list[Row]:
    """The feed changes while it is being imported, and whoever changed it pings for it twenty times."""
    from djangofeeds.models import Entry

    stage.server.bodies.pop(FEED, None)
    feeds = {name: stage.address(name, "storm") for name in tasks}
    for name, task in tasks.items():
        stage.call(task, feeds[name])
    for feed in feeds.values():
        stage.wait(lambda feed=feed: stage.intervals(feed), SETTLE)
    time.sleep(PACE)  # by now both have asked for it
    stage.server.bodies[FEED] = (FEEDS / FEED).read_bytes().replace(b"</channel>", NEW)
    for name, task in tasks.items():
        stage.call(task, feeds[name], PINGS)
    for feed in feeds.values():
        stage.wait(lambda feed=feed: stage.ended(feed), 2 * SETTLE)
    rows = []
    for name, feed in feeds.items():
        seen = Entry.objects.filter(feed__url=feed, guid="published-in-between").exists()
        rows.append(stage.row("storm", name, feed, "the change is in" if seen else "the change is LOST", seen))
    return rows


def show(rows: list[Row], console: Console) -> None:
    table = Table(title=f"A feed of {3.4 * PACE:.0f} s; the recipe's LOCK_EXPIRE is {LOCK_EXPIRE:g} s, our ttl 5 s")
    for heading in ("scene", "by", "calls", "imports", "seconds doubled", "what came of it"):
        table.add_column(heading)
    for row in rows:
        style = None if row.good else "red"
        doubled = f"{row.doubled_seconds:.1f}"
        table.add_row(row.scene, row.contestant, str(row.calls), str(row.imports), doubled, row.result, style=style)
    console.print(table)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="where our lock lives, for example redis://127.0.0.1:6379/0 (default: sqlite)")
    parser.add_argument(
        "--memcached", metavar="HOST:PORT", help="where the recipe's lives (default: Django's database)"
    )
    parser.add_argument("--state", type=Path, default=EXAMPLE / "run", metavar="DIR", help="what it writes goes here")
    chosen = parser.parse_args()
    state = chosen.state.resolve()
    console = Console()
    os.environ |= {"RECIPE_LOCK_EXPIRE": str(LOCK_EXPIRE), "IMPORT_FEED_MEMCACHED": chosen.memcached or ""}
    with fresh(state), FeedServer(pace=PACE) as server:
        prepare(state, chosen.url)
        reach_store()
        from django.core.management import call_command

        from djangofeeds import tasks
        from runner.queue import Queue
        from runner.workers import workers

        call_command("createcachetable", verbosity=0)
        recipe = tasks.import_feed_by_the_recipe
        with closing(Queue()) as queue, workers(WORKERS, state):
            journal = JournalReader(state / "journal.jsonl")
            stage = Stage(queue, journal, server)
            stage.wait(stage.ready, 60)
            rows = overrun(stage, {"recipe": recipe, "atomiclock": tasks.import_feed})
            rows += kill(stage, {"recipe": recipe, "atomiclock": tasks.import_feed})
            rows += storm(stage, {"recipe": recipe, "atomiclock": tasks.import_changed_feed})
    show(rows, console)
    (state / "compared.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.good for row in rows if row.contestant == "atomiclock") else 1


if __name__ == "__main__":
    sys.exit(main())
