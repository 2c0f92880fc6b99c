"""KeyboardInterrupt, or Celery's soft time limit, wherever CPython can raise one in acquire, extend and release.

CPython looks for signals when a function begins, when a loop turns, and after a call of a C function (before 3.11
after any call): those are the points tried here, in our frames and in all that they call. One remains that no
library can cover: after the last instruction of a bare acquire(), before its caller has stored the result. `with
acquire_lock(...)` has none, since the object that is entered knows its lease already.
"""

from __future__ import annotations

import dis
import gc
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import redis
from leftovers import BACKENDS, left_in, url_of
from proxy import Proxy
from servers import wait_until
from tally import LONG, chosen, note
from wire import wire_to

from atomiclock import Lease, LockManager, NotHeld, acquire_lock

SAMPLE = 40
TTL = 5
"""Long enough to tell what is taken back from what ends; short, since on memcached an attempt that was given up is
looked after, over a connection of its manager, until its ttl is over: in the long form there are thousands."""
RETURNS_CHECK = sys.version_info < (3, 11)


@pytest.fixture(autouse=True)
def collect() -> Iterator[None]:
    """Sockets that were interrupted in the making are nobody's: collect them before the next test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Interrupter:
    """Raises `error` at the `at`-th point; counts the points if that is never reached."""

    def __init__(self, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.at = at
        self.error = error
        self.points = 0
        self.where = ""
        self._before: dict[FrameType, int] = {}
        self._returned: FrameType | None = None

    def __enter__(self) -> Interrupter:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self._before.clear()  # a frame that is kept keeps its leases
        self._returned = None

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        # To raise from a trace function inside a generator expression crashes CPython 3.11.
        if code.co_filename == __file__ or "importlib" in code.co_filename or code.co_name == "<genexpr>":
            return None
        caller: FrameType | None = frame
        while caller is not None and caller.f_code.co_filename != __file__:
            if caller.f_code.co_name == "__del__":
                return None  # from there nothing is raised
            caller = caller.f_back
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "return":
            self._before.pop(frame, None)
            self._returned = frame.f_back
        elif event == "opcode":
            before = self._before.get(frame)
            names = op_names(frame.f_code)
            if before is not None and self._checks(frame, names[before], names[frame.f_lasti]):
                self._point(frame)
            self._before[frame] = frame.f_lasti
            self._returned = None
        return self._stepped

    def _checks(self, frame: FrameType, done: str, following: str) -> bool:
        if "BACKWARD" in done or done in ("JUMP_ABSOLUTE", "RESUME"):
            return True
        if not done.startswith("CALL"):
            return False
        return self._returned is not frame or (RETURNS_CHECK and following != "RETURN_VALUE")

    def _point(self, frame: FrameType) -> None:
        self.points += 1
        if self.points == self.at:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
            raise self.error


_op_names: dict[CodeType, dict[int, str]] = {}


def op_names(code: CodeType) -> dict[int, str]:
    if code not in _op_names:
        _op_names[code] = {step.offset: step.opname for step in dis.get_instructions(code)}
    return _op_names[code]


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest) -> str:
    url = url_of(request)
    return f"{url}?io_timeout=2" if "127.0.0.1" in url else url


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    note(f"{sum(TRIED.values())} interrupts inside acquire, extend and release: {dict(TRIED)}")


TRIED: Counter[str] = Counter()


class Subject:
    """One way to take a lock and give it back, or to keep it; `release` is what the caller knows."""

    def __init__(self, url: str, name: str, way: str, warm: bool) -> None:
        self.url, self.name, self._way = url, name, way
        self.manager = LockManager(url, ttl=TTL)
        if warm:
            self.manager.holder(name)
        self.release: Callable[[], Any] | None = None
        self.lease: Lease | None = None
        if way == "extended":
            self.lease = self.manager.acquire(name, timeout=5, renew=False)
            self.release = self.lease.release

    def run(self) -> None:
        getattr(self, self._way)()

    def managed(self) -> None:
        lease = self.manager.acquire(self.name, timeout=5)
        self.release = lease.release
        lease.release()

    def like_threading(self) -> None:
        lock = self.manager.lock(self.name)
        self.release = lock.release  # callers of threading.Lock release in `finally`
        lock.acquire()
        lock.release()

    def with_block(self) -> None:
        with acquire_lock(self.name, self.url, timeout=5, ttl=TTL):
            pass

    def with_lock(self) -> None:
        with self.manager.lock(self.name):
            pass

    def with_lease(self) -> None:
        with self.manager.acquire(self.name, timeout=5):
            pass

    def extended(self) -> None:
        assert self.lease is not None
        self.lease.extend()
        self.lease.extend(2 * TTL)
        self.lease.extend(TTL - 1)


def a_socket_may_be_left(test: Callable[..., None]) -> Callable[..., None]:
    """redis-py's connect leaves a socket that it was about to use to the garbage collector."""
    for warning in (".*socket:pytest.PytestUnraisableExceptionWarning", "unclosed:ResourceWarning"):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


WAYS = ("managed", "like_threading", "with_block", "with_lock", "with_lease", "extended")


@a_socket_may_be_left
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("way", WAYS)
def test_interrupt_at_any_point_leaves_no_lock_that_the_caller_does_not_know_of(
    url: str, way: str, warm: bool, request: pytest.FixtureRequest
) -> None:
    witness = LockManager(url)
    foreign = witness.acquire(f"foreign {way} {warm}", ttl=600, timeout=0)
    for _ in range(2):  # the first makes what the process has but once
        subject = Subject(url, "count", way, warm)
        counter = Interrupter(0)
        with counter:
            subject.run()
        settle(subject, witness)
        subject.manager.close()
    points = range(1, counter.points + 1)
    step = 1 if LONG else max(1, len(points) // SAMPLE)
    wrong: list[str] = []
    tried = 0
    for at in points[at_random(step) :: step]:
        subject = Subject(url, f"name {at}", way, warm)
        interrupted = False
        with Interrupter(at) as interrupter:
            try:
                subject.run()
            except KeyboardInterrupt:
                interrupted = True
            except BaseException as error:
                wrong.append(f"{at}: {error!r}")
        tried += interrupted
        try:
            settle(subject, witness)
            assert subject.manager.try_acquire(foreign.name) is None, "answered by an old reply"
        except BaseException as error:
            wrong.append(f"{at} {interrupter.where}: {error!r}")
        subject.manager.close()
    foreign.release()
    witness.close()
    TRIED[url.partition(":")[0]] += tried
    assert not wrong, "\n".join(wrong)
    wait_until(lambda: left_in(url, request) == [], 5, "nothing stays in the store")
    assert tried >= min(10, len(points) // (2 * step))


def at_random(step: int) -> int:
    """Where a sample begins: another point in each run."""
    return time.monotonic_ns() // 1000 % step


def settle(subject: Subject, witness: LockManager) -> None:
    """What a caller does after an interrupt: release what it knows of. Then nothing may be left."""
    if subject.lease is not None:
        holder = witness.holder(subject.name)
        assert holder is not None
        assert holder.token == subject.lease.token
        assert 0 < subject.lease.remaining <= (holder.remaining or 0.0), (
            "it believes no longer than the store will keep it"
        )
        subject.lease.extend()
    if subject.release is not None:
        with suppress(NotHeld):
            subject.release()
    wait_until(lambda: witness.holder(subject.name) is None, TTL / 2, "free, before the ttl is over")


class SoftTimeLimit(Exception):
    """As Celery raises it from its signal handler: not even a BaseException of its own."""


@contextmanager
def raised_after(seconds: float, error: type[BaseException]) -> Iterator[None]:
    def handler(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@a_socket_may_be_left
@pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimit])
def test_signal_while_a_reply_is_on_its_way_leaves_nothing_and_no_old_reply(
    proxy: Proxy, look: redis.Redis, error: type[BaseException]
) -> None:
    locks = LockManager(proxy.url)
    locks.holder("warm up")
    look.set("atomiclock:foreign", "other", px=600_000)
    proxy.latency = 0.02
    interrupted = 0
    for index in range(chosen(50, 400)):
        name, lease = f"name {index}", None
        try:
            with raised_after(0.0005 + 0.048 * (index % 50) / 50, error):
                lease = locks.acquire(name, timeout=5)
                lease.release()
        except error:
            interrupted += 1
        assert locks.try_acquire("foreign") is None
        if lease is not None:
            with suppress(NotHeld):
                lease.release()
        key = next(iter(look.scan_iter(f"atomiclock:name_{index}*")), None)
        wait_until(lambda name=name: locks.holder(name) is None, 3, f"free after the interrupt, {key}")
    assert interrupted > 25
    proxy.clear()
    locks.close()
    wait_until(lambda: [key for key in look.keys("*") if ":info" in key] == [], 3)


@pytest.mark.parametrize(("backend", "error"), [("memcached", SoftTimeLimit), ("etcd", KeyboardInterrupt)])
def test_signal_while_any_reply_is_late_leaves_nothing_and_no_old_reply(
    backend: str, error: type[BaseException], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.LATE", 0.02)
    server, interrupted, tries = request.getfixturevalue(f"{backend}_server"), 0, chosen(30, 300)
    with wire_to(server.port, http2=backend == "etcd") as wire, LockManager(server.url) as witness:
        locks = LockManager(f"{backend}://127.0.0.1:{wire.port}")
        locks.acquire("warm up").release()
        with witness.acquire("foreign", ttl=600):
            wire.strike("reply late")
            for index in range(tries):
                name, lease = f"name {index}", None
                try:
                    with raised_after(0.0005 + 0.05 * (index % 30) / 30, error):
                        lease = locks.acquire(name, timeout=5)
                        lease.release()
                except error:
                    interrupted += 1
                assert locks.try_acquire("foreign") is None
                if lease is not None:
                    with suppress(NotHeld):
                        lease.release()
                wait_until(lambda name=name: witness.holder(name) is None, 3, "free after the interrupt")
        wire.heal()
        locks.close()
    assert interrupted > tries / 2
    wait_until(lambda: left_in(server.url, request) == [], 5, "nothing stays in the store")


def test_signal_ends_a_wait_and_leaves_no_waiter(url: str) -> None:
    locks = LockManager(url)
    held = locks.acquire("x")
    for _ in range(5):
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt), raised_after(0.05, KeyboardInterrupt):
            locks.acquire("x", timeout=10)
        assert time.monotonic() - begun < 1
    held.release()
    begun = time.monotonic()
    locks.acquire("x", timeout=5).release()
    assert time.monotonic() - begun < 0.5
    locks.close()
