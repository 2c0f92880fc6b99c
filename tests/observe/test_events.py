"""What observers are told of locks, in both colours."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import RedisServer, free_port, wait_until

import atomiclock
from atomiclock import AsyncLockManager, Event, LockLost, LockManager, LockTimeout, NotHeld, _observe
from atomiclock._sync_lease import Lease


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    stop = atomiclock.observe(recorder)
    yield recorder
    stop()


class Sync:
    """A manager that is used in the test's own thread."""

    def __init__(self, url: str, **defaults: Any) -> None:
        self.manager = LockManager(url, **defaults)

    def acquire(self, name: str, **options: Any) -> Any:
        return self.manager.acquire(name, **options)

    def release(self, lease: Any) -> None:
        lease.release()

    def close(self) -> None:
        self.manager.close()


class Async:
    """A manager that is used on an event loop, which goes on in a thread of its own."""

    def __init__(self, url: str, **defaults: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.manager = AsyncLockManager(url, **defaults)

    def _run(self, work: Any) -> Any:
        async def await_it() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(await_it(), self._loop).result(20)

    def acquire(self, name: str, **options: Any) -> Any:
        return self._run(lambda: self.manager.acquire(name, **options))

    def release(self, lease: Any) -> None:
        self._run(lease.release)

    def close(self) -> None:
        self._run(self.manager.aclose)
        self._run(self._last)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _last(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


@pytest.fixture(params=[Sync, Async])
def colour(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_grant_and_its_release_are_told_with_what_they_took(colour: Any, recorder: Recorder) -> None:
    locks = colour("memory://told")
    lease = locks.acquire("x", owner="me")
    locks.release(lease)
    locks.close()
    acquired, released = recorder.events
    assert (acquired.kind, acquired.name, acquired.owner, acquired.backend) == ("acquired", "x", "me", "memory")
    assert (acquired.token, acquired.fence, acquired.held) == (lease.token, lease.fence, None)
    assert acquired.waited is not None
    assert 0 <= acquired.waited < 5
    assert released.kind == "released"
    assert released.held is not None
    assert released.held >= 0
    assert released.reason is None


def test_what_is_released_twice_is_told_once(colour: Any, recorder: Recorder) -> None:
    locks = colour("memory://twice")
    lease = locks.acquire("x")
    locks.release(lease)
    with pytest.raises(NotHeld):
        locks.release(lease)
    locks.close()
    assert recorder.kinds == ["acquired", "released"]


@pytest.mark.parametrize("url", ["memory://busy", "sqlite:///busy.db"])
def test_an_attempt_that_times_out_was_contended_once(
    colour: Any, recorder: Recorder, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    locks, others = colour(url), LockManager(url, owner="the other")
    with others.acquire("x"):
        begun = time.monotonic()
        with pytest.raises(LockTimeout):
            locks.acquire("x", timeout=0.3)
        took = time.monotonic() - begun
        with pytest.raises(LockTimeout):
            locks.acquire("x", timeout=0)
    locks.close()
    others.close()
    assert recorder.kinds == ["acquired", "contended", "timeout", "contended", "timeout", "released"]
    _, contended, timeout, *_ = recorder.events
    assert contended.holder == timeout.holder == "the other"
    assert timeout.waited is not None
    assert contended.waited is not None
    assert 0 < contended.waited < timeout.waited <= took
    assert timeout.waited > 0.299, "and not before its time, however busy the machine is"


def test_who_waits_in_the_process_is_told_to_be_contended_and_how_long_it_took(
    recorder: Recorder, tmp_path: Path
) -> None:
    locks = LockManager(f"sqlite:///{tmp_path / 'locks.db'}")
    lease = locks.acquire("x")
    waiter = threading.Thread(target=lambda: locks.acquire("x").release())
    waiter.start()
    wait_until(lambda: "contended" in recorder.kinds, what="the waiter is told of")
    lease.release()
    waiter.join(10)
    locks.close()
    assert sorted(recorder.kinds) == ["acquired", "acquired", "contended", "released", "released"]
    contended = next(event for event in recorder.events if event.kind == "contended")
    second = [event for event in recorder.events if event.kind == "acquired"][-1]
    assert (contended.token, second.owner) == ("", contended.owner)
    assert second.waited is not None
    assert contended.waited is not None
    assert second.waited >= contended.waited


def test_renewals_and_a_loss_are_told_by_the_keeper(
    colour: Any, recorder: Recorder, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    locks = colour(redis_server.url, ttl=0.6)
    lease = locks.acquire("x")
    wait_until(lambda: "renewed" in recorder.kinds, what="a renewal is told of")
    redis_server.command("DEL", "atomiclock:x")
    wait_until(lambda: "lost" in recorder.kinds, what="the loss is told of")
    with pytest.raises(LockLost):
        locks.release(lease)
    locks.close()
    assert recorder.kinds[0] == "acquired"
    assert set(recorder.kinds[1:-1]) == {"renewed"}
    lost = recorder.events[-1]
    assert (lost.kind, lost.backend) == ("lost", "redis")
    assert "no longer has it" in str(lost.reason)
    record = next(record for record in caplog.records if getattr(record, "lock_event", None) == "lost")
    assert (record.levelno, record.lock_name, record.lock_token) == (logging.WARNING, "x", lease.token)  # type: ignore[attr-defined]


def test_a_loss_that_only_the_release_finds_is_told(colour: Any, recorder: Recorder) -> None:
    locks = colour("memory://over")
    lease = locks.acquire("x", ttl=0.05, renew=False)
    wait_until(lambda: lease.lost, what="its ttl is over")
    with pytest.raises(LockLost):
        locks.release(lease)
    locks.close()
    assert recorder.kinds == ["acquired", "lost"]
    assert "renew=False" in str(recorder.events[-1].reason)


def test_a_lease_that_is_not_renewed_is_told_to_be_lost_when_its_time_is_over(colour: Any, recorder: Recorder) -> None:
    """Nobody releases it meanwhile, or looks at it: a gauge of held locks would count it for ever."""
    locks = colour("memory://unseen")
    lease = locks.acquire("x", ttl=0.05, renew=False)
    wait_until(lambda: "lost" in recorder.kinds, what="the loss is told of")
    with pytest.raises(LockLost):
        locks.release(lease)
    locks.close()
    assert recorder.kinds == ["acquired", "lost"]


def test_a_lease_that_is_dropped_is_told_to_be_lost(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    locks = LockManager("memory://dropped", ttl=3)
    locks.acquire("x")
    gc.collect()
    wait_until(lambda: "lost" in recorder.kinds, what="the drop is told of")
    assert recorder.kinds == ["acquired", "lost"]
    assert "dropped" in str(recorder.events[-1].reason)
    assert any(getattr(record, "lock_event", None) == "dropped" for record in caplog.records)


def test_a_store_that_is_not_there_is_told(colour: Any, recorder: Recorder) -> None:
    locks = colour(f"redis://127.0.0.1:{free_port()}/0?io_timeout=0.2")
    with pytest.raises(atomiclock.BackendUnavailable):
        locks.acquire("x", timeout=0)
    locks.close()
    assert recorder.kinds == ["unavailable"]
    assert "not reachable" in str(recorder.events[0].reason)


def test_a_cancelled_attempt_that_was_contended_ends_without_a_word(recorder: Recorder) -> None:
    async def scene() -> None:
        async with AsyncLockManager("memory://cancelled") as locks, locks.acquire("x"):
            waiter = asyncio.ensure_future(locks.acquire("x"))
            await asyncio.sleep(0.05)
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)

    asyncio.run(scene())
    assert recorder.kinds == ["acquired", "contended", "released"]


def test_an_observer_that_raises_breaks_no_lock_and_is_logged_once(
    colour: Any, recorder: Recorder, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError(event.kind)

    stop = atomiclock.observe(broken)
    second = Recorder()
    stop_second = atomiclock.observe(second)
    try:
        locks = colour(redis_server.url, ttl=0.6)
        lease = locks.acquire("x")
        wait_until(lambda: recorder.kinds.count("renewed") >= 2, what="renewals go on")
        assert lease
        with pytest.raises(LockTimeout):
            locks.acquire("x", timeout=0)
        locks.release(lease)
        locks.release(locks.acquire("x", timeout=0))
        locks.close()
    finally:
        stop_second()
        stop()
    assert second.kinds == recorder.kinds  # also those that come after it
    assert [record.exc_info is not None for record in caplog.records if "observer" in record.message] == [True]


def test_an_observer_that_was_stopped_hears_no_more() -> None:
    recorder = Recorder()
    stop = atomiclock.observe(recorder)
    lease = LockManager("memory://stopped").acquire("x")
    stop()
    stop()
    lease.release()
    assert recorder.kinds == ["acquired"]


def test_what_was_held_before_is_not_told_of() -> None:
    lease: Lease = LockManager("memory://before").acquire("x")
    recorder = Recorder()
    stop = atomiclock.observe(recorder)
    lease.release()
    stop()
    assert recorder.kinds == []


def test_events_are_logged_with_stable_fields(caplog: pytest.LogCaptureFixture) -> None:
    stop = atomiclock.observe(atomiclock.log_event)
    locks = LockManager("memory://logged", owner="me")
    try:
        with caplog.at_level(logging.DEBUG, "atomiclock"), locks.acquire("x"), pytest.raises(LockTimeout):
            locks.acquire("x", timeout=0)
    finally:
        stop()
    found = [(record.__dict__["lock_event"], record.levelname) for record in caplog.records]
    assert found == [("acquired", "DEBUG"), ("contended", "DEBUG"), ("timeout", "INFO"), ("released", "DEBUG")]
    record = caplog.records[-1].__dict__
    assert (record["lock_name"], record["lock_owner"], record["lock_place"]) == ("x", "me", "memory://logged")
    assert set(Event._fields) - {"kind"} == {key[5:] for key in record if key.startswith("lock_")} - {"event"}


def test_the_fake_store_tells_too(recorder: Recorder) -> None:
    from atomiclock.testing import FakeStore

    with FakeStore() as store:
        lease = LockManager(store.url).acquire("x")
        store.lose("x")
        with pytest.raises(LockLost):
            lease.release()
    assert recorder.kinds[0] == "acquired"
    assert recorder.kinds[-1] == "lost"
    assert recorder.kinds.count("lost") == 1


def test_nothing_is_kept_of_a_broken_observer_whose_place_another_may_take() -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError(event.kind)

    stop = atomiclock.observe(broken)
    with atomiclock.LockManager("memory://observed") as locks:
        locks.acquire("x").release()
    assert id(broken) in _observe._complained
    stop()
    assert id(broken) not in _observe._complained
