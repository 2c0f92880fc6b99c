"""The server acted and its reply never came, came cut, or came too late: nobody may be wrong about the lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from colours import Face
from proxy import Fault, Proxy
from servers import wait_until

from atomiclock import BackendUnavailable, LockLost, LockTimeout, NotHeld

KEY = "atomiclock:x"
LOST = ("reset", "truncated", "never")
BOUND = 1.0


@pytest.fixture
def locks(face: Face, proxy: Proxy, warm: Callable[[object], None]) -> Any:
    manager = face.manager(f"{proxy.url}?io_timeout={BOUND}")
    warm(manager)
    return manager


@pytest.mark.parametrize("reply", LOST)
def test_acquire_whose_reply_was_lost_ends_in_a_lease_that_the_server_confirms(
    locks: Any, proxy: Proxy, look: redis.Redis, reply: Any
) -> None:
    fault = proxy.script(Fault("add", reply=reply))
    begun = time.monotonic()
    lease = locks.acquire("x", timeout=5)
    assert fault.hits == 1
    assert time.monotonic() - begun < BOUND + 1
    assert look.get(KEY) == lease.token
    left = look.pttl(KEY) / 1000  # asked before: time goes by between the two
    assert lease.remaining <= left
    assert lease.fence == locks.holder("x").fence
    lease.release()
    assert look.exists(KEY) == 0


@pytest.mark.parametrize("reply", LOST)
@pytest.mark.parametrize("timeout", [0, 0.4])
def test_acquire_that_never_hears_an_answer_leaves_nothing_behind(
    locks: Any, proxy: Proxy, look: redis.Redis, reply: Any, timeout: float
) -> None:
    proxy.script(Fault("add", times=9**9, reply=reply))
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable):
        locks.acquire("x", timeout=timeout)
    assert time.monotonic() - begun < (timeout or BOUND) + 0.5
    wait_until(lambda: not look.exists(KEY), 3, "the lock is taken back, long before its ttl of 30 s")


@pytest.mark.parametrize("reply", LOST)
def test_acquire_that_fails_with_the_network_down_is_taken_back_when_it_is_up_again(
    locks: Any, proxy: Proxy, look: redis.Redis, reply: Any
) -> None:
    proxy.script(Fault("add", times=9**9, reply=reply), Fault("remove", times=9**9, forward="no", reply="reset"))
    with pytest.raises(BackendUnavailable):
        locks.acquire("x", timeout=0.5)
    time.sleep(0.5)
    assert look.exists(KEY) == 1  # the fault is real: the server has it
    proxy.clear()
    wait_until(lambda: not look.exists(KEY), 4, "the lock is taken back, long before its ttl of 30 s")


@pytest.mark.parametrize("how", ["no", "half"])
def test_acquire_whose_request_was_cut_is_sent_again(locks: Any, proxy: Proxy, look: redis.Redis, how: Any) -> None:
    proxy.script(Fault("add", forward=how, reply="reset"))
    lease = locks.acquire("x", timeout=5)
    assert look.get(KEY) == lease.token
    lease.release()
    assert look.exists(KEY) == 0


@pytest.mark.parametrize("reply", LOST)
def test_release_whose_reply_was_lost_has_freed_the_lock_and_says_so(
    locks: Any, proxy: Proxy, look: redis.Redis, reply: Any
) -> None:
    lease = locks.acquire("x")
    proxy.script(Fault("remove", reply=reply))
    try:
        lease.release()
    except BackendUnavailable:
        assert reply == "never"  # the answer took all of the time
        assert not lease.lost
        lease.release()
    assert look.exists(KEY) == 0
    assert not lease
    with pytest.raises(NotHeld):
        lease.release()


def test_release_whose_reply_was_lost_does_not_touch_who_got_in_meanwhile(
    locks: Any, proxy: Proxy, look: redis.Redis
) -> None:
    lease = locks.acquire("x")
    proxy.script(Fault("remove", reply="reset", reply_delay=0.2), Fault("remove", delay=0.3))
    look.set("watch", "1")
    wait_until(lambda: look.exists(KEY), 1)

    def next_holder() -> None:
        wait_until(lambda: not look.exists(KEY), 3)
        look.set(KEY, "next", px=30000, nx=True)

    thread = threading.Thread(target=next_holder)
    thread.start()
    lease.release()
    thread.join()
    assert look.get(KEY) == "next"


def test_release_with_the_network_down_can_be_called_again(locks: Any, proxy: Proxy, look: redis.Redis) -> None:
    lease = locks.acquire("x")
    proxy.shut()
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable):
        lease.release()
    assert time.monotonic() - begun < BOUND + 0.5
    assert not lease.lost
    proxy.open()
    lease.release()
    assert look.exists(KEY) == 0


def test_release_that_failed_is_repeated_in_the_background(locks: Any, proxy: Proxy, look: redis.Redis) -> None:
    lease = locks.acquire("x")
    proxy.shut()
    with pytest.raises(BackendUnavailable):
        lease.release()
    assert look.exists(KEY) == 1
    proxy.open()
    wait_until(lambda: not look.exists(KEY), 4, "the release is repeated, long before the ttl of 30 s")
    lease.release()  # and to call it again is no error


def test_release_of_a_lease_that_was_renewed_past_its_first_ttl_is_repeated_in_the_background(
    face: Face, proxy: Proxy, look: redis.Redis
) -> None:
    lease = face.manager(f"{proxy.url}?io_timeout=0.3").acquire("x", ttl=6)
    time.sleep(6 + 0.3 + 0.2)
    wait_until(lambda: look.pttl(KEY) > 5700, 5, "a renewal")
    proxy.shut()
    with pytest.raises(BackendUnavailable):
        lease.release()
    proxy.open()
    wait_until(lambda: not look.exists(KEY), 4, "the release is repeated, before the ttl is over")


@pytest.mark.parametrize("reply", LOST)
def test_extend_whose_reply_was_lost_extends_after_all(locks: Any, proxy: Proxy, look: redis.Redis, reply: Any) -> None:
    lease = locks.acquire("x", ttl=5, renew=False)
    proxy.script(Fault("extend", reply=reply))
    try:
        lease.extend(20)
    except BackendUnavailable:
        assert reply == "never"
        assert lease
        assert lease.remaining <= 5
        lease.extend(20)
    left = look.pttl(KEY) / 1000
    assert 10 < lease.remaining <= left
    lease.release()


@pytest.mark.parametrize("reply", LOST)
def test_renewal_whose_reply_was_lost_is_made_in_time_after_all(
    face: Face, proxy: Proxy, look: redis.Redis, reply: Any
) -> None:
    locks = face.manager(proxy.url)
    lease = locks.acquire("x", ttl=2.4)
    fault = proxy.script(Fault("extend", reply=reply))
    wait_until(lambda: fault.hits == 1, 5)
    end = time.monotonic() + 1.5 * 2.4
    while time.monotonic() < end:
        lease.check()
        assert look.get(KEY) == lease.token
        time.sleep(0.02)
    lease.release()


def test_request_of_an_attempt_that_was_given_up_finds_a_tombstone(locks: Any, proxy: Proxy, look: redis.Redis) -> None:
    proxy.script(Fault("add", times=9**9, forward="late", reply="never"))
    with pytest.raises(BackendUnavailable):
        locks.acquire("x", timeout=0.5)
    proxy.clear()
    wait_until(lambda: "remove" in proxy.seen[-3:], 3)
    time.sleep(0.1)
    assert proxy.kept
    for answer in proxy.deliver():
        assert b":-1" in answer
    assert look.exists(KEY) == 0
    assert look.keys("*:info") == []


def test_request_that_lands_after_the_attempt_it_was_repeated_by_was_released_takes_nothing(
    locks: Any, proxy: Proxy, look: redis.Redis
) -> None:
    proxy.script(Fault("add", forward="late", reply="reset"))
    lease = locks.acquire("x", timeout=5)
    assert len(proxy.kept) == 1
    lease.release()
    proxy.deliver()
    assert look.exists(KEY) == 0


def test_two_requests_of_one_attempt_of_which_one_is_late_leave_nothing_after_the_release(
    locks: Any, proxy: Proxy, look: redis.Redis
) -> None:
    proxy.script(Fault("add", forward="late", reply="reset"), Fault("add", reply="reset"))
    lease = locks.acquire("x", timeout=5)
    lease.release()
    proxy.deliver()
    assert look.exists(KEY) == 0


def test_late_request_of_a_waiter_that_was_told_no_meanwhile_takes_nothing(
    locks: Any, proxy: Proxy, look: redis.Redis
) -> None:
    look.set(KEY, "foreign", px=30000)
    proxy.script(Fault("add", forward="late", reply="reset"))
    with pytest.raises(LockTimeout):
        locks.acquire("x", timeout=0.5)
    look.delete(KEY)
    proxy.deliver()
    assert look.exists(KEY) == 0


def test_reply_that_comes_when_the_ttl_is_over_is_not_reported_as_acquired(
    locks: Any, proxy: Proxy, look: redis.Redis
) -> None:
    proxy.script(Fault("add", reply_delay=0.4))
    with pytest.raises((BackendUnavailable, LockTimeout)):
        locks.acquire("x", ttl=0.2, timeout=0)
    wait_until(lambda: not look.exists(KEY), 2)
    look.set(KEY, "next", nx=True)
    assert look.get(KEY) == "next"


def test_waiter_whose_reply_came_after_its_ttl_tries_again_and_holds_a_fresh_lease(
    locks: Any, proxy: Proxy, look: redis.Redis
) -> None:
    fault = proxy.script(Fault("add", reply_delay=0.4))
    lease = locks.acquire("x", ttl=0.3, timeout=5)
    assert fault.hits == 1
    assert lease
    assert look.get(KEY) == lease.token
    lease.release()


def test_validity_counts_from_before_the_request_left(locks: Any, proxy: Proxy, look: redis.Redis) -> None:
    fault = proxy.script(Fault("add", reply_delay=0.3))
    lease = locks.acquire("x", ttl=5, renew=False)
    assert lease.remaining < 4.75
    left = look.pttl(KEY) / 1000  # asked before: time goes by between the two
    assert lease.remaining <= left
    assert fault.hits == 1
    fault = proxy.script(Fault("extend", reply_delay=0.3))
    lease.extend()
    left = look.pttl(KEY) / 1000  # asked before: time goes by between the two
    assert lease.remaining <= left
    assert lease.remaining < 4.75
    assert fault.hits == 1
    lease.release()


def test_wait_whose_wake_up_was_lost_still_ends_soon_after_the_release(
    locks: Any, face: Face, proxy: Proxy, redis_server: Any
) -> None:
    direct = face.manager(redis_server.url)
    held = direct.acquire("x")
    fault = proxy.script(Fault("wait", reply="reset"))
    timer = threading.Timer(0.3, held.release)
    timer.start()
    begun = time.monotonic()
    lease = locks.acquire("x", timeout=10)
    assert time.monotonic() - begun < 2
    assert fault.hits == 1
    timer.join()
    lease.release()


def test_lock_that_was_overwritten_is_lost_at_release_and_the_other_is_untouched(locks: Any, look: redis.Redis) -> None:
    lease = locks.acquire("x")
    look.set(KEY, "other", px=20000)
    with pytest.raises(LockLost):
        lease.release()
    assert look.get(KEY) == "other"
