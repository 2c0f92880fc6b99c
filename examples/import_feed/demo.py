"""Many calls for few feeds, two Celery workers, one SIGKILL: was any feed ever imported twice at once?

Starts everything it needs on 127.0.0.1, takes about 20 seconds, leaves nothing running, and exits with 0 only
if every check held. Needs the packages of requirements.txt and atomiclock.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from atomiclock import LockError, try_lock
from rich.console import Console

from feedserver import FEEDS, SERVED, FeedServer
from runner.journal import JournalReader

if TYPE_CHECKING:
    from runner.scene import Outcome

EXAMPLE = Path(__file__).resolve().parent
WORKERS = ["worker-1", "worker-2"]
VICTIM = "slow.xml"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="where the lock lives, for example redis://127.0.0.1:6379/0 (default: sqlite)")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="waves of calls (default: 8)")
    parser.add_argument("--copies", type=int, default=6, metavar="N", help="calls per feed and wave (default: 6)")
    parser.add_argument("--state", type=Path, default=EXAMPLE / "run", metavar="DIR", help="what it writes goes here")
    parser.add_argument("--without-lock", action="store_true", help="nothing protects the imports: the run has to fail")
    parser.add_argument("--picture", type=Path, metavar="SVG", help="also draw the timeline into this file")
    chosen = parser.parse_args()
    if chosen.rounds < 2 or chosen.copies < 2:
        parser.error("at least two rounds, for the feed that fails at first, and two copies, for the duplicates")
    chosen.state = chosen.state.resolve()
    return chosen


@contextmanager
def fresh(state: Path) -> Iterator[None]:
    """An empty directory that is ours until the block ends; only one that an earlier run made is emptied."""
    marker = state / ".import_feed"
    if state.exists() and any(state.iterdir()) and not marker.exists():
        sys.exit(f"{state} is not empty and no earlier run made it: choose another directory for --state")
    state.mkdir(parents=True, exist_ok=True)
    with marker.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another run uses {state}: choose another directory with --state")
        for old in state.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old != marker:
                old.unlink()
        yield


def prepare(state: Path, url: str | None) -> None:
    """What this process and, through the environment, the workers need to know; then the database."""
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "IMPORT_FEED_STATE": str(state),
        "IMPORT_FEED_JOURNAL": str(state / "journal.jsonl"),
        # A proxy of the surroundings has no business between 127.0.0.1 and itself.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    os.environ.pop("ATOMICLOCK_URL", None)
    if url:
        os.environ["ATOMICLOCK_URL"] = url
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)


def reach_store() -> None:
    """Take and give back a lock where the workers will, so that a wrong address is told at once and once."""
    from django.conf import settings

    try:
        with try_lock("import_feed: is anybody there", settings.CELERY_ATOMICLOCK_URL):
            pass
    except LockError as error:
        sys.exit(f"the lock's store cannot be used: {error}")


def perform(chosen: argparse.Namespace, server: FeedServer, console: Console) -> Outcome:
    """The run, between the start of the workers and their end."""
    from djangofeeds import tasks
    from runner.queue import Queue
    from runner.report import Live
    from runner.scene import Plan, Scene
    from runner.workers import CONCURRENCY, orderly_end, workers

    task = tasks.import_feed_without_lock if chosen.without_lock else tasks.import_feed
    feeds = [server.url(name) for name in SERVED]
    plan = Plan(task, feeds, server.url(VICTIM), chosen.rounds, chosen.copies)
    with (
        orderly_end() as stop,
        Live(console).running() as live,
        closing(Queue()) as queue,
        workers(WORKERS, chosen.state) as crew,
    ):
        live.say(f"starting {len(crew)} workers with {CONCURRENCY} children each")
        journal = JournalReader(chosen.state / "journal.jsonl")
        outcome = Scene(plan, queue, journal, crew, live.say, live.show, stop).play()
        live.say("all calls have ended, stopping the workers")
    return outcome


def judge(outcome: Outcome, server: FeedServer) -> list[str]:
    """What is wrong with the run, in plain words."""
    from djangofeeds.fetch import Document, parse
    from runner.stored import stored
    from runner.verdict import Expected, doubts

    expected = []
    for name, manners in SERVED.items():
        guids = None
        if manners.importable:
            _, items = parse(Document((FEEDS / name).read_bytes(), "", "", manners.content_type))
            guids = frozenset(item.guid for item in items)
        expected.append(Expected(server.url(name), guids, fails_at_first=manners.failures > 0))
    return doubts(outcome, expected, stored())


def report(
    outcome: Outcome, wrong: list[str], server: FeedServer, console: Console, chosen: argparse.Namespace
) -> None:
    """Table, timeline, verdict; and the numbers as JSON for other programs."""
    from runner.report import table, timeline

    mark = "✗" if "utf" in console.encoding else "X"
    kinds = {server.url(name): manners.kind for name, manners in SERVED.items()}
    console.print()
    console.print(table(outcome, kinds))
    console.print("\nWho imported what when", style="italic", highlight=False)
    for line in timeline(outcome, list(kinds), min(console.width, 120), mark):
        console.print(line)
    if chosen.picture:
        from runner.picture import draw

        chosen.picture.write_text(draw(outcome, list(kinds)), encoding="utf-8")
    after = outcome.takeover_seconds
    numbers = {
        "calls": len(outcome.published),
        "imports": sum(interval.imported for interval in outcome.found),
        "skipped": outcome.skipped,
        "overlaps": outcome.overlaps,
        "takeover_seconds": after,
        "seconds": outcome.ended - outcome.began,
        "wrong": wrong,
    }
    (chosen.state / "result.json").write_text(json.dumps(numbers, indent=2) + "\n")
    console.print()
    taken = f"the killed import was taken over after {after:.2f} s" if after is not None else "no takeover"
    console.print(
        f"{numbers['imports']} imports, {numbers['skipped']} duplicates skipped, "
        f"{numbers['overlaps']} overlaps; {taken}.",
        style="bold",
        highlight=False,
    )
    for sentence in wrong:
        console.print(f"FAILED: {sentence}", style="bold red", highlight=False, markup=False)


def how_to_look(console: Console, state: Path) -> None:
    """The commands that show the result in Django's admin, to be copied as they are."""
    manage = shlex.join([sys.executable, os.path.relpath(EXAMPLE / "manage.py")])
    lines = ["", "To see the feeds and entries in Django's admin:"]
    if state != EXAMPLE / "run":
        lines.append(f"  export IMPORT_FEED_STATE={shlex.quote(str(state))}")
    lines += [
        f"  {manage} createsuperuser --username admin --email admin@example.org",
        f"  {manage} runserver",
        f"and open http://127.0.0.1:8000/ (the logs of the workers are in {shlex.quote(os.path.relpath(state))})",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def main() -> int:
    """Run it; the exit code."""
    chosen = arguments()
    console = Console()
    with fresh(chosen.state), FeedServer() as server:
        prepare(chosen.state, chosen.url)
        reach_store()
        from runner.scene import DemoError, Interrupted

        try:
            outcome = perform(chosen, server, console)
        except DemoError as error:
            console.print(f"FAILED: {error}", style="bold red", highlight=False, markup=False)
            return 130 if isinstance(error, Interrupted) else 1
        wrong = judge(outcome, server)
        report(outcome, wrong, server, console, chosen)
        how_to_look(console, chosen.state)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # before there were workers
