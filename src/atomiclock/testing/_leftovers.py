"""Laws of what is left behind: nothing that grows with the number of locks that were used."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ..errors import BackendUnavailable, LockTimeout
from ._async_facade import AsyncLocks
from ._base import Laws, eventually
from ._facade import Locks

HANDFUL = 5
"""Keys, threads or descriptors that a backend may keep for good."""


def descriptors() -> int:
    """How many file descriptors this process has open; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.is_dir() else 0


class LeftoverLaws(Laws):
    def test_a_thousand_cycles_leave_nothing(self, locks: Locks, name: str, leftovers: Callable[[], int]) -> None:
        locks.acquire(name).release()
        before = (threading.active_count(), descriptors(), leftovers())
        self.cycle(locks, name, 1000)
        gc.collect()
        eventually(lambda: threading.active_count() <= before[0] + 1, what="threads end")
        assert descriptors() <= before[1] + HANDFUL
        assert leftovers() <= before[2] + HANDFUL

    def cycle(self, locks: Locks, name: str, times: int) -> None:
        """Acquire and release `times` names, without the face's own cost where there is a loop."""
        if not isinstance(locks, AsyncLocks):
            for number in range(times):
                locks.acquire(f"{name}-{number}", ttl=60).release()
            return
        manager = locks.manager

        async def cycle() -> None:
            for number in range(times):
                await (await manager.acquire(f"{name}-{number}", ttl=60)).release()

        locks.run(cycle())

    def test_failed_attempts_leave_nothing(
        self, locks: Locks, another: Locks, name: str, leftovers: Callable[[], int]
    ) -> None:
        def fail(timeout: float = 0.02) -> None:
            with locks.acquire(name):
                assert another.try_acquire(name) is None
                with pytest.raises((LockTimeout, BackendUnavailable)):  # a busy machine may not answer in that time
                    another.acquire(name, timeout=timeout)

        fail(1.0)  # time enough to open all that who waits needs
        before = (threading.active_count(), descriptors(), leftovers())
        for _ in range(20):
            fail()
        eventually(lambda: threading.active_count() <= before[0] + 1, what="threads end")
        assert descriptors() <= before[1] + HANDFUL
        eventually(lambda: leftovers() <= before[2] + HANDFUL, what="what waiters noted is gone")
