"""The shell of the page on cron runs, and the tests of the page on pytest pass, in two workers at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import RedisServer

ROOT = Path(__file__).parents[2]
CRON = (ROOT / "docs" / "how-to" / "cron.md").read_text(encoding="utf-8")
PYTEST = (ROOT / "docs" / "how-to" / "pytest.md").read_text(encoding="utf-8")
OURS = "/opt/shop/bin"
JOBS = ("sync-feeds", "backup", "report")


def blocks(page: str, kind: str) -> list[str]:
    found = re.findall(rf"^```{kind}\n(.*?)^```$", page, re.S | re.M)
    assert found, f"no {kind} on the page"
    return found


@pytest.fixture
def surroundings(tmp_path: Path, redis_server: RedisServer) -> dict[str, str]:
    """The environment of somebody who has the jobs of the page, and `atomiclock` on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for job in JOBS:
        (folder / job).write_text(f'#!/bin/sh\necho "{job} $*" >> {tmp_path}/ran\n')
    (folder / "atomiclock").write_text(f'#!/bin/sh\nexec {sys.executable} -m atomiclock "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_STATE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "REDIS": redis_server.url,
        "BIN": str(folder),
    }


def sh(script: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-euc", script],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_crontabs_run_their_jobs(surroundings: dict[str, str], tmp_path: Path) -> None:
    """As cron does it: settings on lines of their own, and what follows five fields is for sh."""
    for crontab in blocks(CRON, "text"):
        environment = dict(surroundings)
        for line in crontab.splitlines():
            setting = re.fullmatch(r"(\w+)=(.*)", line)
            if setting:
                value = setting[2].replace("redis://localhost:6379/0", surroundings["REDIS"])
                environment[setting[1]] = value.replace(OURS, surroundings["BIN"])
                continue
            fields = line.split(None, 5)
            assert len(fields) == 6, line
            done = sh(fields[5], environment, tmp_path)
            assert done.returncode == 0, (line, done.stderr)
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ran == ["sync-feeds --all", "backup --all", "report --daily"]


def test_a_crontab_skips_a_job_that_still_runs(surroundings: dict[str, str], tmp_path: Path) -> None:
    command = blocks(CRON, "text")[0].splitlines()[1].split(None, 5)[5]
    inside = f"atomiclock run sync-feeds -- sh -c '{command}'"
    done = sh(inside, surroundings, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("script", blocks(CRON, "sh"))
def test_the_shell_of_the_page_runs(script: str, surroundings: dict[str, str], tmp_path: Path) -> None:
    done = sh(script, surroundings, tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout


def test_two_workers_make_the_database_once(tmp_path: Path) -> None:
    """As two workers of pytest-xdist would: each has a directory of its own in one of the run."""
    (tmp_path / "test_page.py").write_text("".join(blocks(PYTEST, "python")))
    run = tmp_path / "run"
    run.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    workers = [
        subprocess.Popen(
            [*command, "-o", "markers=alone(what): alone", f"--basetemp={run / name}", "test_page.py"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("gw0", "gw1")
    ]
    for worker in workers:
        said, _ = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
        assert "2 passed" in said
    assert (run / "made.txt").read_text() == "made\n"
