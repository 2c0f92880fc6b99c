"""sqlite://: the processes of one machine exclude each other through one file, with nothing to install.

Time is the machine's boot clock together with the boot's id, so neither a jump of the wall clock nor a reboot
confuses anybody. Every change is one transaction, so its outcome is known, or it did not happen. A holder whose
process has died is noticed by whoever asks next. A waiter is woken by a datagram over loopback; it registers its
port first and looks again afterwards, so no release goes unnoticed, and a datagram that is lost costs one look.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _process
from .._options import flag_from_text
from .._url import URL
from ..errors import ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Wait
from ._identity import Identity, identity, is_dead
from ._sqlite_io import AsyncFileChannel, FileChannel, Listening, ring

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

LOOK_AGAIN = 0.5
"""Seconds after which a waiter that nobody woke looks again."""


class Row(NamedTuple):
    """A lock as the file has it."""

    fence: int
    token: str
    owner: str
    expires: float
    boot: str
    space: str
    pid: int
    started: int

    def live(self, now: float, me: Identity) -> bool:
        """Whether the lock still stands: not over, not from before a reboot, its holder not known to be dead."""
        if self.boot != me.boot or self.expires <= now:
            return False
        return not is_dead(self.holder)

    @property
    def holder(self) -> Identity:
        return Identity(self.boot, self.space, self.pid, self.started)


_SELECT = "SELECT fence, token, owner, expires, boot, space, pid, started FROM locks WHERE key = ?"


def _row(db: sqlite3.Connection, key: bytes) -> Row | None:
    found = db.execute(_SELECT, (key,)).fetchone()
    return None if found is None else Row(*found)


class SQLiteBackend:
    """Locks in one SQLite file, for the processes of this machine."""

    traits = Traits(
        scope="machine",
        fence="durable",
        waits="wake",
        survives_restart="yes",
        ttl_step=0.0,
        longest_ttl=1e9,
        loses="removal of the file",
    )
    request_bound = 3.0

    def __init__(self, path: str | None, durable: bool = False) -> None:
        # Fixed now: a process that changes its directory later must not change its lock file with it.
        self._path = None if path is None else os.path.abspath(path)
        self._durable = durable
        self.place = f"sqlite:///{self._path}" if path else "sqlite://"

    @classmethod
    def from_url(cls, url: URL) -> SQLiteBackend:
        options = url.take(durable=flag_from_text)
        if url.host or url.port or url.username:
            raise ConfigurationError(
                f"sqlite:// takes no host: write sqlite:///relative/{url.host}, sqlite:////absolute/{url.host}, "
                "or sqlite:// for this user's own file"
            )
        path = url.path[1:] if url.path not in ("", "/") else None
        if path is not None and (path.endswith("/") or path.startswith(":memory:") or "\0" in path):
            raise ConfigurationError(f"sqlite:///{path} names no file: for locks of one process take memory://")
        return cls(path, **options)

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        key, me = ask.key.encode("utf-8", "surrogatepass"), identity()

        def attempt(db: sqlite3.Connection) -> Granted | Busy:
            now = _process.clock()
            fresh = (key, ask.token, ask.owner.encode("utf-8", "replace"), now + ask.ttl, *me)
            row = _row(db, key)  # to look first spares those who find it held a write
            fence = _insert(db, fresh) if row is None else None
            if fence is not None:
                return Granted(fence)
            if row is not None and row.token != ask.token and row.live(now, me):
                return Busy(row.expires - now, _text(row.owner))
            db.execute("BEGIN IMMEDIATE")
            row = _row(db, key)
            if row is not None and row.token == ask.token:
                db.execute("UPDATE locks SET expires = ? WHERE key = ?", (now + ask.ttl, key))
                return Granted(row.fence, repeated=True)
            if row is not None and row.live(now, me):
                return Busy(row.expires - now, _text(row.owner))
            db.execute("DELETE FROM locks WHERE key = ?", (key,))
            return Granted(_insert(db, fresh))

        answer: Granted | Busy = yield attempt
        return answer

    def remove(self, ask: Remove) -> Steps[bool]:
        key, me = ask.key.encode("utf-8", "surrogatepass"), identity()

        def attempt(db: sqlite3.Connection) -> tuple[bool, bool]:
            removed = db.execute("DELETE FROM locks WHERE key = ? AND token = ?", (key, ask.token)).rowcount == 1
            # Looked for after the removal is there for all to see: a waiter registers first and looks afterwards.
            return removed, _somebody_waits(db, key)

        def wake(db: sqlite3.Connection) -> None:
            if _row(db, key) is None:
                _wake(db, key, me)

        removed, waited_for = yield attempt
        if waited_for:  # a step of its own, so that the removal is not repeated, in vain, if the file is busy
            yield wake
        return bool(removed)

    def extend(self, ask: Extend) -> Steps[bool]:
        key = ask.key.encode("utf-8", "surrogatepass")

        def attempt(db: sqlite3.Connection) -> bool:
            now = _process.clock()
            change = "UPDATE locks SET expires = ? WHERE key = ? AND token = ? AND expires > ?"
            return db.execute(change, (now + ask.ttl, key, ask.token, now)).rowcount == 1

        kept: bool = yield attempt
        return kept

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        key, me = ask.key.encode("utf-8", "surrogatepass"), identity()

        def look(db: sqlite3.Connection) -> Holder | None:
            row, now = _row(db, key), _process.clock()
            if row is None or not row.live(now, me):
                return None
            return Holder(_text(row.owner), row.token, row.fence, row.expires - now)

        holder: Holder | None = yield look
        return holder

    def wait(self, ask: Wait) -> Steps[None]:
        key, me = ask.key.encode("utf-8", "surrogatepass"), identity()

        def register(db: sqlite3.Connection, port: int, cookie: bytes) -> Identity | None:
            """Who holds the lock; `None` if it is free. From now on its release wakes us."""
            db.execute(
                "INSERT OR REPLACE INTO waiters (token, key, since, port, cookie, boot, space, pid, started) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (ask.token, key, ask.since, port, cookie, *me),
            )
            row = _row(db, key)
            return row.holder if row is not None and row.live(_process.clock(), me) else None

        def leave(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM waiters WHERE token = ?", (ask.token,))

        yield Listening(register, leave, min(ask.until, _process.clock() + LOOK_AGAIN))

    def channel(self) -> Channel:
        return FileChannel(self._path, self._durable)

    def async_channel(self) -> AsyncChannel:
        return AsyncFileChannel(self._path, self._durable)


def _insert(db: sqlite3.Connection, fresh: tuple[Any, ...]) -> int | None:
    """The fence of a lock that nobody had; `None` if somebody has it. The file never gives a fence twice."""
    cursor = db.execute(
        "INSERT INTO locks (key, token, owner, expires, boot, space, pid, started) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (key) DO NOTHING",
        fresh,
    )
    return cursor.lastrowid if cursor.rowcount == 1 else None


def _somebody_waits(db: sqlite3.Connection, key: bytes) -> bool:
    try:
        return db.execute("SELECT 1 FROM waiters WHERE key = ? LIMIT 1", (key,)).fetchone() is not None
    except sqlite3.OperationalError:  # busy: must not undo what was done; `wake` looks again
        return True


def _wake(db: sqlite3.Connection, key: bytes, me: Identity) -> None:
    """Wake who has waited longest, and forget those that died waiting."""
    waiters = db.execute(
        "SELECT token, port, cookie, boot, space, pid, started FROM waiters WHERE key = ? ORDER BY since", (key,)
    ).fetchall()
    for token, port, cookie, *who in waiters:
        if who[0] == me.boot and not is_dead(Identity(*who)) and ring(port, cookie):
            return
        db.execute("DELETE FROM waiters WHERE token = ?", (token,))


def _text(owner: bytes | str) -> str:
    return owner.decode("utf-8", "replace") if isinstance(owner, bytes) else owner
