"""The hook that Celery's supervision uses: a lock is kept, or freed, by who knows its token and by nobody else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from servers import RedisServer, wait_until

from atomiclock import LockLost, LockManager, NotHeld
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


@pytest.mark.parametrize("store", ["sqlite", "redis", "memcached", "etcd"])
def test_what_is_left_standing_is_taken_over_by_who_knows_its_token_and_renewed_from_then_on(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    url = f"sqlite:///{tmp_path}/locks.db" if store == "sqlite" else request.getfixturevalue(f"{store}_server").url
    with LockManager(url) as first, LockManager(url) as second:
        lease = first.acquire("job", timeout=0, ttl=5)
        first._leave_standing(lease._hold, 60)
        assert not lease
        with pytest.raises(NotHeld):
            lease.release()
        seen = second.holder("job")
        assert seen is not None
        assert seen.remaining is not None
        assert 55 < seen.remaining <= 62
        assert second.try_acquire("job") is None
        with pytest.raises(NotHeld):
            second._take_over(second._adopt("job", "f" * 32, {"ttl": 5}))
        again = second._take_over(second._adopt("job", lease.token, {"ttl": 5}))
        assert again
        assert (again.token, again.fence) == (lease.token, lease.fence)
        assert again.remaining <= 5
        again.release()
        assert first.holder("job") is None
        with pytest.raises(NotHeld):
            second._take_over(second._adopt("job", lease.token, {"ttl": 5}))


def test_a_rest_that_is_over_before_the_store_has_answered_is_no_loss(redis_server: RedisServer) -> None:
    told: list[object] = []
    with LockManager(redis_server.url) as locks:
        lease = locks.acquire("job", timeout=0, ttl=20, on_lost=told.append)
        locks._leave_standing(lease._hold, 1e-6)
        assert not lease
        assert not lease.lost
        wait_until(lambda: locks.holder("job") is None, 5, "it stands no longer")
        expired = locks.acquire("job", timeout=0, ttl=0.05, renew=False)
        wait_until(lambda: expired.lost, 5, "its ttl is over")
        with pytest.raises(LockLost):
            locks._leave_standing(expired._hold, 1e-6)
    assert not told


def test_what_was_lost_is_not_left_standing(redis_server: RedisServer) -> None:
    with LockManager(redis_server.url) as locks, LockManager(redis_server.url) as others:
        lease = locks.acquire("job", timeout=0, ttl=20)
        redis_server.command("DEL", "atomiclock:job")
        held = others.acquire("job", timeout=0)
        with pytest.raises(LockLost):
            locks._leave_standing(lease._hold, 60)
        assert lease.lost
        seen = others.holder("job")
        assert seen is not None
        assert seen.token == held.token
        held.release()
