"""DatabaseCache on SQLite: our rows beside Django's, and our connections beside the application's."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from atomiclock import AsyncLockManager, LockManager
from atomiclock.backends import _django_io
from atomiclock.backends._django_db import Row, Table, expiry, naive
from atomiclock.backends._django_io import AsyncPoolChannel, Pool
from atomiclock.backends._django_values import Value, unpacked
from atomiclock.errors import BackendUnavailable

URL = "django://database"
CONFIGURE = """
import json, os, sys, time
from django.conf import settings
settings.configure(**json.loads(os.environ["ATOMICLOCK_TEST_DJANGO"]))
from django.core.cache import caches
from atomiclock import LockManager
cache, locks = caches["database"], LockManager("django://database", namespace="")
"""


@pytest.fixture
def cache(django_project: dict[str, Any]) -> Iterator[Any]:
    """The cache as the application has it, empty."""
    from django.core.cache import caches

    caches["database"].clear()
    yield caches["database"]
    caches["database"].clear()


@pytest.fixture
def locks(cache: Any) -> Iterator[LockManager]:
    with LockManager(URL, namespace="") as locks:
        yield locks


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONFIGURE + script, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


RACE = """
kind, rounds = sys.argv[1], int(sys.argv[2])
cache.get("warm"), locks.holder("warm")
print("ready", flush=True)
start = float(sys.stdin.readline())
won, kept = [], []
for turn in range(rounds):
    time.sleep(max(0.0, start + turn * 0.02 - time.monotonic()))
    if kind == "django":
        got = cache.add(f"round-{turn}", "django", 600)
    else:
        got = locks.try_acquire(f"round-{turn}", ttl=600, renew=False)
    kept.append(got)  # a lease that is dropped is released
    if got: won.append(turn)
print(json.dumps(won))
os._exit(0)
"""


def test_one_of_us_and_of_django_gets_a_row_whether_it_is_new_or_expired(cache: Any, database: Path) -> None:
    rounds = 60
    for turn in range(0, rounds, 2):
        cache.add(f"round-{turn}", "expired", -60)
    racers = [python(RACE, kind, str(rounds)) for kind in ("django", "ours", "django", "ours")]
    for one in racers:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    start = str(time.monotonic() + 0.2)
    said = [one.communicate(start + "\n", timeout=60)[0] for one in racers]
    wins = sorted(turn for text in said for turn in json.loads(text))
    assert wins == list(range(rounds))


@pytest.mark.parametrize("look", [1, 2])
@pytest.mark.parametrize("expired", [False, True])
def test_who_comes_between_our_looks_and_our_write_gets_it_or_waits(
    look: int, expired: bool, cache: Any, locks: LockManager, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if expired:
        cache.add("a", "expired", -60)
    looks, came = 0, []
    original = Table.row

    def row(self: Table, db: sqlite3.Connection, key: str) -> Row | None:
        nonlocal looks
        found = original(self, db, key)
        looks += 1
        if looks == look:
            came.append(put(database, ":1:a", pickle.dumps("django")))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Table, "row", row)
        lease = locks.try_acquire("a")
    assert (lease is None, came) == ((True, [True]) if look == 1 else (False, [False]))
    if lease is not None:
        lease.release()


def put(database: Path, key: str, data: bytes) -> bool:
    """Write a row as others do, if nobody else is writing."""
    expires = str(datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(seconds=60))
    row = (key, base64.b64encode(data).decode(), expires)
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as db:
        try:
            db.execute("INSERT OR REPLACE INTO cache_entries (cache_key, value, expires) VALUES (?, ?, ?)", row)
        except sqlite3.OperationalError:
            return False
    return True


def test_a_row_of_django_is_not_taken_before_django_itself_would(cache: Any, locks: LockManager) -> None:
    begun = time.time()
    assert cache.add("a", "django", 1)
    expires = int(begun + 1)  # which is how Django cuts it down
    lease = None
    while lease is None:
        assert time.time() < expires + 10
        before = time.time()
        lease = locks.try_acquire("a")
    assert before >= expires + 0.99
    lease.release()


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_both_read_the_expiries_of_the_other_in_any_zone(cache: Any, aware: bool, zone: str) -> None:
    from django.test import override_settings

    with override_settings(USE_TZ=aware, TIME_ZONE=zone), LockManager(URL, namespace="") as locks:
        with locks.acquire("ours", ttl=50, renew=False):
            assert not cache.add("ours", "django", 60)
            assert cache.get("ours") is not None
            holder = locks.holder("ours")
            assert holder is not None
            assert 45 < (holder.remaining or 0) <= 50
        cache.add("theirs", "django", 50)
        holder = locks.holder("theirs")
        assert holder is not None
        assert 45 < (holder.remaining or 0) <= 51
        cache.add("over", "django", -5)
        locks.acquire("over", timeout=0).release()


@pytest.mark.parametrize(
    "change", [datetime(2025, 10, 26, 1, tzinfo=timezone.utc), datetime(2025, 3, 30, 1, tzinfo=timezone.utc)]
)
def test_a_change_of_summer_time_ends_no_lock_early(change: datetime) -> None:
    zone = ZoneInfo("Europe/Berlin")
    for before in (1, 20, 1800, 3599, 5000):
        for ttl in (0.5, 30.0, 4000.0):
            taken = change.timestamp() - before
            ends = expiry(taken, ttl, zone)
            row = Row("", Value("a", "b", ours=True), ends)
            moments = [taken + ttl * part / 50 for part in range(50)]
            assert all(row.live(naive(moment, zone)) for moment in moments)
            assert not row.live(naive(taken + ttl + 3601, zone))


def test_a_lock_does_not_vanish_with_a_transaction_of_the_application(cache: Any, locks: LockManager) -> None:
    from django.db import transaction

    with transaction.atomic():
        lease = locks.acquire("a")
        transaction.set_rollback(True)
    assert not cache.add("a", "django", 60)
    lease.release()


def test_a_lock_waits_for_another_writer(locks: LockManager, database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as db:
        db.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.4, db.execute, ["COMMIT"])
        timer.start()
        begun = time.monotonic()
        locks.acquire("a").release()
        assert time.monotonic() - begun > 0.3
        timer.join()


def test_a_writer_that_does_not_end_is_an_unknown_outcome(cache: Any, database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as db, LockManager(URL + "?io_timeout=0.4") as locks:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendUnavailable, match="transaction of this very thread"):
            locks.acquire("a", timeout=0.2)
        with pytest.raises(BackendUnavailable):
            locks.try_acquire("a")
        db.execute("ROLLBACK")
        locks.acquire("a", timeout=0).release()


def test_the_event_loop_runs_while_the_database_is_busy(cache: Any) -> None:
    async def main() -> float:
        worst, last = 0.0, time.monotonic()

        async def tick() -> None:
            nonlocal worst, last
            while True:
                await asyncio.sleep(0.005)
                worst, last = max(worst, time.monotonic() - last), time.monotonic()

        async with AsyncLockManager(URL) as locks:
            await (await locks.acquire("warm")).release()
            ticking = asyncio.create_task(tick())
            with slow_disk(0.6):
                await asyncio.sleep(0.1)
                lease = await locks.acquire("a", timeout=10)
            await lease.release()
            ticking.cancel()
        return worst

    assert asyncio.run(main()) < 0.3


@contextmanager
def slow_disk(seconds: float) -> Iterator[None]:
    """Another thread of this process has a transaction that takes its time."""

    def commit() -> None:
        with _django_io._gate:
            time.sleep(seconds)

    thread = threading.Thread(target=commit)
    thread.start()
    yield
    thread.join()


def test_what_was_cancelled_before_it_began_never_happens(tmp_path: Path) -> None:
    ran: list[object] = []
    pool = Pool(partial(sqlite3.connect, tmp_path / "x.db", check_same_thread=False), lambda error: error)

    async def main() -> None:
        channel = AsyncPoolChannel(pool)
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + 10
        with _django_io._gate:
            task = asyncio.create_task(channel.call(ran.append, deadline))
            await asyncio.sleep(0.1)  # its thread waits for the gate by now
            task.cancel()
            await asyncio.sleep(0)
        await channel.call(lambda db: None, deadline)
        channel.close()

    asyncio.run(main())
    assert not ran


def test_a_plain_with_on_the_thread_of_an_event_loop_works(cache: Any) -> None:
    async def main() -> None:
        with LockManager(URL) as locks, pytest.warns(RuntimeWarning, match="async with"):
            with locks.acquire("a"):
                assert locks.holder("a") is not None

    asyncio.run(main())


FORK = """
with locks.acquire("a"):
    def opened():
        with os.scandir("/proc/self/fd") as entries:
            links = [os.readlink(entry) for entry in entries if os.path.exists(entry)]
        return links.count(os.path.realpath(sys.argv[1]))
    before = opened()
    pid = os.fork()
    if pid == 0:
        os._exit(opened())
    print(before, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_no_connection_is_open_across_a_fork(cache: Any, database: Path) -> None:
    from django.db import connections

    connections.close_all()
    assert python(FORK, str(database)).communicate(timeout=30)[0] == "1 0\n"


def test_a_value_that_would_run_code_is_not_run(cache: Any, locks: LockManager, database: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    data = pickle.dumps(Hostile())
    assert put(database, ":1:a", data)
    assert locks.try_acquire("a") is None
    assert locks.holder("a") is not None
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)
    assert (tmp_path / "ran").exists(), "which it would have been"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"junk",
        b"\x80\x05.",
        pickle.dumps(5),
        pickle.dumps("atomiclock a"),
        pickle.dumps("worker 1 on host"),
        pickle.dumps(b"atomiclock a b"),
    ],
)
def test_a_value_of_others_is_nobodys_token(data: bytes) -> None:
    assert not unpacked(data).ours
