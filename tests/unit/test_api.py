"""`acquire_lock` and `try_lock`: with, async with, decorators, and the warning for a blocked event loop."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import pytest

from atomiclock import (
    AsyncLease,
    AsyncLockManager,
    ConfigurationError,
    Lease,
    LockManager,
    LockTimeout,
    _hints,
    acquire_lock,
    try_lock,
)

URL = "memory://api"


def held(name: str) -> bool:
    return LockManager(URL).holder(name) is not None


def test_with_gives_a_lease_and_releases_it() -> None:
    with acquire_lock("with", URL) as lease:
        assert isinstance(lease, Lease)
        assert held("with")
    assert not held("with")


def test_async_with_gives_an_async_lease_and_releases_it() -> None:
    async def main() -> None:
        async with acquire_lock("async with", URL) as lease:
            assert isinstance(lease, AsyncLease)
            assert held("async with")
        assert not held("async with")
        async with try_lock("async with", URL) as first, try_lock("async with", URL) as second:
            assert first
            assert second is None

    asyncio.run(main())


def test_try_lock_gives_none_when_it_is_held_and_then_releases_nothing() -> None:
    with try_lock("try", URL) as first:
        assert first
        with try_lock("try", URL) as second:
            assert second is None
        assert held("try")
        with pytest.raises(LockTimeout):
            acquire_lock("try", URL, timeout=0).__enter__()
    assert not held("try")


def test_one_call_may_be_entered_by_several_threads_and_again() -> None:
    lock, inside, most = acquire_lock("again", URL), [], []

    def work() -> None:
        for _ in range(20):
            with lock:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == 80
    assert set(most) == {1}


def test_two_threads_whose_first_entries_meet_leave_with_their_own() -> None:
    """One of them with `None`, as of `try_lock`: else it would take the other's lease, or leave it to nobody."""
    package = inspect.getfile(acquire_lock)
    for step in range(1, 100):
        shared, left = try_lock("meet"), [step]

        def meanwhile(frame: FrameType, event: str, _: Any, shared: Any = shared, left: list[int] = left) -> Any:
            if frame.f_code.co_filename != package:
                return None
            frame.f_trace_opcodes = True
            left[0] -= event == "opcode"
            if left[0] == 0:
                sys.settrace(None)
                frame.f_trace = None
                shared._enter(-1, None)
            return meanwhile

        before = sys.gettrace()
        sys.settrace(meanwhile)
        try:
            shared._enter(-2, "lease")
        finally:
            sys.settrace(before)
        if left[0] > 0:
            break
        assert sorted(shared._entered or ()) == [(-2, "lease"), (-1, None)], f"step {step}"
    else:
        pytest.fail("more steps than looked at")


def test_a_decorated_function_holds_the_lock_during_each_call() -> None:
    @acquire_lock("decorated", URL, timeout=0)
    def work(x: int, *, y: int = 2) -> tuple[int, bool]:
        """What it does."""
        return x + y, held("decorated")

    assert work(1) == (3, True)
    assert work(1, y=5) == (6, True)
    assert not held("decorated")
    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    assert list(inspect.signature(work).parameters) == ["x", "y"]


def test_a_decorated_function_that_calls_itself_finds_the_lock_held() -> None:
    @acquire_lock("itself", URL, timeout=0)
    def work(depth: int) -> int:
        return work(depth - 1) if depth else 0

    assert work(0) == 0
    with pytest.raises(LockTimeout):
        work(1)
    assert not held("itself")


def test_a_decorated_coroutine_function_stays_one_and_holds_the_lock() -> None:
    @acquire_lock("decorated async", URL, timeout=5)
    async def work() -> bool:
        await asyncio.sleep(0.001)
        return held("decorated async")

    async def main() -> list[bool]:
        return await asyncio.gather(*(work() for _ in range(5)))

    assert inspect.iscoroutinefunction(work)
    assert asyncio.run(main()) == [True] * 5
    assert not held("decorated async")


def test_the_error_of_a_decorated_function_is_its_own() -> None:
    @acquire_lock("raises", URL)
    def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        work()
    assert not held("raises")


def test_what_cannot_be_decorated_is_refused() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    refused: list[Any] = [generator, async_generator, 5, None]
    for function in refused:
        with pytest.raises(ConfigurationError):
            acquire_lock("refused", URL)(function)
    with pytest.raises(ConfigurationError, match="timeout=0"):
        try_lock("refused", URL)(held)


@pytest.mark.parametrize("name", ["", None, 5, b"x"])
def test_a_bad_name_is_refused_at_the_call(name: Any) -> None:
    for call in (acquire_lock, try_lock):
        with pytest.raises(ConfigurationError, match="name"):
            call(name, URL)


@pytest.mark.parametrize("url", ["redi://h", "redis://h:port", "redis://h?ttl=x", "nothing"])
def test_a_bad_url_is_refused_where_it_is_written(url: str) -> None:
    """A decorator of a module that nobody calls before the night is to fail when the module is imported."""
    for call in (acquire_lock, try_lock):
        with pytest.raises(ConfigurationError) as caught:
            call("early", url)
        assert caught.value.name == "early"


def test_a_url_whose_driver_is_missing_is_refused_when_it_is_entered() -> None:
    for url in ("redis://127.0.0.1:1", "django://nowhere"):
        assert "(not entered)" in repr(acquire_lock("late", url))


def test_an_acquired_lock_is_used_by_with_async_with_and_await() -> None:
    async def main() -> None:
        locks = AsyncLockManager(URL)
        async with locks.acquire("three ways") as lease:
            assert lease
        lease = await locks.acquire("three ways")
        assert await locks.try_acquire("three ways") is None
        async with lease:
            pass
        async with locks.try_acquire("three ways") as maybe:
            assert maybe
        assert not held("three ways")

    asyncio.run(main())
    with LockManager(URL) as locks, locks.acquire("three ways") as lease:
        assert lease
    assert not held("three ways")


@pytest.mark.parametrize("enter", ["acquire_lock", "try_lock", "manager", "lock"])
def test_a_plain_with_on_an_event_loops_thread_warns_once_and_names_async_with(
    enter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hints, "_warned", False)
    ways: dict[str, Any] = {
        "acquire_lock": lambda: acquire_lock("blocks", URL),
        "try_lock": lambda: try_lock("blocks", URL),
        "manager": lambda: LockManager(URL).acquire("blocks"),
        "lock": lambda: LockManager(URL).lock("blocks"),
    }

    async def main() -> list[warnings.WarningMessage]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                with ways[enter]():
                    assert held("blocks")
        return caught

    caught = asyncio.run(main())
    assert len(caught) == 1
    assert caught[0].category is RuntimeWarning
    assert "async with" in str(caught[0].message)
    assert caught[0].filename == __file__, "it points at the caller"


def test_a_plain_with_without_a_loop_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hints, "_warned", False)
    with acquire_lock("quiet", URL), LockManager(URL).lock("quiet too"):
        pass
