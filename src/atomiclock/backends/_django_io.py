"""Connections to the database behind Django's DatabaseCache, of our own, for threads and for tasks.

The application's connections are left alone: a lock must not wait for, or vanish with, a transaction of theirs.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from .. import _process
from . import Unknown
from ._wire import Nap

BUSY = 0.005
"""Seconds that SQLite itself waits for another writer, and that we wait at most before we ask it again."""

Transaction = Callable[[sqlite3.Connection], Any]
Connect = Callable[[], sqlite3.Connection]
Explain = Callable[[Exception], Exception]

_gate = threading.RLock()
"""Held by whoever uses a connection, and by whoever forks: none may be open across a fork, since SQLite's notes on
the open file are copied into the child (sqlite.org/howtocorrupt.html, 2.6)."""
_pools: list[weakref.ref[Pool]] = []


def _before_fork() -> None:
    _gate.acquire()
    for pool in [ref() for ref in _pools]:
        if pool is not None:
            pool.close()


_process.around_fork(_before_fork, _gate.release)


class Pool:
    """Connections. One is either idle here, or in the hands of one thread."""

    def __init__(self, connect: Connect, explain: Explain) -> None:
        self._connect = connect
        self._explain = explain
        self._idle: list[sqlite3.Connection] = []
        with _gate:
            _process.remember(_pools, self)

    def attempt(self, transaction: Transaction) -> Any:
        """What `transaction` returns, committed. `Unknown` if the database is busy: then nothing was done."""
        with _gate:
            db = self._take()
            done = False
            try:
                result = transaction(db)
                if db.in_transaction:
                    db.execute("COMMIT")
                done = True
                return result
            except sqlite3.Error as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                problem = self._explain(error)
                done = isinstance(problem, Unknown)
                raise problem from error
            finally:
                if done:
                    self._idle.append(db)
                else:
                    db.close()  # which rolls back: a signal may have interrupted anywhere

    def _take(self) -> sqlite3.Connection:
        if self._idle:
            return self._idle.pop()
        try:
            return self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._explain(error) from error

    def close(self) -> None:
        with _gate, suppress(IndexError):
            while True:
                self._idle.pop().close()

    def __del__(self) -> None:
        for db in getattr(self, "_idle", ()):  # a signal may have interrupted its making
            db.close()


class PoolChannel:
    """A pool for threads. Requests are transactions, or a `Nap`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def call(self, request: Transaction | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return time.sleep(max(0.0, request.until - _process.clock()))
        while True:
            try:
                return self._pool.attempt(request)
            except Unknown:
                if _process.clock() >= deadline:
                    raise
            time.sleep(BUSY * random.random())

    def close(self) -> None:
        self._pool.close()


class _Job:
    """One attempt, in a thread. Once dropped it does not begin: so what is asked later comes later in the database too,
    and the removal of a token finds what a cancelled add of it has left."""

    def __init__(self, pool: Pool, transaction: Transaction) -> None:
        self._pool = pool
        self._transaction = transaction
        self.dropped = False

    def __call__(self) -> Any:
        with _gate:
            if self.dropped:
                raise Unknown("nobody waits for it any more", sent=False)
            return self._pool.attempt(self._transaction)


class AsyncPoolChannel:
    """A pool for tasks, in one thread of its own: to commit waits for the disk, and the event loop must not."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._thread: ThreadPoolExecutor | None = None

    async def call(self, request: Transaction | Nap, deadline: float) -> Any:
        if isinstance(request, Nap):
            return await asyncio.sleep(max(0.0, request.until - _process.clock()))
        while True:
            try:
                return await self._attempt(request, deadline)
            except Unknown:
                if _process.clock() >= deadline:
                    raise
            await asyncio.sleep(BUSY * random.random())

    async def _attempt(self, transaction: Transaction, deadline: float) -> Any:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="atomiclock-django")
        job = _Job(self._pool, transaction)
        future = asyncio.get_running_loop().run_in_executor(self._thread, job)
        try:
            await asyncio.wait([future], timeout=max(0.0, deadline - _process.clock()))
            if not future.done():
                raise Unknown("the database did not answer in time")
            if future.cancelled():
                raise Unknown("the manager was closed meanwhile", sent=False)
            return future.result()
        finally:
            job.dropped = True
            if not future.done():
                future.cancel()

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)
        self._pool.close()
