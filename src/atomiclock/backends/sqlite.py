"""sqlite://: the processes of one machine exclude each other through one file, with nothing to install.

Time is the machine's boot clock together with the boot's id, so neither a jump of the wall clock nor a reboot
confuses anybody. Every change is one transaction, so its outcome is known, or it did not happen. A holder whose
process has died is noticed by whoever asks next. A waiter is woken by a datagram over loopback; it registers its
port first and looks again afterwards, so no release goes unnoticed, and a datagram that is lost costs one look.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _process
from .._options import flag_from_text
from .._url import URL
from ..errors import BackendRefused, ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Wait
from ._identity import Identity, identity, is_dead
from ._sqlite_io import AsyncFileChannel, FileChannel, Listening, ring

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

LOOK_AGAIN = 0.5
"""Seconds after which a waiter that nobody woke looks again."""
UNKNOWN_SPACE = "?"
"""The pid namespace of a holder whose death nobody shall notice; real ones have brackets in their names."""
MOST_NOTED = 1000
"""Keys of which something is remembered."""
GRACE = 0.05
"""Seconds for which a free lock is kept for the waiter whose turn it is."""


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
    def plausible(self) -> bool:
        texts = type(self.token) is str and type(self.owner) in (bytes, str)
        return texts and type(self.expires) is float and math.isfinite(self.expires) and self.holder.plausible

    @property
    def holder(self) -> Identity:
        return Identity(self.boot, self.space, self.pid, self.started)


_SELECT = "SELECT fence, token, owner, expires, boot, space, pid, started FROM locks WHERE key = ?"


def _row(db: sqlite3.Connection, key: bytes) -> Row | None:
    found = db.execute(_SELECT, (key,)).fetchone()
    if found is None:
        return None
    row = Row(*found)
    if not row.plausible:
        raise BackendRefused("a row of the lock file was altered: it is none of ours; remove the file, or give another")
    return row


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
        self._left: dict[str, float] = {}  # keys whose release has just woken a waiter, and when
        self._taken: set[str] = set()  # keys that were found taken: a look spares the next who finds that a write
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
        if ask.waiting and self._left and self._just_left_to_another(ask):
            return Busy(GRACE, "a waiter who came before")
        key, me = ask.key.encode("utf-8", "surrogatepass"), identity()
        in_queue = ask.notes is not None and "waits" in ask.notes
        looks_first = in_queue or ask.key in self._taken

        def attempt(db: sqlite3.Connection) -> Granted | Busy:
            now = _process.clock()
            # If the holder's death is to set nobody free: in another pid namespace nobody can see it.
            who = me._replace(space=UNKNOWN_SPACE) if ask.outlives else me
            fresh = (key, ask.token, ask.owner.encode("utf-8", "replace"), now + ask.ttl, *who)
            row = _row(db, key) if looks_first else None
            if row is None and not in_queue:
                fence = _insert(db, _INSERT_IF_NOBODY_WAITS, (*fresh, key))
                if fence is not None:
                    return Granted(fence)
                row = _row(db, key)
            if row is not None and row.token != ask.token and row.live(now, me):
                return Busy(row.expires - now, _text(row.owner))
            return _take(db, ask, fresh, now, me)

        answer: Granted | Busy = yield attempt
        if isinstance(answer, Granted):
            self._taken.discard(ask.key)
        else:
            if len(self._taken) >= MOST_NOTED:
                self._taken.clear()
            self._taken.add(ask.key)
        return answer

    def _just_left_to_another(self, ask: Add) -> bool:
        """Whether our own release is just waking a waiter: to look now would only be in its way."""
        now = _process.clock()
        return now - self._left.pop(ask.key, 0.0) < GRACE and ask.deadline - now > 4 * GRACE

    def remove(self, ask: Remove) -> Steps[bool]:
        key, me = ask.key.encode("utf-8", "surrogatepass"), identity()

        def attempt(db: sqlite3.Connection) -> tuple[bool, bool]:
            if RETURNING:  # waiters are counted in the removal's own transaction: they register first and look then
                waiters = db.execute(_REMOVE_AND_LOOK, (key, ask.token)).fetchall()
                if waiters:
                    return True, bool(waiters[0][0])
                return False, _somebody_waits(db, key)
            removed = db.execute("DELETE FROM locks WHERE key = ? AND token = ?", (key, ask.token)).rowcount == 1
            return removed, _somebody_waits(db, key)

        def wake(db: sqlite3.Connection) -> bool:
            if not removed:  # else it has left the queue when it was granted
                db.execute("DELETE FROM waiters WHERE token = ?", (ask.token,))
                if _row(db, key) is not None:
                    return False
            return _wake(db, key, me)

        removed, waited_for = yield attempt
        if waited_for and (yield wake):  # a step of its own: the removal must not be repeated if the file is busy
            if len(self._left) >= MOST_NOTED:
                self._left = {}
            self._left[ask.key] = _process.clock()
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
            """Whose end to look out for: the holder, or the waiter whose turn it is; `None` if it is ours."""
            db.execute(
                "INSERT OR REPLACE INTO waiters (token, key, since, port, cookie, boot, space, pid, started) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (ask.token, key, ask.since, port, cookie, *me),
            )
            row = _row(db, key)
            if row is not None and row.live(_process.clock(), me):
                return row.holder
            first = next(_waiters(db, key), None)
            return first.who if first is not None and first.token != ask.token else None

        if ask.notes is not None:
            ask.notes["waits"] = True
        yield Listening(register, min(ask.until, _process.clock() + LOOK_AGAIN))

    def channel(self) -> Channel:
        return FileChannel(self._path, self._durable)

    def async_channel(self) -> AsyncChannel:
        return AsyncFileChannel(self._path, self._durable)


RETURNING = sqlite3.sqlite_version_info >= (3, 35)
_REMOVE_AND_LOOK = """
DELETE FROM locks WHERE key = ? AND token = ? RETURNING EXISTS (SELECT 1 FROM waiters WHERE waiters.key = locks.key)
"""
_INSERT = """
INSERT INTO locks (key, token, owner, expires, boot, space, pid, started) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_IF_NOBODY_WAITS = """
INSERT INTO locks (key, token, owner, expires, boot, space, pid, started) SELECT ?, ?, ?, ?, ?, ?, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM waiters WHERE key = ?) ON CONFLICT (key) DO NOTHING
"""


def _insert(db: sqlite3.Connection, statement: str, fresh: tuple[Any, ...]) -> int | None:
    """The fence of the new lock, which the file never gives twice; `None` if there was none to be had."""
    cursor = db.execute(statement, fresh)
    return cursor.lastrowid if cursor.rowcount == 1 else None


def _take(db: sqlite3.Connection, ask: Add, fresh: tuple[Any, ...], now: float, me: Identity) -> Granted | Busy:
    """Look at all that may be in the way, and write the lock `fresh` if nothing is: in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    key = fresh[0]
    row = _row(db, key)
    if row is not None and row.token == ask.token:
        db.execute("UPDATE locks SET expires = ? WHERE key = ?", (now + ask.ttl, key))
        return Granted(row.fence, repeated=True)
    if row is not None and row.live(now, me):
        return Busy(row.expires - now, _text(row.owner))
    if ask.waiting and (left := _turn_of_another(db, key, ask.token, now, me)) is not None:
        return Busy(left, "a waiter who came before")
    if row is not None:
        db.execute("DELETE FROM locks WHERE key = ?", (key,))
    db.execute("DELETE FROM waiters WHERE token = ?", (ask.token,))
    return Granted(_insert(db, _INSERT, fresh))


class Waiter(NamedTuple):
    """Who waits for a lock, as the file has it."""

    token: str
    port: int
    cookie: bytes
    grace: float | None
    who: Identity

    @property
    def plausible(self) -> bool:
        rings = type(self.port) is int and 0 < self.port < 65536 and type(self.cookie) is bytes
        return rings and len(self.cookie) == 16 and isinstance(self.grace, (float, NoneType)) and self.who.plausible


def _waiters(db: sqlite3.Connection, key: bytes) -> Iterator[Waiter]:
    """Who waits, longest first."""
    found = db.execute(
        "SELECT token, port, cookie, grace, boot, space, pid, started FROM waiters WHERE key = ? ORDER BY since, token",
        (key,),
    ).fetchall()
    for token, port, cookie, grace, *who in found:
        waiter = Waiter(token, port, cookie, grace, Identity(*who))
        if waiter.plausible:
            yield waiter
        else:
            db.execute("DELETE FROM waiters WHERE token = ?", (token,))


def _turn_of_another(db: sqlite3.Connection, key: bytes, mine: str, now: float, me: Identity) -> float | None:
    """Seconds for which a free lock is left to who has waited longest; `None` if that is us.

    So it goes first come, first served, and whoever releases in order to acquire again does not starve the others,
    who need a moment to wake up. One that dies, or is stopped, is passed over after its grace.
    """
    for waiter in _waiters(db, key):
        if waiter.token == mine:
            return None
        if waiter.who.boot == me.boot and not is_dead(waiter.who) and (waiter.grace is None or waiter.grace > now):
            if waiter.grace is None:
                db.execute("UPDATE waiters SET grace = ? WHERE token = ?", (now + GRACE, waiter.token))
            return GRACE if waiter.grace is None else waiter.grace - now
        db.execute("DELETE FROM waiters WHERE token = ?", (waiter.token,))
    return None


def _somebody_waits(db: sqlite3.Connection, key: bytes) -> bool:
    try:
        return db.execute("SELECT 1 FROM waiters WHERE key = ? LIMIT 1", (key,)).fetchone() is not None
    except sqlite3.OperationalError:  # busy: must not undo what was done; `wake` looks again
        return True


def _wake(db: sqlite3.Connection, key: bytes, me: Identity) -> bool:
    """Wake who has waited longest, and forget those that died waiting. False if nobody is left."""
    for waiter in _waiters(db, key):
        # It is rung first: another who has the port by now hears nothing that it could use.
        if waiter.who.boot == me.boot and ring(waiter.port, waiter.cookie) and not is_dead(waiter.who):
            return True
        db.execute("DELETE FROM waiters WHERE token = ?", (waiter.token,))
    return False


def _text(owner: bytes | str) -> str:
    return owner.decode("utf-8", "replace") if isinstance(owner, bytes) else owner
