"""LocMemCache: our entries among the others of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from atomiclock import LockManager
from atomiclock.errors import BackendUnavailable, LockLost

pytestmark = pytest.mark.filterwarnings("ignore:django.*LocMemCache:RuntimeWarning")


@pytest.fixture
def cache(django_project: dict[str, Any]) -> Iterator[Any]:
    """The cache as the application has it, empty."""
    from django.core.cache import caches

    caches["memory"].clear()
    yield caches["memory"]
    caches["memory"].clear()


def test_a_cache_that_is_stuck_is_an_unknown_outcome(cache: Any) -> None:
    with LockManager("django://memory?io_timeout=0.3") as locks, cache._lock:
        begun = time.monotonic()
        with pytest.raises(BackendUnavailable, match="mutex"):
            locks.try_acquire("a")
        assert time.monotonic() - begun < 2


def test_a_lock_that_is_renewed_is_the_last_to_be_culled(cache: Any) -> None:
    with LockManager("django://memory", namespace="", ttl=20) as locks:
        kept, dropped = locks.acquire("kept", renew=False), locks.acquire("dropped", renew=False)
        for number in range(4):
            cache.add(str(number), "")
        kept.extend()
        with cache._lock:
            cache._cull()  # which drops a third of the entries
        with pytest.raises(LockLost):
            dropped.release()
        kept.release()


def test_threads_of_django_and_ours_never_both_win(cache: Any) -> None:
    rounds, won, got = 300, [], []

    def race(take: Any, barrier: threading.Barrier) -> None:
        for turn in range(rounds):
            barrier.wait(20)
            got.append(take(str(turn)))  # kept: a lease that is dropped is released
            if got[-1]:
                won.append(turn)

    with LockManager("django://memory", namespace="", renew=False) as locks:
        barrier = threading.Barrier(4)
        takes = [lambda key: cache.add(key, "django", 60), locks.try_acquire] * 2
        threads = [threading.Thread(target=race, args=(take, barrier)) for take in takes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(won) == list(range(rounds))


def test_without_django_it_is_not_loaded() -> None:
    script = "import sys, atomiclock\nwith atomiclock.acquire_lock('x', 'memory://'): print('django' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
