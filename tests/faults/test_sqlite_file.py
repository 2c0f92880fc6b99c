"""The lock file: places that cannot hold locks, files that are something else, and files that vanish."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from colours import Face
from servers import wait_until
from test_processes import SOURCE, child, count_up, line_of

from atomiclock import BackendUnavailable, ConfigurationError, LockLost, LockManager, _process
from atomiclock.backends import _sqlite_file, _sqlite_io
from atomiclock.backends._identity import identity
from atomiclock.backends._sqlite_file import NETWORK, file_system, prepare
from atomiclock.backends.sqlite import RETURNING
from atomiclock.errors import BackendRefused

NOBODY = 65534


def refused(face: Face, path: object, match: str) -> None:
    begun = time.monotonic()
    with pytest.raises(BackendRefused, match=match) as caught:
        face.manager(f"sqlite:///{path}").acquire("x", timeout=5)
    assert time.monotonic() - begun < 1
    assert isinstance(caught.value, ConfigurationError)


def test_directory_that_is_missing_is_refused_by_name(face: Face, tmp_path: Path) -> None:
    refused(face, tmp_path / "missing" / "locks.db", "no directory .*missing")


def test_directory_as_file_is_refused(face: Face, tmp_path: Path) -> None:
    refused(face, tmp_path, "not a file")


def test_proc_is_refused(face: Face) -> None:
    refused(face, "/proc/locks.db", "cannot be written")


def test_another_programs_database_is_refused_and_untouched(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()
    refused(face, path, "another program's database")
    assert path.read_bytes() == before


def test_file_that_is_no_database_is_refused_and_untouched(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes\n" * 1000)
    refused(face, path, "not a database")
    assert path.read_text() == "notes\n" * 1000


def test_read_only_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    code = f"""
from atomiclock import LockManager
try:
    LockManager("sqlite:///{folder}/locks.db").acquire("x", timeout=5)
except Exception as error:
    print(type(error).__name__, error)
"""
    for parent in (tmp_path, *tmp_path.parents):
        if os.getuid() == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", "import atomiclock.backends.sqlite, os\n" + as_nobody() + code],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("BackendRefused"), done.stderr
    assert "cannot be written" in done.stdout
    assert list(folder.iterdir()) == []


def as_nobody() -> str:
    """Code that gives up root, for whom no directory is read-only. What nobody may not read is imported first."""
    imports = "import encodings.unicode_escape, platformdirs, random, time, socket, asyncio, atomiclock._manager\n"
    return imports + (f"os.setgid({NOBODY}); os.setuid({NOBODY})\n" if os.getuid() == 0 else "")


def test_file_is_readable_by_its_owner_alone(face: Face, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with face.manager(f"sqlite:///{tmp_path}/locks.db").acquire("x"):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert "locks.db" in modes


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_network_file_system_is_recognised_by_the_innermost_mount(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"40 22 0:40 / /mnt/share\\040d rw,relatime shared:2 - {kind} server:/export rw\n"
        "41 40 8:2 / /mnt/share\\040d/local rw - xfs /dev/sdb1 rw\n"
        "42 22 8:2 / /mnt/share rw - btrfs /dev/sdc1 rw\n"
    )
    assert file_system("/mnt/share d/sub", str(mounts)) == kind
    assert kind in NETWORK
    assert file_system("/mnt/share d/local/sub", str(mounts)) == "xfs"
    assert file_system("/mnt/share/sub", str(mounts)) == "btrfs"
    assert file_system("/mnt/shared", str(mounts)) == "ext4"
    assert file_system("/", str(tmp_path / "missing")) == ""


def test_mount_point_with_any_characters_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(
        b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        b"23 22 0:40 / /mnt/\xc3\xa9t\xc3\xa9 rw - nfs4 server:/export rw\n"
        b"24 22 0:41 / /mnt/\xff\\134\\040x rw - cifs server:/export rw\n"
    )
    assert file_system("/mnt/été/sub", str(mounts)) == "nfs4"
    assert file_system(os.fsdecode(b"/mnt/\xff\\ x/sub"), str(mounts)) == "cifs"


def test_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomiclock.backends._sqlite_file.file_system", lambda folder: "nfs4")
    with pytest.raises(BackendRefused, match="network file system"):
        prepare(str(tmp_path / "locks.db"))
    assert list(tmp_path.iterdir()) == []


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def test_file_that_is_removed_while_held_is_told_and_made_anew(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "locks.db"
    locks = face.manager(f"sqlite:///{path}")
    lease = locks.acquire("x", ttl=3)
    remove(path)
    begun = time.monotonic()
    while not lease.lost:
        assert time.monotonic() - begun < 3 / 3 + 1.5, "told within one renewal interval"
        time.sleep(0.01)
    next_lease = locks.acquire("x", timeout=2)
    with pytest.raises(LockLost):
        lease.release()
    assert path.exists()
    next_lease.check()
    next_lease.release()


RACE = """
import sys, time
from atomiclock import LockManager
locks = LockManager(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    url, start = line.split()
    locks = LockManager(url)
    while time.time() < float(start): pass
    lease = locks.acquire("x", timeout=10)
    lease.release()
    locks.close()
    print("done", lease.fence >> 8, flush=True)
"""


def test_two_processes_that_make_the_file_at_once_both_lock(tmp_path: Path) -> None:
    with child(RACE, "memory://") as one, child(RACE, "memory://") as two:
        assert line_of(one) == line_of(two) == "ready"
        for index in range(30):
            path = tmp_path / f"{index}.db"
            for process in (one, two):
                assert process.stdin is not None
                process.stdin.write(f"sqlite:///{path} {time.time() + 0.02}\n")
                process.stdin.flush()
            assert line_of(one) != line_of(two), "each has a fence of its own"


CHURN = """
import sys
from atomiclock import LockManager
locks = LockManager(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    with locks.acquire(f"name {number % 7}", timeout=10, renew=False) as lease:
        lease.extend()
"""


def test_process_killed_in_the_middle_of_writes_leaves_a_sound_file_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks.db"
    url = f"sqlite:///{path}"
    locks = LockManager(url)
    fence = locks.acquire("x", timeout=5).fence or 0
    for _ in range(15):
        with child(CHURN, url) as process:
            assert line_of(process) == "ready"
            time.sleep(random.uniform(0.01, 0.05))
            process.kill()
            process.wait()
        for index in range(7):
            begun = time.monotonic()
            lease = locks.acquire(f"name {index}", timeout=5)
            assert time.monotonic() - begun < 1
            assert (lease.fence or 0) > fence
            fence = lease.fence or 0
            lease.release()
    locks.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


HAMMER = """
import sys
sys.path[:0] = sys.argv[4:]
from test_processes import count_up
count_up((sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_eight_processes_never_count_at_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    assert count_up is not None
    folder = Path(__file__).parent
    command = [
        sys.executable,
        "-c",
        HAMMER,
        f"sqlite:///{tmp_path}/locks.db",
        str(counter),
        "100",
        str(folder),
        str(folder.parent),
    ]
    processes = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": SOURCE}) for _ in range(8)]
    assert [process.wait(60) for process in processes] == [0] * 8
    assert counter.read_text() == "800"


def test_writer_that_never_ends_makes_the_file_unavailable_within_the_timeout(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "locks.db"
    locks = face.manager(f"sqlite:///{path}")
    lease = locks.acquire("held", renew=False)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for call, bound in ((lambda: locks.acquire("x", timeout=0.5), 0.5), (lease.extend, 3), (lease.release, 3)):
        face.longest_stall()
        begun, since = time.monotonic(), face.clock()
        with pytest.raises(BackendUnavailable):
            call()
        assert time.monotonic() - begun > 0.4
        assert face.clock() - since < bound + 0.7
        assert face.longest_stall() < 0.4
    blocker.execute("ROLLBACK")
    blocker.close()
    lease.release()
    locks.acquire("x", timeout=2).release()


def test_a_task_that_is_woken_in_the_moment_it_looks_around_has_been_woken(tmp_path: Path) -> None:
    """Once the wake-up was taken for the alarm that comes ten times a second, and was lost."""

    async def main() -> float:
        channel = _sqlite_io.AsyncFileChannel(str(tmp_path / "locks.db"), False)
        mailbox: list[tuple[int, bytes]] = []

        def register(_: object, port: int, cookie: bytes) -> object:
            mailbox.append((port, cookie))
            return identity()  # somebody who lives

        now = _process.clock()
        waiting = asyncio.create_task(channel.call(_sqlite_io.Listening(register, now + 5), now + 9))
        while not mailbox:  # noqa: ASYNC110  # the callback runs inside a transaction, where no event belongs
            await asyncio.sleep(0.01)
        assert _sqlite_io.ring(*mailbox[0])
        time.sleep(2 * _sqlite_io.GLANCE)  # noqa: ASYNC251  # so that both are there when the loop goes on
        rung = time.monotonic()
        await waiting
        channel.close()
        return time.monotonic() - rung

    assert asyncio.run(main()) < 2


def test_a_cycle_is_two_short_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    opened: list[sqlite3.Connection] = []

    def connect(*args: Any) -> sqlite3.Connection:
        db = _sqlite_file.connect(*args)
        db.set_trace_callback(said.append)
        opened.append(db)
        return db

    monkeypatch.setattr(_sqlite_io, "connect", connect)
    with LockManager(f"sqlite:///{tmp_path / 'locks.db'}") as locks:
        locks.acquire("x").release()
        said.clear()
        for _ in range(10):
            locks.acquire("x").release()
        assert len(opened) == 1
    writes = [statement for statement in said if not statement.startswith("SELECT")]
    assert (len(said), len(writes)) == (20, 20), "each is one statement by itself"


def test_what_was_found_taken_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A try for nothing writes once; the next ones only read, until the lock was had again."""
    said: list[str] = []

    def connect(*args: Any) -> sqlite3.Connection:
        db = _sqlite_file.connect(*args)
        db.set_trace_callback(said.append)
        return db

    url = f"sqlite:///{tmp_path / 'locks.db'}"
    with LockManager(url) as holder, LockManager(url) as locks:
        locks.acquire("warm up").release()
        monkeypatch.setattr(_sqlite_io, "connect", connect)
        locks.close()
        with holder.acquire("x"):
            assert locks.try_acquire("x") is None
            said.clear()
            for _ in range(5):
                assert locks.try_acquire("x") is None
            assert [statement.split()[0] for statement in said] == ["SELECT"] * 5
        for expected in (["SELECT", "INSERT", "DELETE"], ["INSERT", "DELETE"]):
            said.clear()
            locks.acquire("x").release()
            assert [statement.split()[0] for statement in said] == expected


def test_a_handoff_writes_as_little_as_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers exclude each other, so whoever writes for nothing is in the way of who is to have the lock."""
    said: dict[int, list[str]] = {}

    def connect(*args: Any) -> sqlite3.Connection:
        db = _sqlite_file.connect(*args)
        mine = said.setdefault(threading.get_ident(), [])
        db.set_trace_callback(lambda statement: mine.append(" ".join(statement.split())))
        return db

    def waits() -> bool:
        with closing(sqlite3.connect(path)) as db:
            return bool(db.execute("SELECT 1 FROM waiters").fetchone())

    monkeypatch.setattr(_sqlite_io, "connect", connect)
    path = tmp_path / "locks.db"
    ours, theirs = (LockManager(f"sqlite:///{path}") for _ in range(2))
    lease = ours.acquire("x")
    ready: SimpleQueue[int] = SimpleQueue()

    def other() -> None:
        their_lease = theirs.acquire("x")
        ready.put(threading.get_ident())
        wait_until(waits, 10)
        their_lease.release()

    thread = threading.Thread(target=other)
    thread.start()
    wait_until(waits, 10)
    said[threading.get_ident()].clear()
    lease.release()
    ours.acquire("x", timeout=10).release()
    thread.join(10)
    mine, others = said[threading.get_ident()], said[ready.get()]
    offers = ["BEGIN IMMEDIATE", "DELETE FROM locks", "SELECT token, port", "DELETE FROM waiters", "INSERT INTO locks"]
    assert_begins(mine, ["DELETE FROM locks", *offers, "COMMIT", "INSERT OR REPLACE INTO waiters"])
    first = next(index for index, found in enumerate(others) if found.startswith("INSERT OR REPLACE INTO waiters"))
    confirms = ["UPDATE locks"] if RETURNING else ["SELECT fence", "UPDATE locks"]
    looks = ["SELECT fence"]  # while it waits
    assert_begins(others[first:], ["INSERT OR REPLACE INTO waiters", *looks, *confirms, *offers, "COMMIT"])


def assert_begins(statements: list[str], shapes: list[str]) -> None:
    assert len(statements) >= len(shapes), statements
    wrong = [pair for pair in zip(statements, shapes, strict=False) if not pair[0].startswith(pair[1])]
    assert wrong == [], statements
