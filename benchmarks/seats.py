"""The parent's end of the worker processes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from contest import Contestant, Place

HERE = Path(__file__).parent


class Trouble(Exception):
    """A contestant could not do what it was asked."""


class Seat:
    """A worker process of a contestant."""

    def __init__(self, entry: Contestant, place: Place, board: Path, log: Path) -> None:
        command = [sys.executable, str(HERE / "worker.py"), entry.label, json.dumps(place), str(board)]
        pipe = subprocess.PIPE
        with log.open("ab") as errors:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors)
        self.entry = entry
        self._pending = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, task: str, **details: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, **details}).encode() + b"\n")
        self._process.stdin.flush()

    def reply(self, within: float) -> dict[str, Any]:
        """What it answers. Raises `Trouble` if it failed, ended, or says nothing for so many seconds."""
        assert self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + within
        while b"\n" not in self._pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise Trouble(f"no end within {within:.0f} s")
            data = os.read(pipe, 1 << 20)
            if not data:
                raise Trouble(f"the process ended with status {self._process.wait()}")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Trouble(answer["error"])
        return answer

    def do(self, task: str, within: float, **details: Any) -> dict[str, Any]:
        self.ask(task, **details)
        return self.reply(within)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


class Hall:
    """All worker processes of a run, started when first needed."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.board = folder / "board"
        self._log = folder / "workers.log"
        self._seats: dict[str, list[Seat]] = {}
        self._broken: dict[str, str] = {}

    def seats(self, entry: Contestant, count: int = 1) -> list[Seat]:
        """So many workers of a contestant, ready. Raises `Trouble` if it does not start, and again next time."""
        if entry.label in self._broken:
            raise Trouble(self._broken[entry.label])
        mine = self._seats.setdefault(entry.label, [])
        fresh = [Seat(entry, self.place, self.board, self._log) for _ in range(count - len(mine))]
        mine += fresh
        try:
            for seat in fresh:
                seat.reply(60)
        except Trouble as trouble:
            self.dismiss(entry)
            self._broken[entry.label] = str(trouble)
            raise
        return mine[:count]

    def alone(self, entry: Contestant, ttl: int | None = None) -> Seat:
        """One more worker, which the caller kills."""
        place = self.place if ttl is None else self.place._replace(ttl=ttl)
        seat = Seat(entry, place, self.board, self._log)
        seat.reply(60)
        return seat

    def dismiss(self, entry: Contestant) -> None:
        for seat in self._seats.pop(entry.label, []):
            seat.kill()

    def close(self) -> None:
        for seats in self._seats.values():
            for seat in seats:
                seat.kill()
        self._seats.clear()
