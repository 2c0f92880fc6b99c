"""The lock file: where it is, what must be true of it, and a connection to it."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path

from ..errors import BackendRefused, BackendUnavailable
from . import Unknown

APPLICATION_ID = 0x61746C6B  # "atlk": tells our file from another program's database
SCHEMA_VERSION = 1
SCHEMA = f"""
CREATE TABLE locks (
    fence INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, token TEXT NOT NULL, owner BLOB NOT NULL,
    expires REAL NOT NULL, boot TEXT NOT NULL, space TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL);
CREATE TABLE waiters (
    token TEXT PRIMARY KEY, key BLOB NOT NULL, since REAL NOT NULL, port INTEGER NOT NULL, cookie BLOB NOT NULL,
    grace REAL, boot TEXT NOT NULL, space TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX waiters_in_order ON waiters (key, since);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2",
    "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs",
}  # fmt: skip
"""File systems that other machines may share: neither SQLite's locks nor our clock hold there."""

INSTEAD = "give another place as sqlite:////absolute/path.db"


def default_path() -> str:
    """The file of this user on this machine, in a directory that is only this user's."""
    from platformdirs import user_state_path  # needed for this default only

    folder = user_state_path("atomiclock")
    try:
        for one in (*reversed(folder.parents), folder):  # `parents=True` would let the umask decide about the others
            if not one.exists():
                one.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise BackendRefused(f"sqlite:// cannot make its directory {folder}: {error.strerror}; {INSTEAD}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise BackendRefused(f"sqlite://: its directory {folder} is a link, or no directory at all; {INSTEAD}")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        whose = "belongs to another user" if status.st_uid != os.geteuid() else "can be written by others: chmod 700 it"
        raise BackendRefused(f"sqlite://: its directory {folder} {whose}; {INSTEAD}")
    return str(folder / "locks.db")


def prepare(path: str) -> None:
    """Make the file, for its owner alone, if it is not there. Refuse a place that cannot hold locks."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise BackendRefused(f"sqlite:///{path}: there is no directory {folder}: make it, or {INSTEAD}")
    kind = file_system(folder)
    if kind in NETWORK:
        raise BackendRefused(
            f"sqlite:///{path} is on a network file system ({kind}), where locks of several machines would not "
            f"exclude each other: use redis:// for that, or for one machine {INSTEAD} on a local disk"
        )
    _refuse_planted(path, folder)
    try:
        # Never opened if it exists: closing it would drop the locks that SQLite has on it in this process.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))
    except FileExistsError:
        if not os.path.isfile(path):
            raise BackendRefused(f"sqlite:///{path} is not a file; {INSTEAD}") from None
    except OSError as error:
        raise BackendRefused(f"sqlite:///{path} cannot be written: {error.strerror}; {INSTEAD}") from error


def _refuse_planted(path: str, folder: str) -> None:
    """Refuse what another user has put in our file's place, where everybody may put something, as in /tmp."""
    around = os.stat(folder)
    if not (around.st_mode & stat.S_ISVTX and around.st_mode & stat.S_IWOTH):
        return
    for part in (path, f"{path}-wal", f"{path}-shm"):
        with suppress(FileNotFoundError):
            if os.lstat(part).st_uid not in (os.geteuid(), around.st_uid):
                raise BackendRefused(f"sqlite:///{path}: {part} was made by another user; {INSTEAD}")


def file_system(folder: str, mounts: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that `folder` is on; "" where the system does not tell."""
    real, best, kind = os.path.realpath(folder), "", ""
    try:
        lines = Path(mounts).read_bytes().splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(b" - ")
        # Spaces are written \\040; every other byte may stand for itself.
        point = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), left.split(b" ")[4]))
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # the later of two on the same point covers the earlier
            best, kind = point, os.fsdecode(right.split(b" ")[0])
    return kind


def connect(path: str, durable: bool) -> sqlite3.Connection:
    """An open connection, the file set up. SQLite itself does not wait for another writer."""
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION or not _is_ours(db):
            _set_up(db, path)
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal" and (mode := db.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
            raise BackendRefused(f"sqlite:///{path}: this file system cannot do write-ahead logging; {INSTEAD}")
        return db
    except BaseException:
        db.close()
        raise


def sweep(db: sqlite3.Connection, now: float, boot: str) -> None:
    """Forget what was left behind by processes that died, and never asked for again."""
    with suppress(sqlite3.OperationalError):  # busy: then the next one that opens the file does it
        db.execute("DELETE FROM locks WHERE expires < ? OR boot <> ?", (now, boot))
        db.execute("DELETE FROM waiters WHERE boot <> ?", (boot,))


def _is_ours(db: sqlite3.Connection) -> bool:
    return bool(db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)


def _set_up(db: sqlite3.Connection, path: str) -> None:
    db.execute("PRAGMA page_size = 1024")  # a lock is short: what is logged for each change is a page (14 us less)
    db.execute("BEGIN IMMEDIATE")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if _is_ours(db):
        if version != SCHEMA_VERSION:
            raise BackendRefused(f"sqlite:///{path} was made by another version of atomiclock; {INSTEAD}")
        db.execute("ROLLBACK")  # somebody else was faster
        return
    if version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise BackendRefused(f"sqlite:///{path} is another program's database; {INSTEAD}")
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    db.execute("COMMIT")


def explain(error: sqlite3.Error | OSError, path: str) -> Exception:
    """What an error means for the lock. `Unknown` is busy: nothing was done, and it may be tried again."""
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return Unknown(f"sqlite:///{path}: {error.strerror}", sent=False)
        return BackendRefused(f"sqlite:///{path} cannot be used: {error.strerror}; {INSTEAD}")
    text = str(error)
    if "unable to open" in text and os.access(path, os.R_OK | os.W_OK):  # which is how SQLite says EMFILE
        return Unknown(f"sqlite:///{path}: {text}, perhaps for too many open files", sent=False)
    if isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text):
        return Unknown(f"sqlite:///{path} is busy: {text}", sent=False)
    refused = (
        "readonly",
        "unable to open",
        "not a database",
        "malformed",
        "authoriz",
        "no such table",
        "no such column",
    )
    if any(word in text for word in refused):
        return BackendRefused(f"sqlite:///{path} cannot be used: {text}; {INSTEAD}")
    return BackendUnavailable(f"sqlite:///{path}: {text}")
