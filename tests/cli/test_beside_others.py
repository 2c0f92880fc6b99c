"""flock(1), `etcdctl lock` and `atomiclock run` in the same trouble: the table in `docs/how-to/command-line.md`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from program import Program, is_running
from servers import EtcdServer, wait_until

TTL = 2
"""Seconds, where the program has one."""


class Runner:
    """One of the programs, which runs scripts under the same lock."""

    def __init__(self, program: Program, etcd: EtcdServer, which: str) -> None:
        self.which = which
        self._folder = program.folder
        self._environment = {**program.environment, "ETCDCTL_API": "3"}
        self._etcd = etcd
        self._words = {
            "flock": ["flock", str(program.folder / "lock")],
            "etcdctl": ["etcdctl", f"--endpoints=127.0.0.1:{etcd.port}", "lock", f"--ttl={TTL}", "x"],
            "atomiclock": [*program.words, "run", "x", "--url", etcd.url, "--ttl", str(TTL), "--"],
        }[which]
        self._started: list[subprocess.Popen[bytes]] = []
        self._commands: list[int] = []

    def start(self, script: str) -> subprocess.Popen[bytes]:
        path = self._folder / f"script{len(self._started)}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        process = subprocess.Popen(
            [*self._words, str(path)],
            env=self._environment,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._started.append(process)
        return process

    def start_long(self) -> tuple[subprocess.Popen[bytes], int]:
        """The program, and the pid of what it runs, which would go on for a minute."""
        note = self._folder / "pid"
        process = self.start(f"echo $$ > {note}.new; mv {note}.new {note}; exec sleep 60")
        wait_until(note.exists, 20, "it runs")
        self._commands.append(int(note.read_text()))
        return process, self._commands[-1]

    def another_gets_it(self) -> bool:
        try:
            return self.start("exit 0").wait(TTL + 8) == 0
        except subprocess.TimeoutExpired:
            return False

    def lose(self) -> None:
        """Take the lock away, as an outage does or a careless hand."""
        if self.which == "flock":
            (self._folder / "lock").unlink()
            return
        for lease in self._etcd.leases():
            self._etcd.ctl("lease", "revoke", lease)

    def end(self) -> None:
        for pid in filter(is_running, self._commands):
            os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.kill()
            process.wait(10)


@pytest.fixture(params=["flock", "etcdctl", "atomiclock"])
def runner(program: Program, etcd_server: EtcdServer, request: pytest.FixtureRequest) -> Iterator[Runner]:
    runner = Runner(program, etcd_server, request.param)
    yield runner
    runner.end()


def test_the_exit_code_is_that_of_the_command(runner: Runner) -> None:
    code = runner.start("exit 7").wait(20)
    assert code == {"flock": 7, "etcdctl": 1, "atomiclock": 7}[runner.which]


def test_when_the_lock_is_lost_the_command_is_ended(runner: Runner) -> None:
    process, command = runner.start_long()
    runner.lose()
    if runner.which == "atomiclock":
        assert process.wait(20) == 79
    assert runner.another_gets_it()
    assert is_running(command) == (runner.which != "atomiclock"), "two at once"


def test_when_the_program_is_killed_the_command_does_not_go_on_without_the_lock(runner: Runner) -> None:
    process, command = runner.start_long()
    process.kill()
    process.wait(10)
    assert (runner.another_gets_it(), is_running(command)) == {
        "flock": (False, True),  # the command has inherited the lock
        "etcdctl": (True, True),  # two at once
        "atomiclock": (True, False),
    }[runner.which]


def test_when_the_program_is_told_to_end_the_command_is_told_too(runner: Runner) -> None:
    process, command = runner.start_long()
    process.terminate()
    assert (runner.another_gets_it(), process.poll() is None, is_running(command)) == {
        "flock": (False, False, True),
        "etcdctl": (False, True, True),
        "atomiclock": (True, False, False),
    }[runner.which]
