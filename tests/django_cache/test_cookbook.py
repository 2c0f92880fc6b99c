"""The same key, taken by django:// and by the Celery cookbook's recipe, which knows nothing of us."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from atomiclock import LockManager
from atomiclock.celery import cookbook_lock
from atomiclock.errors import LockLost

LOCK_EXPIRE = 60 * 10

pytestmark = pytest.mark.filterwarnings("ignore:django.*LocMemCache:RuntimeWarning")


@pytest.fixture(params=["default", "Shop_1", "theirs", "pymemcache", "database", "memory"])
def alias(request: pytest.FixtureRequest, django_project: dict[str, Any]) -> str:
    alias: str = request.param
    return alias


@pytest.fixture
def cache(alias: str) -> Iterator[Any]:
    """The cache as the application has it."""
    from django.core.cache import caches

    yield caches[alias]
    caches[alias].clear()


@pytest.fixture
def locks(alias: str) -> Iterator[LockManager]:
    with LockManager(f"django://{alias}", namespace="") as locks:
        yield locks


@contextmanager
def memcache_lock(cache: Any, lock_id: str, oid: str, expire: float = LOCK_EXPIRE) -> Iterator[bool]:
    """The recipe: https://docs.celeryq.dev/en/stable/tutorials/task-cookbook.html, but for `cache` and `expire`."""
    timeout_at = time.monotonic() + expire - 3
    status = cache.add(lock_id, oid, expire)
    try:
        yield status
    finally:
        if time.monotonic() < timeout_at and status:
            cache.delete(lock_id)


def test_who_holds_by_the_recipe_excludes_us(cache: Any, locks: LockManager) -> None:
    with memcache_lock(cache, "import-feed-lock-1", "celery@one") as acquired:
        assert acquired
        assert locks.try_acquire("import-feed-lock-1") is None
        holder = locks.holder("import-feed-lock-1")
        assert holder is not None
        assert holder.owner is None, "it says nothing of itself in a way that we read"
        assert LOCK_EXPIRE - 10 < (holder.remaining or 0) <= LOCK_EXPIRE + 1
    locks.acquire("import-feed-lock-1", timeout=0).release()


def test_we_exclude_the_recipe(cache: Any, locks: LockManager) -> None:
    with locks.acquire("import-feed-lock-1"):
        for _ in range(2):  # nor does a failed attempt remove the lock
            with memcache_lock(cache, "import-feed-lock-1", "celery@one") as acquired:
                assert not acquired
    with memcache_lock(cache, "import-feed-lock-1", "celery@one") as acquired:
        assert acquired


def test_a_waiter_gets_in_when_the_recipe_is_done(cache: Any, locks: LockManager) -> None:
    with memcache_lock(cache, "import-feed-lock-1", "celery@one"):
        begun = time.monotonic()
        assert not locks.lock("import-feed-lock-1").acquire(timeout=0.3)
        assert time.monotonic() - begun >= 0.25
    locks.acquire("import-feed-lock-1", timeout=5).release()


def test_a_lock_that_the_recipe_took_from_us_is_never_removed_or_extended_by_us(cache: Any, locks: LockManager) -> None:
    released, extended = locks.acquire("a", renew=False), locks.acquire("b", renew=False)
    for key in "ab":
        cache.delete(key)  # as a late holder by the recipe does
        assert cache.add(key, "celery@one", LOCK_EXPIRE)
    with pytest.raises(LockLost):
        released.release()
    with pytest.raises(LockLost):
        extended.extend()
    assert (cache.get("a"), cache.get("b")) == ("celery@one", "celery@one")
    assert (locks.holder("b").remaining or 0) > LOCK_EXPIRE - 10  # type: ignore[union-attr]  # somebody has it


def test_a_key_that_never_expires_is_held(cache: Any, locks: LockManager) -> None:
    cache.add("a", "for ever", None)
    assert locks.try_acquire("a") is None
    holder = locks.holder("a")
    assert holder is not None
    assert holder.remaining is None


@pytest.mark.parametrize("value", [1, True, None, {"a": [1]}, "atomiclock", "x" * 10_000])
def test_whatever_others_have_put_there_is_a_lock_and_stays(cache: Any, locks: LockManager, value: Any) -> None:
    cache.add("a", value, LOCK_EXPIRE)
    assert locks.try_acquire("a") is None
    assert locks.holder("a") is not None
    assert cache.get("a", "gone") == value


def test_other_programs_may_look_at_our_locks(cache: Any, locks: LockManager) -> None:
    with locks.acquire("a"):
        assert "a" in cache
        assert cache.get("a") not in (None, "celery@one"), "no error: some check for their value before they delete"
        assert cache.get_many(["a"])
    assert cache.get("a") is None
    assert "a" not in cache


def test_our_lock_that_expired_is_the_recipes(cache: Any, locks: LockManager) -> None:
    lease = locks.acquire("a", ttl=0.2, renew=False)
    end = time.monotonic() + 5
    while not cache.add("a", "celery@one", LOCK_EXPIRE):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert lease.lost
    with pytest.raises(LockLost):
        lease.release()
    assert cache.get("a") == "celery@one"


def test_a_cleared_cache_is_a_lost_lock(cache: Any, locks: LockManager) -> None:
    lease = locks.acquire("a", renew=False)
    cache.clear()
    with pytest.raises(LockLost):
        lease.release()


def test_cookbook_lock_and_the_recipe_exclude_each_other_on_one_key(cache: Any, alias: str) -> None:
    url = f"django://{alias}"
    with memcache_lock(cache, "import-feed-lock-2", "celery@old") as acquired:
        assert acquired
        with cookbook_lock("import-feed-lock-2", "celery@new", url=url) as mine:
            assert mine is False
    with cookbook_lock("import-feed-lock-2", "celery@new", url=url) as mine:
        assert mine is True
        with memcache_lock(cache, "import-feed-lock-2", "celery@old") as acquired:
            assert not acquired
    with memcache_lock(cache, "import-feed-lock-2", "celery@old") as acquired:
        assert acquired


def test_cookbook_lock_outlives_its_ttl_and_tells_of_a_delete_by_others(cache: Any, alias: str) -> None:
    url = f"django://{alias}"

    def work() -> None:
        with cookbook_lock("import-feed-lock-3", "celery@new", url=url, ttl=1) as mine:
            assert mine
            time.sleep(2.5)
            with memcache_lock(cache, "import-feed-lock-3", "celery@old") as acquired:
                assert not acquired
            cache.delete("import-feed-lock-3")  # as the recipe does whose own lock has long expired

    with pytest.raises(LockLost):
        work()
