"""What those are told who stand in line: as if each had asked the store alone."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from servers import RedisServer

from atomiclock import BackendUnavailable, LockManager, LockTimeout


class Callers:
    """Threads that acquire the same lock, and what became of each."""

    def __init__(self, locks: LockManager) -> None:
        self.locks = locks
        self.outcomes: dict[str, object] = {}
        self.threads: list[threading.Thread] = []

    def call(self, who: str, timeout: float | None, pause: float = 0.002) -> None:
        thread = threading.Thread(target=self._acquire, args=(who, timeout))
        thread.start()
        self.threads.append(thread)
        time.sleep(pause)

    def _acquire(self, who: str, timeout: float | None) -> None:
        try:
            self.locks.acquire("x", timeout=timeout).release()
            self.outcomes[who] = "got it"
        except Exception as error:
            self.outcomes[who] = error

    def join(self) -> dict[str, object]:
        for thread in self.threads:
            thread.join()
        return self.outcomes


def test_all_whose_time_ends_one_after_the_other_hear_that_somebody_has_it(redis_server: RedisServer) -> None:
    """Each is in front for a moment, which is too short to ask."""
    with LockManager(redis_server.url, owner="mr. holder") as others, LockManager(redis_server.url) as locks:
        with others.acquire("x"):
            callers = Callers(locks)
            for number in range(300):
                callers.call(str(number), 0.3, pause=0.0005)
            outcomes = callers.join()
    assert Counter(map(type, outcomes.values())) == {LockTimeout: 300}
    assert all("mr. holder" in str(error) for error in outcomes.values())


def test_a_short_timeout_in_front_takes_no_time_from_those_behind(own_redis: RedisServer) -> None:
    with LockManager(own_redis.url) as locks:
        locks.acquire("x").release()
        callers = Callers(locks)
        with own_redis.frozen():
            callers.call("front", 0.2)
            for who in ("first", "second", "third"):
                callers.call(who, 20)
            time.sleep(0.4)
        outcomes = callers.join()
    assert isinstance(outcomes.pop("front"), BackendUnavailable)
    assert set(outcomes.values()) == {"got it"}


def test_who_waits_behind_one_who_hears_nothing_is_not_told_that_it_holds(own_redis: RedisServer) -> None:
    with LockManager(own_redis.url) as locks:
        locks.acquire("x").release()
        callers = Callers(locks)
        with own_redis.frozen():
            callers.call("front", None)
            with pytest.raises(BackendUnavailable, match="has not answered"):
                locks.acquire("x", timeout=0.2)
        assert callers.join() == {"front": "got it"}
