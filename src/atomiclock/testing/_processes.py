"""Laws among processes: contention, death, and forks."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..backends import Traits
from ._base import SLACK, Laws, eventually, needs
from ._facade import Colour, Locks

START = 20.0
"""Seconds that a busy machine may take to start Python."""


class Child:
    """A process with `_child.py` in it."""

    def __init__(self, **orders: Any) -> None:
        script = Path(__file__).with_name("_child.py")
        self.process = subprocess.Popen(  # noqa: S603  # our own
            [sys.executable, str(script), json.dumps(orders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def says(self, seconds: float = START) -> Any:
        """The next thing that it says."""
        pipe = self.process.stdout
        assert pipe is not None
        ready, _, _ = select.select([pipe], [], [], seconds)
        line = pipe.readline() if ready else b""
        if not line:
            pytest.fail(f"the child process said nothing within {seconds:g} s; exit code {self.process.poll()}")
        return json.loads(line)

    def go(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class ProcessFixtures(Laws):
    @pytest.fixture
    def child(self, url: str, colour: Colour, name: str) -> Iterator[Callable[..., Child]]:
        """Starts child processes that work on the same store, in the same colour."""
        children: list[Child] = []

        def start(do: str, **orders: Any) -> Child:
            orders = {"url": url, "colour": colour, "name": name, "preload": self.preload, **orders}
            children.append(Child(do=do, **orders))
            return children[-1]

        yield start
        for one in children:
            one.close()


class ProcessLaws(ProcessFixtures):
    def test_never_two_processes_inside(self, child: Callable[..., Child], tmp_path: Path, traits: Traits) -> None:
        needs(traits.scope != "process", "its scope is one process")
        children = [child("count", folder=str(tmp_path), rounds=12) for _ in range(4)]
        for one in children:
            one.says()
        for one in children:
            one.go()
        assert [one.says(60) for one in children] == [{"overlaps": 0}] * 4
        assert (tmp_path / "count").read_text() == "48"

    def test_fences_grow_from_process_to_process(
        self, child: Callable[..., Child], locks: Locks, name: str, traits: Traits
    ) -> None:
        needs(traits.scope != "process", "its scope is one process")
        needs(traits.fence != "none", "no fence")
        with locks.acquire(name) as lease:
            fences = [lease.fence]
        one = child("hold")
        said = one.says()
        fences.append(said["fence"])
        holder = locks.holder(name)
        assert holder is not None
        assert holder.token == said["token"]
        assert locks.try_acquire(name) is None
        one.go()
        assert one.says() == {"released": True}
        with locks.acquire(name, timeout=10) as lease:
            fences.append(lease.fence)
        assert fences == sorted(set(fences))

    def test_the_lock_of_a_killed_holder_is_free_soon_after_its_ttl(
        self, child: Callable[..., Child], locks: Locks, name: str, short: float, traits: Traits
    ) -> None:
        needs(traits.scope != "process", "its scope is one process")
        one = child("hold", options={"ttl": short})
        one.says()
        time.sleep(1.3 * short)  # it is renewed meanwhile
        assert locks.try_acquire(name) is None
        one.kill()
        locks.acquire(name, timeout=short + 2 * traits.ttl_step + SLACK).release()

    def test_a_fork_owns_nothing_of_its_parent(self, child: Callable[..., Child], traits: Traits) -> None:
        needs(hasattr(os, "fork"), "no fork on this system")
        found = child("fork", shared=traits.scope != "process").says()
        inside = found.pop("child")
        assert "forked" in inside.pop("reason")
        expected = {"holds": False, "lost": True, "release": "LockLost", "extend": "LockLost", "left": "LockLost"}
        if traits.scope != "process":
            expected["try"] = False
        assert inside == {**expected, "own": True}
        assert found == {"holds": True, "stored": True, "own": True, "release": None}

    def test_an_orphan_does_not_renew_its_parents_lock(
        self, child: Callable[..., Child], locks: Locks, name: str, short: float, traits: Traits
    ) -> None:
        needs(traits.scope != "process", "its scope is one process")
        one = child("orphan", options={"ttl": short})
        one.says()
        assert locks.try_acquire(name) is None
        one.kill()
        lease = eventually(lambda: locks.try_acquire(name), short + 2 * traits.ttl_step + SLACK)
        assert lease
        lease.release()
