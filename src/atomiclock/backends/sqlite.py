"""sqlite://: the processes of one machine exclude each other through one file, with nothing to install.

Time is the machine's boot clock together with the boot's id, so neither a jump of the wall clock nor a reboot
confuses anybody. Every change is one transaction, so its outcome is known, or it did not happen. A holder whose
process has died is noticed by whoever asks next. A release offers the lock to who has waited longest: in its own
transaction it writes that waiter's token into the lock, for a moment, and the waiter, when it is woken, writes a longer
time. It is woken by a datagram over loopback; it registers its port first and looks again afterwards, so no release
goes unnoticed, and a datagram that is lost costs one look.
"""

from __future__ import annotations

import math
import os
import sqlite3
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _process
from .._options import flag_from_text
from .._url import URL
from ..errors import BackendRefused, ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Wait, quick
from ._identity import Identity, died_lately, identity, is_dead
from ._sqlite_io import AsyncFileChannel, FileChannel, Listening, ring

if TYPE_CHECKING:
    from . import AsyncChannel, Channel, Notes

LOOK_AGAIN = 0.5
"""Seconds after which a waiter that nobody woke looks again."""
UNKNOWN_SPACE = "?"
"""The pid namespace of a holder whose death nobody shall notice; real ones have brackets in their names."""
MOST_NOTED = 1000
"""Keys of which something is remembered."""
GRACE = 0.05
"""Seconds for which a free lock is kept for the waiter whose turn it is."""
ANOTHER = "a waiter who came before"
"""The owner of a lock that is offered to a waiter, until that one says who it is."""


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

    def live(self, now: float, me: Identity, lately: float = 0.0) -> bool:
        """Whether the lock still stands: not over, not from before a reboot, its holder not known to be dead.

        That may be as it was `lately` seconds ago.
        """
        if self.boot != me.boot or self.expires <= now:
            return False
        return not died_lately(self.holder, lately)

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
        notes = ask.notes or {}
        in_queue, rung = "waits" in notes, RETURNING and notes.pop("rung", False)
        if self._left and ask.waiting and not in_queue and self._just_left_to_another(ask):
            return Busy(GRACE, ANOTHER)
        key, me = ask.key.encode("utf-8", "surrogatepass"), identity()
        looks_first = in_queue or ask.key in self._taken

        def attempt(db: sqlite3.Connection) -> Granted | Busy:
            now = _process.clock()
            # If the holder's death is to set nobody free: in another pid namespace nobody can see it.
            who = me._replace(space=UNKNOWN_SPACE) if ask.outlives else me
            fresh = (key, ask.token, ask.owner.encode("utf-8", "replace"), now + ask.ttl, *who)
            if rung and (offered := db.execute(_CONFIRM, (*fresh[2:4], fresh[5], key, ask.token)).fetchall()):
                return Granted(offered[0][0])
            row = _row(db, key) if looks_first else None
            if row is None and not in_queue:
                fence = _insert(db, _INSERT_IF_NOBODY_WAITS, (*fresh, key))
                if fence is not None:
                    return quick(Granted, (fence, False))
                row = _row(db, key)
            if row is not None and row.token == ask.token and _confirm(db, fresh):
                return Granted(row.fence, repeated=True)
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
        key, me, notes = ask.key.encode("utf-8", "surrogatepass"), identity(), {} if ask.notes is None else ask.notes
        in_queue = "waits" in notes  # who had to wait is mostly waited for, too

        def attempt(db: sqlite3.Connection) -> tuple[bool, Offer | None]:
            if not in_queue and db.execute(_REMOVE_IF_NOBODY_WAITS, (key, ask.token, key)).rowcount == 1:
                return True, None
            db.execute("BEGIN IMMEDIATE")
            removed = db.execute("DELETE FROM locks WHERE key = ? AND token = ?", (key, ask.token)).rowcount == 1
            if not removed:  # else it has left the queue when it was granted
                db.execute("DELETE FROM waiters WHERE token = ?", (ask.token,))
                if _row(db, key) is not None:
                    return False, notes.get("offer")  # a signal may have interrupted us before we woke that one
            notes["offer"] = offer = _offer(db, key, me)
            return removed, offer

        removed, offer = yield attempt
        notes["removed"] = removed = removed or notes.get("removed", False)  # whatever comes of the next step
        while offer is not None and not offer.heard():
            # A step of its own: the removal must not be repeated if the file is busy.
            offer = yield partial(_offer_to_next, key, offer, me, notes)
        if offer is not None:
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
            fresh = (ask.token, key, ask.since, port, cookie, *me)
            if db.execute(_REGISTER, (*fresh, key, ask.token)).rowcount == 0:
                return None
            row = _row(db, key)
            if row is not None and row.live(_process.clock(), me, GRACE):
                return None if row.token == ask.token else row.holder
            first = _first(db, key)
            return first.who if first is not None and first.token != ask.token else None

        if ask.notes is not None:
            ask.notes["waits"] = True
        rung = yield Listening(register, min(ask.until, _process.clock() + LOOK_AGAIN))
        if rung and ask.notes is not None:
            ask.notes["rung"] = True

    def channel(self) -> Channel:
        return FileChannel(self._path, self._durable)

    def async_channel(self) -> AsyncChannel:
        return AsyncFileChannel(self._path, self._durable)


_REMOVE_IF_NOBODY_WAITS = """
DELETE FROM locks WHERE key = ? AND token = ? AND NOT EXISTS (SELECT 1 FROM waiters WHERE key = ?)
"""
_REGISTER = """
INSERT OR REPLACE INTO waiters (token, key, since, port, cookie, boot, space, pid, started)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM locks WHERE key = ? AND token = ?)
"""
RETURNING = sqlite3.sqlite_version_info >= (3, 35)
_CONFIRM = """
UPDATE locks SET owner = ?, expires = ?, space = ? WHERE key = ? AND token = ? RETURNING fence
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


def _confirm(db: sqlite3.Connection, fresh: tuple[Any, ...]) -> bool:
    """Let the lock that has our token already, mostly since it was offered to us, be as `fresh` says."""
    key, token, owner, expires, _, space, *_ = fresh
    change = "UPDATE locks SET owner = ?, expires = ?, space = ? WHERE key = ? AND token = ?"
    return db.execute(change, (owner, expires, space, key, token)).rowcount == 1


def _take(db: sqlite3.Connection, ask: Add, fresh: tuple[Any, ...], now: float, me: Identity) -> Granted | Busy:
    """Look at all that may be in the way, and write the lock `fresh` if nothing is: in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    key = fresh[0]
    row = _row(db, key)
    if row is not None and row.token == ask.token:
        _confirm(db, fresh)
        return Granted(row.fence, repeated=True)
    if row is not None and row.live(now, me):
        return Busy(row.expires - now, _text(row.owner))
    if ask.waiting and (left := _turn_of_another(db, key, ask.token, now, me)) is not None:
        return Busy(left, ANOTHER)
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


class Offer(NamedTuple):
    """A free lock that was written for a waiter: until `expires`, unless that one comes and writes a longer time."""

    waiter: Waiter
    expires: float

    def heard(self) -> bool:
        """Wake the waiter. False if it is not there any more."""
        # It is rung first: another who has the port by now hears nothing that it could use.
        return ring(self.waiter.port, self.waiter.cookie) and not died_lately(self.waiter.who, GRACE)


def _offer(db: sqlite3.Connection, key: bytes, me: Identity) -> Offer | None:
    """Write the free lock for who has waited longest, and is in the queue no more. `None` if nobody waits."""
    while (first := _first(db, key)) is not None:
        db.execute("DELETE FROM waiters WHERE token = ?", (first.token,))
        if first.who.boot == me.boot:
            offer = Offer(first, _process.clock() + GRACE)
            _insert(db, _INSERT, (key, first.token, ANOTHER, offer.expires, *first.who))
            return offer
    return None


def _offer_to_next(key: bytes, unheard: Offer, me: Identity, notes: Notes, db: sqlite3.Connection) -> Offer | None:
    """Take an offer back that nobody heard, and make it to the next. `None` too if it was accepted all the same."""
    db.execute("BEGIN IMMEDIATE")
    mine = (key, unheard.waiter.token, unheard.expires)
    if db.execute("DELETE FROM locks WHERE key = ? AND token = ? AND expires = ?", mine).rowcount == 0:
        return None
    notes["offer"] = offer = _offer(db, key, me)
    return offer


def _first(db: sqlite3.Connection, key: bytes) -> Waiter | None:
    """Who has waited longest."""
    while (found := db.execute(_SELECT_FIRST, (key,)).fetchone()) is not None:
        token, port, cookie, grace, *who = found
        waiter = Waiter(token, port, cookie, grace, Identity(*who))
        if waiter.plausible:
            return waiter
        db.execute("DELETE FROM waiters WHERE token = ?", (token,))
    return None


_SELECT_FIRST = """
SELECT token, port, cookie, grace, boot, space, pid, started FROM waiters WHERE key = ? ORDER BY since, token LIMIT 1
"""


def _turn_of_another(db: sqlite3.Connection, key: bytes, mine: str, now: float, me: Identity) -> float | None:
    """Seconds for which a free lock is left to who has waited longest; `None` if that is us.

    So it goes first come, first served, and whoever releases in order to acquire again does not starve the others,
    who need a moment to wake up. One that dies, or is stopped, is passed over after its grace.
    """
    while (waiter := _first(db, key)) is not None and waiter.token != mine:
        if waiter.who.boot == me.boot and not is_dead(waiter.who) and (waiter.grace is None or waiter.grace > now):
            if waiter.grace is None:
                db.execute("UPDATE waiters SET grace = ? WHERE token = ?", (now + GRACE, waiter.token))
            return GRACE if waiter.grace is None else waiter.grace - now
        db.execute("DELETE FROM waiters WHERE token = ?", (waiter.token,))
    return None


def _text(owner: bytes | str) -> str:
    return owner.decode("utf-8", "replace") if isinstance(owner, bytes) else owner
