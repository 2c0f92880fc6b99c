"""Processes that contend for one lock, and what befalls them: stopped, killed and replaced, cut off."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colours import COLOURS
from history import Fault, History
from servers import wait_until
from wire import Kind, Wire

import atomiclock

HERE = Path(__file__).parent
SOURCE = Path(atomiclock.__file__).parents[1]


class Scene:
    """Clients of `url`, of both colours, and one of `apart` over the `wire`."""

    def __init__(
        self, folder: Path, url: str, seed: int = 0, wire: Wire | None = None, apart: int = 2, **orders: Any
    ) -> None:
        self.folder, self.url, self.wire, self.apart = folder, url, wire, apart
        self.rng = random.Random(seed)
        self.orders: dict[str, Any] = {
            "name": "x", "toy": None, "ttl": 1.0, "timeout": 20.0, "renew": 1.0, "stubborn": False,
            "works": [0.0, 0.01, 0.05], "rests": [0.0, 0.005], **orders,
        }  # fmt: skip
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.stops: list[Fault] = []
        self.cuts: list[Fault] = []
        self.wired: list[str] = []
        self.killed: dict[str, float] = {}
        self.go = folder / "go"  # the sign for all to begin
        self._number = 0

    def start(self, seconds: float) -> None:
        number, self._number = self._number, self._number + 1
        client = f"client{number}"
        url = self.url
        if self.wire is not None and number % self.apart == self.apart - 1:
            url = url.replace(str(self.wire.upstream), str(self.wire.port))
            self.wired.append(client)
        orders = {
            **self.orders, "url": url, "colour": COLOURS[number // 2 % 2], "seconds": seconds,
            "seed": self.rng.random(), "log": str(self.folder / f"{client}.log"), "go": str(self.go),
        }  # fmt: skip
        with (self.folder / f"{client}.errors").open("wb") as errors:
            self.running[client] = subprocess.Popen(
                [sys.executable, str(HERE / "client.py"), json.dumps(orders)],
                env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{HERE}"},
                stderr=errors,
            )

    def play(self, seconds: float, count: int = 4, faults: tuple[Callable[[Scene, float], None], ...] = ()) -> History:
        """Let them run for so long, and one fault after the other befall them. What came of it."""
        try:
            for _ in range(count):
                self.start(seconds)
            wait_until(self._are_ready, 60, "all have started, which takes a Python its time")
            self.go.touch()
            until = time.monotonic() + seconds
            time.sleep(min(0.8, seconds / 4))  # they connect
            while faults and (left := until - time.monotonic()) > 0.5:
                self.rng.choice(faults)(self, left)
                time.sleep(self.rng.uniform(0.02, 0.3))
            return self._end(max(0.0, until - time.monotonic()) + self.orders["timeout"] + 10)
        finally:
            for process in self.running.values():
                process.kill()
                process.wait()

    def one(self) -> str:
        """Whom a fault befalls: one that has started, if there is any."""
        return self.rng.choice([client for client in self.running if self._begun(client)] or list(self.running))

    def _are_ready(self) -> bool:
        return all(process.poll() is not None or self._begun(client) for client, process in self.running.items())

    def _begun(self, client: str) -> bool:
        log = self.folder / f"{client}.log"
        return log.exists() and log.stat().st_size > 0

    def _end(self, patience: float) -> History:
        until = time.monotonic() + patience
        for client, process in self.running.items():
            try:
                code = process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._kill(client)
            else:
                said = (self.folder / f"{client}.errors").read_text()
                assert code == 0, f"{client}: {said}"
                assert "Traceback" not in said, f"{client}: {said}"  # that a lease was lost is logged, and right
        return History.read(sorted(self.folder.glob("client*.log")), self.stops, self.killed, self.cuts)

    def _kill(self, client: str) -> None:
        self.running[client].kill()
        self.running[client].wait()
        self.killed[client] = time.monotonic()


def stopped(scene: Scene, left: float) -> None:
    """SIGSTOP for longer than the ttl."""
    client = scene.one()
    begun = time.monotonic()
    scene.running[client].send_signal(signal.SIGSTOP)
    time.sleep(min(left, scene.orders["ttl"] * 1.4))
    scene.running[client].send_signal(signal.SIGCONT)
    scene.stops.append((client, begun, time.monotonic()))


def killed(scene: Scene, left: float) -> None:
    """SIGKILL; another one takes its place."""
    client = scene.one()
    scene._kill(client)
    del scene.running[client]
    scene.start(left)


KINDS: tuple[Kind, ...] = (
    "delay", "drip", "request cut", "request late", "reply lost", "reply never", "black hole",
    "never answers", "refused",
)  # fmt: skip


def cut_off(scene: Scene, left: float) -> None:
    """A fault of the network for half of them."""
    assert scene.wire is not None
    begun = time.monotonic()
    scene.wire.strike(scene.rng.choice(KINDS))
    time.sleep(min(left, scene.rng.choice([0.1, 0.5, scene.orders["ttl"] * 1.2])))
    scene.wire.heal()
    scene.wire.deliver()
    scene.cuts += [(client, begun, time.monotonic()) for client in scene.wired]


def slow_replies(scene: Scene, left: float) -> None:
    """Replies to half of them are late."""
    assert scene.wire is not None
    scene.wire.strike("reply late")
    time.sleep(min(left, 3.0))
    scene.wire.heal()
