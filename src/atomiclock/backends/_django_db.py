"""Django's DatabaseCache on SQLite: the processes of one machine exclude each other, on rows like those of `cache.add`.

Only SQLite: there every transaction that writes is alone, so Django's `add` cannot grant a key twice. On PostgreSQL
it overwrites an expired row whatever has become of it meanwhile; two holders in 58 of 60 rounds, by measurement.

A row's expiry is a naive time, local or UTC as Django's settings say. Django cuts it down to the second, and takes the
row for expired when that second is over, so that is when we take over a row of others. Ours have microseconds, which
Django reads too, and end there; to a program that calls `cache.add` they end up to a second later.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import MAXYEAR, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections, router

from ..errors import BackendRefused, BackendUnavailable, ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Unknown, Wait
from ._django_io import BUSY, AsyncPoolChannel, Pool, PoolChannel
from ._django_values import LONGEST_PAUSE, Value, nap, packed, unpacked, warn_of_culling

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

NOT_SQLITE = {
    "postgresql": "two processes that find an expired row both get it (58 of 60 rounds, PostgreSQL 18.6)",
    "mysql": "nobody has shown that two processes which find an expired row do not both get it",
    "oracle": "nobody has shown that two processes which find an expired row do not both get it",
}


def of_database(cache: Any, place: str, bound: float) -> TableBackend:
    """For django.core.cache.backends.db.DatabaseCache."""
    backend = TableBackend(cache, place, bound)
    warn_of_culling(cache, place)
    return backend


class Row(NamedTuple):
    """A lock as the table has it. `text` is the value as it stands there."""

    text: str
    value: Value
    expires: datetime

    def live(self, now: datetime) -> bool:
        """Whether the lock still stands, by the rule of whoever wrote it."""
        return self.expires > now if self.value.ours else self.expires >= now.replace(microsecond=0)

    def has(self, token: str) -> bool:
        return self.value.ours and self.value.token == token

    def remaining(self, now: datetime) -> float | None:
        if self.expires.year == MAXYEAR:  # what Django writes for "never"
            return None
        return (self.expires - now).total_seconds() + (0.0 if self.value.ours else 1.0)


def naive(seconds: float, zone: tzinfo | None) -> datetime:
    """A time as the column has it: in `zone`, or where Django knows of none in the local one."""
    return datetime.fromtimestamp(seconds, tz=zone).replace(tzinfo=None)


def expiry(now: float, ttl: float, zone: tzinfo | None) -> datetime:
    """What to write for a lock that lives `ttl` seconds from `now`.

    When clocks are set back from summer time, an hour comes twice. A row must not seem expired before the change
    because its expiry comes after, so it gets the later reading, and lasts an hour longer if nobody releases it.
    """
    return max(naive(now + ttl, zone), naive(now, zone) + timedelta(seconds=ttl))


class Table:
    """The cache's table: where it is, and its statements."""

    def __init__(self, cache: Any, place: str) -> None:
        self._database = router.db_for_write(cache.cache_model_class)
        self._place = place
        wrapper = connections.create_connection(self._database)
        if wrapper.vendor != "sqlite":
            why = NOT_SQLITE.get(wrapper.vendor, "nobody has shown that its add is atomic")
            raise ConfigurationError(
                f"{place}: a DatabaseCache on {wrapper.vendor} is no place for locks: {why}. Use a cache on Redis or "
                "memcached, or another URL such as redis://localhost:6379/0"
            )
        name, key, value, expires = map(wrapper.ops.quote_name, (cache._table, "cache_key", "value", "expires"))
        self.zone: tzinfo | None = wrapper.timezone
        self.protocol: int = cache.pickle_protocol
        self._select = f"SELECT {value}, {expires} FROM {name} WHERE {key} = ?"  # noqa: S608  # Django's own names
        self._write = f"INSERT OR REPLACE INTO {name} ({key}, {value}, {expires}) VALUES (?, ?, ?)"  # noqa: S608  # the same
        self._delete = f"DELETE FROM {name} WHERE {key} = ? AND {value} = ?"  # noqa: S608  # Django's own names
        self._update = f"UPDATE {name} SET {expires} = ? WHERE {key} = ? AND {value} = ?"  # noqa: S608  # the same

    def now(self) -> datetime:
        return naive(time.time(), self.zone)

    def row(self, db: sqlite3.Connection, key: str) -> Row | None:
        found: Any
        try:
            found = db.execute(self._select, (key,)).fetchone()
        except ValueError:  # of Django's converter
            found = (None, None)
        if found is None:
            return None
        text, expires = found
        if not isinstance(expires, datetime):
            raise BackendRefused(f"{self._place}: the row of this lock has an expiry that is no time: delete the row")
        try:
            data = base64.b64decode(text)
        except (binascii.Error, ValueError):
            data = b""
        return Row(text, unpacked(data), expires)

    def write(self, db: sqlite3.Connection, ask: Add) -> None:
        text = base64.b64encode(packed(ask.token, ask.owner, self.protocol)).decode("ascii")
        db.execute(self._write, (ask.key, text, str(expiry(time.time(), ask.ttl, self.zone))))

    def extend(self, db: sqlite3.Connection, key: str, row: Row, ttl: float) -> bool:
        expires = str(expiry(time.time(), ttl, self.zone))
        return db.execute(self._update, (expires, key, row.text)).rowcount == 1

    def delete(self, db: sqlite3.Connection, key: str, row: Row) -> bool:
        return db.execute(self._delete, (key, row.text)).rowcount == 1

    def connect(self) -> sqlite3.Connection:
        """A connection as Django makes it, with the options of the settings. To where they point at this moment: a test
        runner changes that."""
        wrapper = connections.create_connection(self._database)
        if wrapper.is_in_memory_db():
            raise BackendRefused(
                f"{self._place}: the database is in memory, where only one connection may write: give it a file, or "
                "for locks of one process take memory://"
            )
        params = {**wrapper.get_connection_params(), "timeout": BUSY, "isolation_level": None}
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            db = wrapper.get_new_connection(params)
        else:  # where Django lets nobody connect; a plain `with` on a loop's thread has warned already
            with ThreadPoolExecutor(1) as thread:
                db = thread.submit(wrapper.get_new_connection, params).result()
        connection: sqlite3.Connection = db
        return connection

    def explain(self, error: Exception) -> Exception:
        """What a failure means for the lock."""
        text = str(error)
        if "no such table" in text:
            return BackendRefused(f"{self._place}: {text}: run `manage.py createcachetable`")
        if isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text):
            why = "another connection, perhaps a transaction of this very thread, is writing to the database"
            return Unknown(f"{self._place} is busy: {text}: {why}", sent=False)
        if "unable to open" in text:  # too many open files are called so too
            return Unknown(f"{self._place}: {text}", sent=False)
        if isinstance(error, OSError) or "readonly" in text or "not a database" in text:
            return BackendRefused(f"{self._place}: the database cannot be used: {text}")
        return BackendUnavailable(f"{self._place}: {text}")


class TableBackend:
    """Locks in the table of a DatabaseCache on SQLite."""

    traits = Traits(
        scope="machine",
        fence="none",
        waits="poll",
        survives_restart="yes",
        ttl_step=0.0,
        longest_ttl=1e9,
        loses="culling at MAX_ENTRIES; a jump of the machine's clock; removal of the file",
    )
    longest_pause = 1.5 * LONGEST_PAUSE

    def __init__(self, cache: Any, place: str, request_bound: float) -> None:
        self.place = place
        self.request_bound = request_bound
        self._table = Table(cache, place)

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        table = self._table

        def attempt(db: sqlite3.Connection) -> Granted | Busy:
            row, now = table.row(db, ask.key), table.now()  # to look first spares those who find it held a write
            if row is None or row.has(ask.token) or not row.live(now):
                db.execute("BEGIN IMMEDIATE")
                row, now = table.row(db, ask.key), table.now()
            if row is None or row.has(ask.token) or not row.live(now):
                table.write(db, ask)
                return Granted(None, repeated=row is not None and row.has(ask.token))
            return Busy(row.remaining(now), row.value.owner, signals=False)

        done: Granted | Busy = yield attempt
        return done

    def remove(self, ask: Remove) -> Steps[bool]:
        def attempt(db: sqlite3.Connection) -> bool:
            row = self._table.row(db, ask.key)
            if row is None or not row.has(ask.token):
                return False
            live = row.live(self._table.now())
            return self._table.delete(db, ask.key, row) and live

        removed: bool = yield attempt
        return removed

    def extend(self, ask: Extend) -> Steps[bool]:
        def attempt(db: sqlite3.Connection) -> bool:
            row = self._table.row(db, ask.key)
            if row is None or not row.has(ask.token) or not row.live(self._table.now()):
                return False
            return self._table.extend(db, ask.key, row, ask.ttl)

        kept: bool = yield attempt
        return kept

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        def look(db: sqlite3.Connection) -> Holder | None:
            row, now = self._table.row(db, ask.key), self._table.now()
            if row is None or not row.live(now):
                return None
            return Holder(row.value.owner, row.value.token, None, row.remaining(now))

        holder: Holder | None = yield look
        return holder

    def wait(self, ask: Wait) -> Steps[None]:
        yield nap(ask)

    def channel(self) -> Channel:
        return PoolChannel(Pool(self._table.connect, self._table.explain))

    def async_channel(self) -> AsyncChannel:
        return AsyncPoolChannel(Pool(self._table.connect, self._table.explain))
