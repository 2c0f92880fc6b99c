"""The hook that Celery's supervision uses: a lock is kept, or freed, by who knows its token and by nobody else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from servers import RedisServer

from atomiclock import LockManager
from atomiclock._process import clock


def _take(url: str, outlives: bool) -> None:
    locks = LockManager(url)
    hold = locks._adopt("job", "a" * 32, {"ttl": 60, "renew": False})
    hold.outlives = outlives
    hold.entered = False
    locks._acquire(hold, 0)


def test_a_process_that_knows_the_token_keeps_and_frees_the_lock_of_another(redis_server: RedisServer) -> None:
    holder, other = LockManager(redis_server.url), LockManager(redis_server.url)
    lease = holder.acquire("job", timeout=0, ttl=5)
    stranger = other._adopt("job", None, {"ttl": 60})
    assert not other._extend_token(stranger, clock() + 3)
    assert not other._remove_token(stranger, clock() + 3)
    known = other._adopt("job", lease.token, {"ttl": 60})
    assert other._extend_token(known, clock() + 3)
    seen = holder.holder("job")
    assert seen is not None
    assert seen.remaining is not None
    assert seen.remaining > 30
    assert other._remove_token(known, clock() + 3)
    assert holder.holder("job") is None


def test_what_outlives_its_process_is_not_stolen_from_the_dead(tmp_path: Path) -> None:
    for outlives in (False, True):
        url = f"sqlite:///{tmp_path}/{outlives}.db"
        child = multiprocessing.get_context("spawn").Process(target=_take, args=(url, outlives))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert (LockManager(url).holder("job") is not None) is outlives
