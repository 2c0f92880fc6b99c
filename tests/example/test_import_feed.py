"""The example `examples/import_feed`: its arithmetic, its imports, and the whole of it with real workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.text import Text
from runner.analysis import Interval, Kill, intervals, overlaps, takeover
from runner.journal import JournalReader
from runner.picture import RED, draw
from runner.report import timeline
from runner.scene import Outcome
from runner.verdict import Expected, Stored, doubts

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLE = ROOT / "examples" / "import_feed"
FEED, OTHER = "http://127.0.0.1:1/a.xml", "http://127.0.0.1:1/b.xml"


def mark(event: str, moment: float, task: str, *, feed: str = FEED, pid: int = 1, error: str = "") -> dict[str, Any]:
    facts = {"event": event, "time": moment, "task": task, "feed": feed, "pid": pid, "worker": "worker-1@localhost"}
    return facts | ({"error": error} if event == "end" else {})


def imports(*spans: tuple[str, int, float, float]) -> list[Interval]:
    """Intervals from (feed, pid, begin, end), made the way the demo makes them: out of marks."""
    marks = []
    for number, (feed, pid, begin, end) in enumerate(spans):
        marks += [
            mark("begin", begin, str(number), feed=feed, pid=pid),
            mark("end", end, str(number), feed=feed, pid=pid),
        ]
    return intervals(sorted(marks, key=lambda m: m["time"]), {})


class TestOverlaps:
    def test_a_planted_overlap_is_found_with_its_length(self) -> None:
        clean = [(FEED, 1, 0.0, 1.0), (FEED, 2, 1.5, 2.5), (OTHER, 3, 0.0, 5.0)]
        assert overlaps(imports(*clean)) == []
        (found,) = overlaps(imports(*clean, (FEED, 4, 2.4, 3.0)))
        assert (found.feed, found.first.pid, found.second.pid) == (FEED, 2, 4)
        assert (found.begin, found.end) == (2.4, 2.5)

    def test_imports_that_only_touch_do_not_overlap(self) -> None:
        assert overlaps(imports((FEED, 1, 0.0, 1.0), (FEED, 2, 1.0, 2.0))) == []

    def test_different_feeds_never_overlap(self) -> None:
        assert overlaps(imports((FEED, 1, 0.0, 9.0), (OTHER, 2, 1.0, 2.0))) == []

    def test_each_pair_of_three_at_once_counts(self) -> None:
        assert len(overlaps(imports((FEED, 1, 0.0, 9.0), (FEED, 2, 1.0, 8.0), (FEED, 3, 2.0, 3.0)))) == 3

    def test_an_import_that_contains_others_overlaps_each_of_them(self) -> None:
        assert len(overlaps(imports((FEED, 1, 0.0, 9.0), (FEED, 2, 1.0, 2.0), (FEED, 3, 3.0, 4.0)))) == 2

    def test_an_import_without_an_end_lasts_for_ever_if_its_process_lives(self) -> None:
        found = intervals([mark("begin", 1.0, "x"), mark("begin", 50.0, "y", pid=2), mark("end", 51.0, "y", pid=2)], {})
        assert found[0].end == inf
        assert not found[0].imported
        assert len(overlaps(found)) == 1

    def test_a_killed_import_ends_when_its_process_was_seen_dead(self) -> None:
        marks = [mark("begin", 1.0, "x"), mark("begin", 2.0, "y", pid=2), mark("end", 3.0, "y", pid=2)]
        before, after = intervals(marks, {1: 1.9}), intervals(marks, {1: 2.1})
        assert before[0].killed
        assert overlaps(before) == []
        assert len(overlaps(after)) == 1

    def test_a_death_before_the_begin_is_another_process_of_that_pid(self) -> None:
        (found,) = intervals([mark("begin", 5.0, "x")], {1: 4.0})
        assert (found.end, found.killed) == (inf, False)

    def test_one_task_delivered_to_two_processes_is_two_imports(self) -> None:
        marks = [
            mark("begin", 1.0, "x"),
            mark("begin", 1.5, "x", pid=2),
            mark("end", 2.0, "x"),
            mark("end", 2.5, "x", pid=2),
        ]
        assert len(overlaps(intervals(marks, {}))) == 1


class TestTakeover:
    KILL = Kill(FEED, pid=1, task="0", sent=2.0, dead=2.1)

    def test_it_is_the_next_begin_of_that_feed_after_the_kill(self) -> None:
        found = imports((FEED, 1, 1.0, 2.1), (OTHER, 2, 2.2, 3.0), (FEED, 3, 4.5, 5.0), (FEED, 2, 3.5, 4.0))
        heir = takeover(found, self.KILL)
        assert heir is not None
        assert (heir.pid, heir.begin - self.KILL.sent) == (2, 1.5)

    def test_nobody_is_not_somebody(self) -> None:
        assert takeover(imports((FEED, 1, 1.0, 2.1), (OTHER, 2, 2.2, 3.0)), self.KILL) is None


def good_run() -> Outcome:
    """A run that raises no doubt: one import killed, one after it, one duplicate skipped."""
    marks = [mark("begin", 1.0, "killed"), mark("begin", 3.0, "heir", pid=2), mark("end", 4.0, "heir", pid=2)]
    done = {"heir": {"skipped": False, "error": ""}, "skip": {"skipped": True, "error": ""}}
    return Outcome(
        published=dict.fromkeys(["killed", "heir", "skip"], FEED),
        done={task: {"event": "done", "task": task, "feed": FEED, **facts} for task, facts in done.items()},
        found=intervals(marks, {1: 2.1}),
        kill=Kill(FEED, pid=1, task="killed", sent=2.0, dead=2.1),
        began=0.0,
        ended=5.0,
    )


EXPECTED = [Expected(FEED, frozenset({"g1", "g2"}))]
STORED = {FEED: Stored(imports=1, last_error="", guids=("g1", "g2"))}


class TestVerdict:
    def test_a_good_run_raises_no_doubt(self) -> None:
        assert doubts(good_run(), EXPECTED, STORED) == []

    def test_a_planted_overlap_fails_the_run(self) -> None:
        run = good_run()
        run.found.append(Interval(FEED, "worker-2@localhost", 7, "planted", 3.9, 4.5))
        assert any("1 overlaps" in doubt for doubt in doubts(run, EXPECTED, STORED))

    def test_a_run_without_contention_proves_nothing(self) -> None:
        run = good_run()
        del run.done["skip"], run.published["skip"]
        (doubt,) = doubts(run, EXPECTED, STORED)
        assert "no duplicate was skipped" in doubt

    def test_a_task_that_vanished_is_missed(self) -> None:
        run = good_run()
        run.published["lost"] = FEED
        assert doubts(run, EXPECTED, STORED) == ["1 of 4 tasks never ended"]

    def test_an_unforeseen_error_is_named(self) -> None:
        run = good_run()
        run.done["skip"] |= {"skipped": False, "error": "OperationalError", "why": "locked"}
        assert any("OperationalError, for example: locked" in doubt for doubt in doubts(run, EXPECTED, STORED))

    def test_a_kill_that_nobody_took_over_fails_the_run(self) -> None:
        run = good_run()
        run.found = run.found[:1]
        assert any("nobody took over" in doubt for doubt in doubts(run, EXPECTED, STORED))

    def test_a_kill_that_came_too_late_is_told(self) -> None:
        run = good_run()
        run.found[0] = replace(run.found[0], killed=False, end=1.9)
        assert any("had ended just before" in doubt for doubt in doubts(run, EXPECTED, STORED))

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            (Stored(0, "", ("g1", "g2")), "never imported"),
            (Stored(1, "", ("g1",)), "not those of the feed"),
            (Stored(1, "", ("g1", "g2", "g2")), "more than once"),
            (Stored(1, "the server answered 500", ("g1", "g2")), "the last import"),
        ],
    )
    def test_the_database_has_to_agree(self, row: Stored, words: str) -> None:
        (doubt,) = doubts(good_run(), EXPECTED, {FEED: row})
        assert words in doubt

    def test_a_feed_that_the_database_does_not_know_is_told(self) -> None:
        assert doubts(good_run(), EXPECTED, {}) == [f"{FEED} is not in the database"]

    def test_a_broken_feed_has_to_leave_an_error(self) -> None:
        expected = [*EXPECTED, Expected(OTHER, None)]
        assert doubts(good_run(), expected, STORED | {OTHER: Stored(0, "not well-formed", ())}) == []
        assert doubts(good_run(), expected, STORED | {OTHER: Stored(0, "", ())}) != []

    def test_a_feed_that_fails_at_first_has_to_fail_at_first(self) -> None:
        (doubt,) = doubts(good_run(), [replace(EXPECTED[0], fails_at_first=True)], STORED)
        assert "answered 500" in doubt


class TestTimeline:
    def lines(self, run: Outcome, width: int = 80) -> list[str]:
        drawn = list(timeline(run, [FEED], width, "X"))
        assert all(isinstance(line, Text) for line in drawn)
        return [line.plain for line in drawn]

    def test_it_shows_who_held_what_the_kill_and_fits_the_width(self) -> None:
        for width in (40, 80, 120):
            axis, row, *legend = self.lines(good_run(), width)
            assert "|0 s" in axis
            assert row.startswith("a.xml ")
            assert "AX" in row
            assert "BB" in row
            assert "!" not in row
            assert all(len(line) <= width for line in (axis, row))
            assert any("A=1 B=2" in line for line in legend)

    def test_the_picture_has_a_bar_for_each_import_and_red_ones_for_overlaps(self) -> None:
        run = good_run()
        bars = len([interval for interval in run.found if interval.feed == FEED])
        fine = self.rects(run)
        assert fine.count("bar") == bars
        assert "overlap" not in fine
        run.found.append(Interval(FEED, "worker-2@localhost", 7, "planted", 3.5, 4.5))
        assert "overlap" in self.rects(run)
        assert self.rects(run).count("bar") == bars + 1

    def rects(self, run: Outcome) -> list[str]:
        """What each rectangle of the picture is, but for the ground and the legend."""
        drawn = ElementTree.fromstring(draw(run, [FEED])).iter("{http://www.w3.org/2000/svg}rect")
        kinds = [("overlap" if one.get("fill") == RED else "bar") for one in drawn if one.get("rx") != "2"]
        return kinds[1:]

    def test_an_overlap_leaps_to_the_eye(self) -> None:
        run = good_run()
        run.found.append(Interval(FEED, "worker-2@localhost", 7, "planted", 3.5, 4.5))
        _, row, *_ = self.lines(run)
        assert "!!" in row


def test_the_journal_is_read_line_by_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    reader = JournalReader(path)
    assert reader.read() == []
    path.write_text('{"event": "a"}\n{"eve')
    assert reader.read() == [{"event": "a"}]
    with path.open("a") as journal:
        journal.write('nt": "b"}\n')
    assert reader.read() == [{"event": "b"}]
    assert [event["event"] for event in reader.events] == ["a", "b"]


def with_package() -> dict[str, str]:
    """The environment in which a script finds the package of this checkout, installed or not."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What three passes over all feeds left, see import_twice.py."""
    environment = with_package() | {"IMPORT_FEED_STATE": str(tmp_path_factory.mktemp("import_twice"))}
    environment.pop("IMPORT_FEED_JOURNAL", None)
    script = [sys.executable, str(HERE / "import_twice.py")]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


@pytest.mark.parametrize(
    ("name", "title", "entries"),
    [
        ("rss091.xml", "Harbour Notices", 4),
        ("rss10.rdf", "New at the Town Library", 3),
        ("rss20.xml", "Slow Trains, Good Views", 5),
        ("atom.xml", "Notes from a Small Observatory", 3),
        ("slow.xml", "Archive of the Snail Post Museum", 6),
        ("flaky.xml", "Status of the Village Server", 2),
    ],
)
def test_every_feed_is_read_and_importing_it_again_changes_no_row(
    imported: dict[str, Any], name: str, title: str, entries: int
) -> None:
    passes = [[row for row in each["rows"] if row[1].endswith("/" + name)] for each in imported["passes"]]
    done = [rows for rows in passes if rows]
    assert len(done) >= 2
    assert all(rows == done[0] for rows in done)
    assert len({row[2] for row in done[0]}) == len(done[0]) == entries
    assert all(row[3] and ".example." in row[4] for row in done[0])
    last = imported["passes"][-1]["feeds"][name]
    assert (last["title"], last["last_error"], last["imports"]) == (title, "", len(done))


def test_dates_are_in_utc_and_old_formats_go_without(imported: dict[str, Any]) -> None:
    dates = {row[2]: row[5] for row in imported["passes"][-1]["rows"]}
    assert dates["http://library.example.org/new/4471"] == "2026-03-06 07:30:00+00:00"
    assert dates["https://trains.example.com/2026/02/the-0612"] == "2026-02-21 06:00:00+00:00"
    assert dates["urn:uuid:5b0c7e0e-9f35-4a0c-8d21-3a51d0b8a102"] == "2026-02-27 17:03:30+00:00"
    assert dates["http://harbour.example.org/notices/118.html"] == "None"


def test_an_unchanged_feed_is_asked_for_with_its_validators(imported: dict[str, Any]) -> None:
    answers = [status for name, status in imported["statuses"] if name == "atom.xml"]
    assert answers == [200, 304, 304]


def test_broken_xml_is_an_error_each_time_and_stores_no_entry(imported: dict[str, Any]) -> None:
    for each in imported["passes"]:
        assert each["raised"]["broken.xml"].startswith("no well-formed XML: ")
        assert each["feeds"]["broken.xml"] == {"title": "", "imports": 0, "last_error": each["raised"]["broken.xml"]}
        assert not [row for row in each["rows"] if row[1].endswith("/broken.xml")]


def test_a_server_error_is_kept_until_the_next_success_clears_it(imported: dict[str, Any]) -> None:
    errors = [each["feeds"]["flaky.xml"]["last_error"] for each in imported["passes"]]
    assert errors == ["the server answered 500 Internal Server Error", "", ""]


def left_running(state: Path) -> list[int]:
    """Processes that were started for this state directory: the workers carry it in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:  # it ended while we looked, or is not ours
            continue
        if f"IMPORT_FEED_STATE={state}".encode() in environment.split(b"\0"):
            found.append(int(process.name))
    return found


@contextmanager
def demo(state: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demo as a process of its own; asked to stop, and so to stop its workers, if the test ends before it."""
    command = [sys.executable, str(EXAMPLE / "demo.py"), "--state", str(state), *arguments]
    process = subprocess.Popen(
        command, env=with_package(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def run(state: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """The demo's exit code, output and numbers."""
    with demo(state, *arguments) as process:
        output, _ = process.communicate(timeout=90)
    result = state / "result.json"
    assert result.exists(), output
    return process.returncode, output, json.loads(result.read_text())


def test_the_demo_imports_every_feed_with_no_overlap_and_takes_over_from_a_killed_child(tmp_path: Path) -> None:
    code, output, numbers = run(tmp_path, "--rounds", "4")
    assert code == 0, output
    assert numbers["wrong"] == []
    assert numbers["overlaps"] == 0
    assert numbers["imports"] >= 7
    assert numbers["skipped"] >= 50
    assert 0 < numbers["takeover_seconds"] < 3, "on sqlite a dead holder is noticed at once"
    assert "0 overlaps" in output
    assert "createsuperuser" in output
    assert "\x1b" not in output, "no terminal codes in a pipe"
    assert "\r" not in output
    assert left_running(tmp_path) == []

    events = JournalReader(tmp_path / "journal.jsonl").read()
    assert len({event["worker"] for event in events if event["event"] == "begin"}) == 2, "both workers imported"
    # The same marks, with one end a little later, must not pass: the check reads them and can fail.
    begins = [event for event in events if event["event"] == "begin" and event["feed"].endswith("/atom.xml")]
    for event in events:
        if event["event"] == "end" and event["task"] == begins[0]["task"]:
            event["time"] = begins[1]["time"] + 0.01
    assert len(overlaps(intervals(events, {}))) >= 1


@pytest.fixture
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of its own, on a free port of the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", str(port)]
    folder = tmp_path_factory.mktemp("redis")
    with subprocess.Popen(["redis-server", *options], cwd=folder, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()


def test_on_redis_the_killed_import_is_taken_over_long_before_its_ttl_is_over(tmp_path: Path, redis_url: str) -> None:
    code, output, numbers = run(tmp_path, "--rounds", "3", "--url", redis_url)
    assert code == 0, output
    assert numbers["overlaps"] == 0
    assert numbers["takeover_seconds"] < 3, "the ttl is 5 s, but the worker's main process frees it"
    assert left_running(tmp_path) == []


def test_the_same_run_without_the_lock_fails_because_of_overlaps(tmp_path: Path) -> None:
    code, output, numbers = run(tmp_path, "--rounds", "2", "--copies", "4", "--without-lock")
    assert code == 1, output
    assert numbers["overlaps"] > 0
    assert "FAILED" in output
    assert "at the same time" in output
    assert left_running(tmp_path) == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, ending: signal.Signals) -> None:
    with demo(tmp_path) as process:
        deadline = time.monotonic() + 30
        journal = JournalReader(tmp_path / "journal.jsonl")
        while not any(event["event"] == "begin" for event in journal.events):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
            journal.read()
        assert len(left_running(tmp_path)) > 2
        process.send_signal(ending)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    assert left_running(tmp_path) == []


def test_a_directory_that_is_not_its_own_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with demo(tmp_path) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "choose another directory" in output
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_a_store_that_cannot_be_used_is_told_before_anything_starts(tmp_path: Path) -> None:
    with demo(tmp_path, "--url", "carrierpigeon://roof") as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the lock's store cannot be used" in output
    assert "Traceback" not in output
