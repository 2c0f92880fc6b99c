"""What a forked child has to make anew is known of every store, also of those that many threads make at once."""

from __future__ import annotations

import sys
import threading

from atomiclock import LockManager, _sync


def test_every_store_is_known_however_many_threads_make_some() -> None:
    made: list[LockManager] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: made.extend(map(LockManager, ["memory://"] * 60))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    known = [ref() for ref in _sync._stores]
    assert len(made) == 480
    assert all(any(store is manager._store for store in known) for manager in made)
