"""Processes of the command line: run to their end, started beside the test, or in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from servers import wait_until

SOURCES = str(Path(__file__).parents[2] / "src")
INTO_THE_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def is_running(pid: int) -> bool:
    """Whether it is there and not only unburied."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


class Program:
    """`atomiclock`, with an environment and a lock file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.words = [sys.executable, "-W", "error", "-m", "atomiclock"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ATOMICLOCK", "NO_COLOR"))}
        self.environment = {
            **kept,
            "PYTHONPATH": SOURCES,
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_STATE_HOME": str(folder),
            "TERM": "xterm",
        }
        self._started: list[subprocess.Popen[str]] = []
        self.groups: list[int] = []
        """Process groups that ought to end by themselves."""

    def __call__(self, *words: str, timeout: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        done = subprocess.run(
            [*self.words, *words],
            env={**self.environment, **environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Run it beside the test."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [*self.words, *words], env=self.environment, cwd=self.folder, text=True, start_new_session=True, **pipes
        )
        self._started.append(process)
        return process

    def terminal(self, *words: str) -> Terminal:
        """`words` in a terminal of its own, as the leader of its session."""
        made = Terminal([sys.executable, "-c", INTO_THE_TERMINAL, *words], self.environment, self.folder)
        self._started.append(made.process)
        return made

    def end(self) -> None:
        """Nothing that a test started goes on, whatever it left."""
        for group in self.groups:
            kill_group(group)
        for process in self._started:
            kill_group(process.pid)
            process.communicate(timeout=10)


class Terminal:
    """A pseudo-terminal, and what runs in it."""

    def __init__(self, words: list[str], environment: dict[str, str], folder: Path) -> None:
        self._master, slave = os.openpty()
        self.process: subprocess.Popen[str] = subprocess.Popen(
            words, env=environment, cwd=folder, stdin=slave, stdout=slave, stderr=slave, text=True
        )
        os.close(slave)
        fcntl.fcntl(self._master, fcntl.F_SETFL, os.O_NONBLOCK)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read(self) -> None:
        """What was written to it by now."""
        with contextlib.suppress(OSError):  # nothing, or hung up
            while select.select([self._master], [], [], 0.01)[0]:
                self.seen += os.read(self._master, 65536).decode("utf-8", "replace")

    def expect(self, pattern: str, seconds: float = 20) -> str:
        """Wait for output that matches. What comes before and in it is not looked at again."""
        end = time.monotonic() + seconds
        while (match := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            self.read()
        self.seen = self.seen[match.end() :]
        return match.group(0)

    def wait(self) -> int:
        """Its exit code, at the end."""
        wait_until(lambda: self.read() or self.process.poll() is not None, 20, "it ends")
        self.read()
        os.close(self._master)
        return int(self.process.returncode)
