"""Real workers, each a process of its own, in groups of tests that share one; killed by their own pids."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import RedisServer, wait_until

sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop("BROKER", None)

import lockproj

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"
SOON_AGAIN = {"visibility_timeout": 4, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
"""Redis delivers again after 4 s. Also what only stands in a busy worker's memory: for tests that want just that."""
FIRST_WORDS = 40.0


class Worker:
    """One `celery worker`, its log, and what its tasks have written."""

    def __init__(
        self, folder: Path, env: dict[str, str], *options: str, pool: str = "prefork", children: int = 4
    ) -> None:
        self.journal = Path(env["JOURNAL"])
        self.name = f"w{uuid.uuid4().hex[:6]}@localhost"
        self.log = folder / f"{self.name}.log"
        self.env = env
        words = [sys.executable, "-m", "celery", "-A", "lockproj", "worker", "-n", self.name, "-P", pool]
        words += [
            f"-c{children}",
            "-l",
            "INFO",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            *options,
        ]
        path = os.pathsep.join([str(SOURCES), str(HERE), os.environ.get("PYTHONPATH", "")])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env={**os.environ, **env, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> Worker:
        wait_until(lambda: self.said(" ready.") or self.process.poll() is not None, FIRST_WORDS, "the worker is ready")
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
        return self

    def said(self, words: str) -> bool:
        return words in self.log.read_text(errors="replace")

    @property
    def children(self) -> list[int]:
        """The pids of its children, from the kernel."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def events(self, key: str, *kinds: str) -> list[dict[str, Any]]:
        """What the tasks of one key have written, oldest first."""
        if not self.journal.exists():
            return []
        whole, _, _ = self.journal.read_text().rpartition("\n")  # somebody may be in the middle of a line
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["key"] == key and (not kinds or line["event"] in kinds)]

    def await_event(self, key: str, kind: str, count: int = 1, seconds: float = 20.0) -> dict[str, Any]:
        """The event that makes it `count` of a kind."""
        wait_until(lambda: len(self.events(key, kind)) >= count, seconds, f"{count} x {kind} of {key}")
        return self.events(key, kind)[count - 1]

    def kill(self) -> None:
        """SIGKILL to it and to its children, which are all in its session's group."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def stop(self) -> None:
        """The warm shutdown, and if that takes too long, the other."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(8)
        self.kill()


def most_at_once(events: list[dict[str, Any]]) -> int:
    """How many bodies ran at the same time, by their own marks."""
    running = most = 0
    for event in sorted(events, key=lambda event: event["at"]):
        running += {"begin": 1, "end": -1}.get(event["event"], 0)
        most = max(most, running)
    return most


class Shop:
    """A broker, a store of locks, and an application to send tasks with."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = {"JOURNAL": str(folder / "journal.jsonl"), **env}
        self.app = lockproj.make_app(self.env)
        self.tasks = lockproj.define(self.app)
        self.started: list[Worker] = []

    def worker(self, *options: str, **more: Any) -> Worker:
        env = {**self.env, **more.pop("env", {})}
        worker = Worker(self.folder, env, *options, **more)
        self.started.append(worker)
        return worker.ready()

    def close(self) -> None:
        for worker in self.started:
            worker.stop()
        # A result that nobody asked for is dropped when its server is gone already, and would go on looking for it.
        self.app.backend.remove_pending_result = lambda result: result
        self.app.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Celery 5.4's own calls of redis-py are deprecated by now, which is no news of ours."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"))


@pytest.fixture(scope="module")
def celery_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The broker, the results and the locks of a module's workers."""
    server = RedisServer(tmp_path_factory.mktemp("celery-redis")).start()
    yield server
    server.stop()


def on_redis(server: RedisServer, **more: str) -> dict[str, str]:
    base = f"redis://127.0.0.1:{server.port}"
    given = {"BROKER": f"{base}/0", "RESULTS": f"{base}/1", "LOCKS": f"{base}/2", "TRANSPORT": "{}"}
    return {**given, **more}


@pytest.fixture(scope="module")
def shop(
    request: pytest.FixtureRequest, celery_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """An application on a Redis of the module's own."""
    more = {"TRANSPORT": json.dumps(getattr(request.module, "TRANSPORT", {}))}
    shop = Shop(tmp_path_factory.mktemp("shop"), on_redis(celery_redis, **more))
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    """A prefork worker with four children that the module's tests share. Who kills it starts another."""
    return shop.worker()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key of this test alone, so that workers and servers can be shared."""
    return re.sub(r"\W", "_", request.node.name)[:40] + uuid.uuid4().hex[:6]
