"""What a newcomer gets wrong: each mistake is told, with what to do instead, and leaves no lock behind."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from servers import EtcdServer, MemcachedServer, RedisServer, free_port, wait_until

from atomiclock import (
    AsyncLease,
    AsyncLock,
    AsyncLockManager,
    BackendUnavailable,
    ConfigurationError,
    Lock,
    LockLost,
    LockManager,
    LockTimeout,
    NotHeld,
    _hints,
    acquire_lock,
    try_lock,
)

URL = "memory://mistakes"

locks = LockManager(URL)
async_locks = AsyncLockManager(URL)


def enter(thing: Any) -> None:
    with thing:
        raise AssertionError("entered")


async def enter_async(thing: Any) -> None:
    async with thing:
        raise AssertionError("entered")


def fenced(thing: Any) -> None:
    _ = thing.fence


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: bool(try_lock("a", URL)), "with try_lock('a', ...) as lease"),
        (lambda: bool(acquire_lock("a", URL)), "with acquire_lock('a', ...) as lease"),
        (lambda: acquire_lock("a", URL).release(), "no lease yet that has 'release'"),
        (lambda: fenced(acquire_lock("a", URL)), "with acquire_lock('a', ...) as lease"),
        (lambda: asyncio.run(_awaited(acquire_lock("a", URL))), "async with acquire_lock('a', ...) as lease"),
        (lambda: asyncio.run(_awaited(try_lock("a", URL))), "async with try_lock('a', ...) as lease"),
    ],
)
def test_a_call_that_nobody_entered_is_no_lease(use: Callable[[], object], said: str) -> None:
    with pytest.raises((TypeError, AttributeError), match=re.escape(said)):
        use()
    assert locks.holder("a") is None


async def _awaited(thing: Awaitable[Any]) -> None:
    await thing


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LockManager(URL), "async with AsyncLockManager"),
        (lambda: locks.acquire("b"), "async with acquire_lock"),
        (lambda: locks.lock("b"), "make it by an AsyncLockManager"),
    ],
)
def test_async_with_on_what_is_for_threads_names_what_is_for_tasks(make: Callable[[], Any], said: str) -> None:
    thing = make()
    with pytest.raises(TypeError, match=re.escape(said)):
        asyncio.run(enter_async(thing))
    assert not isinstance(thing, contextlib.AbstractAsyncContextManager)
    assert not hasattr(thing, "__aenter__")
    with thing:
        pass


def test_with_on_what_is_for_tasks_names_what_is_for_threads() -> None:
    async def main() -> None:
        lease = await async_locks.acquire("c")
        acquiring = async_locks.acquire("d")
        for thing, said in (
            (async_locks, "in sync code use a LockManager"),
            (lease, "`async with lease:`"),
            (acquiring, "use a LockManager"),
            (async_locks.lock("c"), "make it by a LockManager"),
        ):
            with pytest.raises(TypeError, match=re.escape(said)):
                enter(thing)
            assert not isinstance(thing, contextlib.AbstractContextManager)
            assert not hasattr(thing, "__enter__")
        acquiring.close()
        await lease.release()

    asyncio.run(main())


def test_the_words_for_the_wrong_with_make_no_lock_of_the_other_kind() -> None:
    assert isinstance(locks.lock("e"), Lock)
    assert not isinstance(locks.lock("e"), AsyncLock)
    assert isinstance(async_locks.lock("e"), AsyncLock)
    assert not isinstance(async_locks.lock("e"), Lock)


def test_a_forgotten_await_is_told() -> None:
    async def main() -> None:
        acquiring = async_locks.acquire("f")
        with pytest.raises(AttributeError, match=re.escape("lease = await locks.acquire(...)")):
            fenced(acquiring)
        acquiring.close()
        trying = async_locks.try_acquire("f")
        with pytest.raises(TypeError, match=re.escape("lease = await locks.try_acquire(...)")):
            assert trying
        trying.close()
        async with async_locks.acquire("f") as lease:
            with pytest.warns(RuntimeWarning, match=re.escape("'AsyncLease.release' was never awaited")):
                lease.release()

    asyncio.run(main())


def test_a_statement_that_only_makes_a_lock_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for call in (acquire_lock, try_lock):
        call("q", URL)
        said = caplog.messages.pop()
        assert said.startswith(f"{__file__}:")
        assert f"acquires nothing: write `with {call.__name__}('q', " in said


def test_a_lock_that_is_kept_used_or_looked_at_is_no_such_statement(caplog: pytest.LogCaptureFixture) -> None:
    def kept() -> None:
        later = acquire_lock("r", URL)
        del later

    kept()
    assert repr(acquire_lock("r", URL)) == "<Acquire 'r' (not entered)>"
    with acquire_lock("r", URL):
        pass
    with contextlib.suppress(KeyError), acquire_lock("r", URL):
        raise KeyError
    acquire_lock("r", URL)(lambda: None)()
    with contextlib.ExitStack() as stack:
        stack.enter_context(try_lock("r", URL))

    async def main() -> None:
        async with acquire_lock("r", URL):
            pass

    asyncio.run(main())
    assert caplog.messages == []


def test_a_plain_with_in_async_code_says_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hints, "_warned", False)

    async def main() -> None:
        with acquire_lock("g", URL):
            pass

    with pytest.warns(RuntimeWarning, match=r"`async with acquire_lock\(\.\.\.\)`, or an AsyncLockManager"):
        asyncio.run(main())


def test_a_decorator_without_its_call_asks_for_the_name() -> None:
    for call in (acquire_lock, try_lock):
        unfinished: Any = call
        with pytest.raises(ConfigurationError, match=rf"write @{call.__name__}\('NAME'\)"):

            @unfinished
            def work() -> None: ...


def test_what_is_decorated_must_be_a_function() -> None:
    around: Any = acquire_lock("h", URL)
    for kind in (staticmethod, classmethod, property):
        with pytest.raises(ConfigurationError, match=f"put @{kind.__name__} above it"):
            around(kind(lambda: None))
    with pytest.raises(ConfigurationError, match="decorate its methods"):
        around(type("Job", (), {}))

    class Job:
        @staticmethod
        @acquire_lock("h", URL)
        def below() -> bool:
            return locks.holder("h") is not None

    assert Job().below()


def test_a_decorators_name_is_no_template() -> None:
    def job(number: int, *, feed_url: str) -> None: ...

    for name, argument in (("feed:{feed_url}", "feed_url"), ("{number}", "number")):
        with pytest.raises(ConfigurationError, match=rf"acquire_lock\(f'.*{argument}.*'\):` inside .*job"):
            acquire_lock(name, URL)(job)
    acquire_lock("{other}", URL)(job)


@pytest.mark.parametrize("name", [42, None, b"a", ("a", 1)])
def test_a_name_of_the_wrong_type_is_shown_with_an_example(name: Any) -> None:
    for call in (lambda: acquire_lock(name, URL), lambda: locks.acquire(name), lambda: async_locks.lock(name)):
        with pytest.raises(ConfigurationError, match=rf"not {type(name).__name__}: .*'invoice:42'"):
            call()


def test_arguments_in_each_others_place_are_told() -> None:
    with pytest.raises(ConfigurationError, match="the name comes first") as swapped:
        acquire_lock("redis://me:hunter2@localhost", "invoice:42")
    assert "hunter2" not in str(swapped.value) + str(swapped.value.name)
    with pytest.raises(ConfigurationError, match="timeout=5"):
        acquire_lock("invoice:42", 5)  # type: ignore[arg-type]  # the mistake


def test_a_timedelta_is_told_in_seconds() -> None:
    minute: Any = datetime.timedelta(minutes=1)
    with pytest.raises(ConfigurationError, match=r"number of seconds, not timedelta: .*; write ttl=60"):
        acquire_lock("s", URL, ttl=minute)
    with pytest.raises(ConfigurationError, match="write timeout=60"):
        locks.acquire("s", timeout=minute)


def test_a_coroutine_function_for_on_lost_is_refused_where_nobody_would_await_it() -> None:
    async def told(lease: object) -> None: ...

    for use in (lambda: locks.acquire("i", on_lost=told), lambda: enter(acquire_lock("i", URL, on_lost=told))):
        with pytest.raises(ConfigurationError, match="pass a plain function"):
            use()
    assert locks.holder("i") is None


def test_a_release_too_many_says_which_lock() -> None:
    lease = locks.acquire("j")
    lease.release()
    with pytest.raises(NotHeld, match="'j' was released before"):
        lease.release()
    with pytest.raises(NotHeld, match="release unlocked lock: this object does not hold 'j'"):
        locks.lock("j").release()
    with pytest.raises(NotHeld, match="does not hold 'j'"):
        asyncio.run(async_locks.lock("j").release())


def test_a_lease_that_was_released_passes_no_check() -> None:
    async def main() -> None:
        async with acquire_lock("t", URL) as lease:
            lease.check()
        with pytest.raises(NotHeld, match="'t' was released before"):
            lease.check()

    with acquire_lock("t", URL) as lease:
        lease.check()
    with pytest.raises(NotHeld, match="'t' was released before"):
        lease.check()
    asyncio.run(main())


def test_who_waits_for_itself_without_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    lease = locks.acquire("u")
    waits = threading.Thread(target=lambda: locks.acquire("u").release(), name=threading.current_thread().name)
    waits.start()  # another thread, of the same label
    wait_until(lambda: locks._store.lines.followed(lease._hold), what="it waits")
    lease.release()
    waits.join()
    assert not caplog.records, "it waited for another thread"

    lease = locks.acquire("u")
    timer = threading.Thread(target=lambda: (wait_until(lambda: caplog.records, what="it is told"), lease.release()))
    timer.start()
    locks.acquire("u").release()
    timer.join()
    (told,) = caplog.records
    assert "for the lock 'u', which it holds itself: a lock is not re-entrant" in told.getMessage()
    assert (told.levelname, told.__dict__["lock_event"]) == ("WARNING", "stuck")


def test_a_task_that_waits_for_itself_without_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """And not one that waits for another task, whose label is the same."""
    entered: list[AsyncLease] = []

    async def twice() -> None:
        async with acquire_lock("u", URL) as lease:
            entered.append(lease)
            async with acquire_lock("u", URL) as lease:
                entered.append(lease)

    async def main() -> None:
        lease = await async_locks.acquire("u")
        other = asyncio.create_task(twice())
        await asyncio.sleep(0.05)
        assert not caplog.records, "it waits for another task"
        await lease.release()
        while not caplog.records:  # noqa: ASYNC110  # a log is no event
            await asyncio.sleep(0.01)
        await entered[0].release()
        await asyncio.wait_for(other, 10)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert len(entered) == 2
    assert ["this task waits" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("place", ["memory://two", "sqlite:///{}/locks.db"])
def test_who_waits_for_itself_through_another_manager_is_told(
    caplog: pytest.LogCaptureFixture, place: str, tmp_path: Path
) -> None:
    """And not one that waits for another thread or task, though its label be the same."""
    url = place.format(tmp_path)

    with LockManager(url) as outer, LockManager(url) as inner:
        lease = outer.acquire("u")
        waits = threading.Thread(
            target=lambda: inner.acquire("u").release(), name=threading.current_thread().name, daemon=True
        )
        waits.start()
        wait_until(lambda: (front := inner._store.lines.front("atomiclock:u")) and front.waited, what="it waits")
        lease.release()
        waits.join()
        assert not caplog.records, "it waited for another thread"
        lease = outer.acquire("u")
        timer = threading.Thread(target=lambda: (wait_until(lambda: caplog.records), lease.release()))
        timer.start()
        inner.acquire("u").release()
        timer.join()
    (told,) = caplog.records
    assert "this thread waits without a timeout for the lock 'u', which it holds itself" in told.getMessage()


@pytest.mark.parametrize("place", ["memory://two-tasks", "sqlite:///{}/locks.db"])
def test_a_task_that_waits_for_itself_through_another_manager_is_told(
    caplog: pytest.LogCaptureFixture, place: str, tmp_path: Path
) -> None:
    url = place.format(tmp_path)

    async def twice(outer: AsyncLockManager, inner: AsyncLockManager, entered: list[AsyncLease]) -> None:
        async with outer.acquire("u") as lease:
            entered.append(lease)
            async with inner.acquire("u") as lease:
                entered.append(lease)

    async def main() -> None:
        async with AsyncLockManager(url) as outer, AsyncLockManager(url) as inner:
            entered: list[AsyncLease] = []
            lease = await inner.acquire("u")
            other = asyncio.create_task(twice(inner, outer, entered))
            third = asyncio.create_task(outer.acquire("u"))
            await asyncio.sleep(0.1)
            assert not caplog.records, "they wait for another task"
            third.cancel()
            await lease.release()
            while not caplog.records:  # noqa: ASYNC110  # a log is no event
                await asyncio.sleep(0.01)
            await entered[0].release()
            await asyncio.wait_for(other, 10)
            assert len(entered) == 2

    asyncio.run(asyncio.wait_for(main(), 20))
    assert ["this task waits" in record.getMessage() for record in caplog.records] == [True]


def test_who_waits_for_itself_is_told_that_a_lock_is_not_reentrant() -> None:
    with locks.acquire("k"):
        with pytest.raises(LockTimeout, match="our own label, and a lock is not re-entrant"):
            locks.acquire("k", timeout=0.01)
        with pytest.raises(LockTimeout) as other:
            locks.acquire("k", timeout=0.01, owner="somebody else")
        assert "re-entrant" not in str(other.value)


def test_a_lock_object_shared_over_a_fork_says_to_acquire_anew() -> None:
    lock = locks.lock("l")
    lock.acquire()
    out, into = os.pipe()
    pid = os.fork()
    if not pid:  # pragma: no cover
        try:
            lock.release()
        except LockLost as error:
            os.write(into, str(error).encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out) as said:
        assert "acquire it anew here" in said.read()
    os.waitpid(pid, 0)
    lock.release()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("reddis://localhost", "did you mean 'redis'?"),
        ("memcache://localhost", "did you mean 'memcached'?"),
        ("mysql://localhost", "known are django, etcd"),
        ("file:///tmp/a.lock", "sqlite:///relative.db"),
        ("redis-sentinel://localhost", "Sentinel and Cluster are not served"),
        ("redis://localhost?timout=5", "did you mean 'timeout'?"),
        ("sqlite://locks.db", "sqlite:///relative/locks.db"),
        ("localhost:6379", "scheme://"),
        ("/tmp/locks", "for a lock in a file sqlite:///relative.db"),
        ("locks.db", "for a lock in a file sqlite:///relative.db"),
    ],
)
def test_a_url_that_nobody_serves_names_one_that_is(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        LockManager(url)


def test_a_path_in_place_of_a_url_is_told_as_one(tmp_path: Path) -> None:
    path: Any = tmp_path / "locks.db"
    for use in (lambda: LockManager(path), lambda: enter(acquire_lock("v", path))):
        with pytest.raises(ConfigurationError, match=re.escape(f"write 'sqlite:///{path}'")):
            use()
    with LockManager(f"sqlite:///{path}") as store, store.acquire("v"):
        assert path.exists()


@pytest.mark.parametrize(
    ("url", "extra"),
    [("redis://localhost", "redis"), ("memcached://localhost", "memcached"), ("etcd://localhost", "etcd")],
)
def test_a_missing_driver_names_the_scheme_and_the_extra(url: str, extra: str) -> None:
    driver = {"redis": "redis", "memcached": "pymemcache", "etcd": "hpack"}[extra]
    # In a process of its own: modules that are imported twice are two of each class.
    script = f"""
        import sys
        sys.modules[{driver!r}] = None
        from atomiclock import ConfigurationError, LockManager
        try:
            LockManager({url!r})
        except ConfigurationError as error:
            print(error)
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{extra}:// needs the package '{driver}': pip install 'atomiclock[{extra}]'"
    assert done.stdout.strip() == said, done.stderr


def test_a_class_in_place_of_a_client_is_told() -> None:
    redis = importlib.import_module("redis")
    with pytest.raises(ConfigurationError, match=re.escape("give a client, not its class: Redis(...)")):
        LockManager(redis.Redis)


@pytest.mark.parametrize("scheme", ["redis", "memcached", "etcd"])
def test_a_port_where_nobody_listens_is_named(scheme: str) -> None:
    port = free_port()
    with pytest.raises(BackendUnavailable, match=rf"'m': {scheme}://127.0.0.1:{port} is not reachable.*[Rr]efused"):
        enter(acquire_lock("m", f"{scheme}://127.0.0.1:{port}", timeout=10))


def test_a_port_of_another_server_is_named(
    redis_server: RedisServer, memcached_server: MemcachedServer, etcd_server: EtcdServer
) -> None:
    ports = {"redis": memcached_server.port, "memcached": redis_server.port, "etcd": redis_server.port}
    for scheme, port in ports.items():
        words = rf"{scheme}://127.0.0.1:{port} is not reachable: .*does not speak"
        with pytest.raises(BackendUnavailable, match=words):
            enter(acquire_lock("n", f"{scheme}://127.0.0.1:{port}", timeout=10))


def test_a_ttl_under_the_step_of_the_store_is_kept_by_our_own_clock(memcached_server: MemcachedServer) -> None:
    """memcached counts whole seconds. The holder's lease ends on time all the same, and before the store's."""
    store = LockManager(memcached_server.url)
    lease = store.acquire("o", ttl=0.2, renew=False)
    time.sleep(0.21)
    with pytest.raises(LockLost, match=r"its ttl of .* is over and renew=False"):
        lease.check()
    with store.acquire("o", timeout=10):
        pass


def test_who_looks_through_all_attributes_meets_no_hint() -> None:
    """As debuggers, mocks and documentation tools do."""
    for thing in (locks, async_locks, locks.lock("p"), acquire_lock("p", URL)):
        assert "__class__" in dict(inspect.getmembers(thing))
