"""The lock file, its directory and its waiters' ports are the user's alone."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from servers import wait_until

from atomiclock import LockManager, LockTimeout
from atomiclock.errors import BackendRefused
from atomiclock.testing._facade import Colour, open_locks


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sqlite:// keeps its file, while every file is made for everybody that is not made with care."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state" / "deep"))
    before = os.umask(0)
    yield tmp_path / "state" / "deep" / "atomiclock"
    os.umask(before)


def use(url: str = "sqlite://") -> None:
    with LockManager(url) as locks:
        locks.acquire("a", timeout=5).release()


def refused(words: str, url: str = "sqlite://") -> None:
    with pytest.raises(BackendRefused, match=words) as raised:
        use(url)
    assert raised.value.name == "a"


def test_all_that_is_made_is_for_the_user_alone(home: Path) -> None:
    with LockManager("sqlite://") as locks, locks.acquire("a"):
        found = {path: path.stat().st_mode for path in (home.parent.parent, home.parent, home, *home.iterdir())}
    assert {stat.S_IMODE(mode) for mode in found.values() if stat.S_ISDIR(mode)} == {0o700}
    assert {stat.S_IMODE(mode) for mode in found.values() if stat.S_ISREG(mode)} == {0o600}
    assert {path.name for path in found} >= {"locks.db", "locks.db-wal", "locks.db-shm"}


def test_a_link_in_place_of_the_directory_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    home.parent.mkdir(mode=0o700, parents=True)
    home.symlink_to(tmp_path / "elsewhere")
    refused("is a link")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_directory_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    refused("belongs to another user")


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(home: Path, mode: int) -> None:
    use()
    home.chmod(mode)
    refused("chmod 700")
    home.chmod(0o700)
    use()


@pytest.mark.parametrize("part", ["", "-wal", "-shm"])
@pytest.mark.parametrize("link", [False, True])
def test_what_another_user_has_put_in_its_place_is_refused_in_a_directory_for_all(
    tmp_path: Path, part: str, link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    url = f"sqlite:///{folder}/locks.db"
    planted = folder / f"locks.db{part}"
    planted.symlink_to(tmp_path / "victim") if link else planted.touch()
    real = os.lstat

    def theirs(path: object, **options: int) -> os.stat_result:
        found = list(real(path, **options))  # type: ignore[call-overload]  # as it was called
        if str(path) == str(planted):
            found[4] = os.geteuid() + 1
        return os.stat_result(found)

    # Only root can give a file away, and no test should have to run as root.
    monkeypatch.setattr(os, "lstat", theirs)
    folder.chmod(0o1777)
    refused("made by another user", url)
    assert not (tmp_path / "victim").exists()
    monkeypatch.undo()
    planted.unlink()
    use(url)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_whoever_does_not_know_the_cookie_wakes_nobody(tmp_path: Path, colour: Colour) -> None:
    url = f"sqlite:///{tmp_path}/locks.db"
    locks = open_locks(colour, url)
    ended: list[object] = []

    def wait() -> None:
        try:
            locks.acquire("a", timeout=1.0)
        except LockTimeout as error:
            ended.append(error)

    def ports() -> list[tuple[int]]:
        with closing(sqlite3.connect(tmp_path / "locks.db")) as db:
            return db.execute("SELECT port FROM waiters").fetchall()

    with LockManager(url).acquire("a"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        wait_until(ports, 10)
        ((port,),) = ports()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while waiter.is_alive():
                sock.sendto(os.urandom(16), ("127.0.0.1", port))
                sock.sendto(b"x" * 1000, ("127.0.0.1", port))
                waiter.join(0.01)
    assert len(ended) == 1
    assert isinstance(ended[0], LockTimeout)
    assert ended[0].waited >= 0.9
    locks.close()
