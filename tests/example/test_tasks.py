"""The example's other tasks on a worker: all feeds as a chord; and the recipe beside ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "import_feed"
SOURCES = Path(__file__).resolve().parents[2] / "src"
CHORD = """
import os, sys
from pathlib import Path
from contextlib import closing
state = Path(sys.argv[1])
from demo import prepare
from feedserver import SERVED, FeedServer
prepare(state, None)
os.environ.pop("IMPORT_FEED_JOURNAL")
from celery.result import AsyncResult
from djangofeeds import tasks
from djangofeeds.models import Feed
from runner.queue import Queue
from runner.workers import workers
with FeedServer(pace=0.2) as server, closing(Queue()), workers(["worker-1"], state):
    for name in SERVED:
        Feed.objects.create(url=server.url(name))
    chord = tasks.import_all.delay().get(timeout=60)
    print(sorted(AsyncResult(chord).get(timeout=60).items()))
"""


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SOURCES), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words],
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "ATOMICLOCK_URL": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.timeout(240)
def test_all_feeds_are_a_chord_with_a_summary(tmp_path: Path) -> None:
    done = run("-W", "ignore", "-c", CHORD, str(tmp_path), folder=tmp_path)
    assert done.stdout.strip().endswith("[('failed', 2), ('imported', 5)]"), done.stdout + done.stderr[-3000:]


@pytest.mark.timeout(240)
def test_side_by_side_ours_never_doubles_never_loses_a_change_and_is_free_soon(tmp_path: Path) -> None:
    done = run("compare.py", "--state", str(tmp_path / "state"), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = {(r["scene"], r["contestant"]): r for r in json.loads((tmp_path / "state" / "compared.json").read_text())}
    assert not any(rows[scene, "atomiclock"]["doubled_seconds"] for scene in ("overrun", "kill", "storm"))
    assert rows["overrun", "recipe"]["doubled_seconds"] > 0, "the recipe's lock expires in the middle"
    assert rows["storm", "recipe"]["result"] == "the change is LOST"
    assert rows["storm", "atomiclock"]["imports"] == 2
