"""How threads and tasks use the lock file: connections, patience with other writers, and the mailbox of a waiter."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from .. import _process
from ..errors import BackendUnavailable
from . import Unknown
from ._identity import Identity, identity, is_dead
from ._poll import POLLIN, new_poll
from ._sqlite_file import connect, default_path, explain, prepare, sweep

GLANCE = 0.1
"""Seconds between looks at whether the holder's process still lives, while waiting for it."""
AT_ONCE = 4
"""How often a busy file is tried again at once: a transaction takes some 50 microseconds, and no sleep is as short."""
AGAIN = (0.00005, 0.001)
"""Seconds after which it is tried again from then on, at first and at most. SQLite's own handler for that sleeps for a
millisecond at least, and we would sleep with it while we have the gate."""

step_aside: Callable[[], None] = getattr(os, "sched_yield", lambda: None)
"""Let who has the file go on, if that one waits for this processor."""

_gate = threading.RLock()
"""Held by whoever uses SQLite, and by whoever forks: no connection may be open across a fork. What SQLite knows of an
open file is copied into the child, which then takes its own locks for taken already (sqlite.org/howtocorrupt.html,
2.6): measured, two holders."""
_files: list[weakref.ref[_File]] = []


def _before_fork() -> None:
    _gate.acquire()
    for file in [ref() for ref in _files]:
        if file is not None:
            file.close()


_process.around_fork(_before_fork, _gate.release)


class Listening(NamedTuple):
    """A request: register a mailbox, and sleep until it is woken, a certain process ends, or `until`.

    The reply is whether it was woken. The entry stays behind, since it keeps the waiter's place; whoever rings there
    meanwhile finds nobody.
    """

    register: Callable[[sqlite3.Connection, int, bytes], Identity | None]
    until: float


class Mailbox:
    """A port on loopback where one waiter is woken, by whoever can read its cookie in the file."""

    def __init__(self) -> None:
        self.sock = socket.SocketType(socket.AF_INET, socket.SOCK_DGRAM)  # without what Python adds, which takes longer
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.cookie = os.urandom(16)

    def rung(self) -> bool:
        """Whether a wake-up meant for us has come."""
        try:
            while True:
                if self.sock.recv(64) == self.cookie:
                    return True
        except OSError:
            return False

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def ring(port: int, cookie: bytes) -> bool:
    """Wake the waiter at `port`. False if nobody is there."""
    try:
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:  # too many open files: then it has to look by itself
        return True
    try:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        sock.send(cookie)
        sock.recv(1)  # over loopback the refusal of a port that nobody has is here at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        sock.close()
    return True


class _File:
    """Connections to the file. One is either idle here, or in the hands of one thread."""

    def __init__(self, path: str | None, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._idle: list[sqlite3.Connection] = []
        self._node: tuple[int, int] | None = None
        with _gate:
            _process.remember(_files, self)

    def attempt(self, transaction: Callable[[sqlite3.Connection], Any]) -> Any:
        """What `transaction` returns, committed. `Unknown` if the file is busy: then nothing was done."""
        with _gate:
            try:
                db = self._take()
            except BackendUnavailable:  # an OSError too, and explained already
                raise
            except (sqlite3.Error, OSError) as error:
                raise explain(error, self._path or "") from error
            return self._commit(db, transaction)

    def _commit(self, db: sqlite3.Connection, transaction: Callable[[sqlite3.Connection], Any]) -> Any:
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
            problem = explain(error, self._path or "")
            done = isinstance(problem, Unknown)
            raise problem from error
        finally:
            if done:
                self._idle.append(db)
            else:
                db.close()  # which rolls back: a signal may have interrupted anywhere

    def _take(self) -> sqlite3.Connection:
        if self._path is None:
            self._path = default_path()
        try:
            status = os.stat(self._path)
            # Somebody may have removed the file, and others may have made a new one: to go on with the old one
            # would be to hold a lock that nobody else sees.
            if (status.st_dev, status.st_ino) == self._node:
                return self._idle.pop()
        except FileNotFoundError:
            self._node = None
        except IndexError:
            return connect(self._path, self._durable)
        self.close()
        prepare(self._path)
        db = connect(self._path, self._durable)
        sweep(db, _process.clock(), identity().boot)
        status = os.stat(self._path)
        self._node = (status.st_dev, status.st_ino)
        return db

    def close(self) -> None:
        with _gate, suppress(IndexError):
            while True:
                self._idle.pop().close()

    def __del__(self) -> None:
        for db in getattr(self, "_idle", ()):  # a signal may have interrupted its making
            db.close()


class FileChannel:
    """The lock file for threads."""

    def __init__(self, path: str | None, durable: bool) -> None:
        self._file = _File(path, durable)

    def call(self, request: Any, deadline: float) -> Any:
        if isinstance(request, Listening):
            return self._listen(request, deadline)
        try:
            return self._file.attempt(request)
        except Unknown:
            if _process.clock() >= deadline:
                raise
        return self._again(request, deadline)

    def _again(self, request: Any, deadline: float) -> Any:
        """The same, after the file was busy."""
        at_once, (pause, longest) = AT_ONCE, AGAIN
        while True:
            if at_once:
                at_once -= 1
                step_aside()
            else:
                time.sleep(pause * random.random())
                pause = min(2 * pause, longest)
            try:
                return self._file.attempt(request)
            except Unknown:
                if _process.clock() >= deadline:
                    raise

    def _listen(self, ask: Listening, deadline: float) -> bool:
        try:
            mailbox = Mailbox()
        except OSError:  # too many open files: without a mailbox it can still look again
            time.sleep(max(0.0, min(ask.until - _process.clock(), GLANCE)))
            return False
        with mailbox:
            poll = new_poll()
            poll.register(mailbox.sock, POLLIN)
            watched = self.call(lambda db: ask.register(db, mailbox.port, mailbox.cookie), deadline)
            while watched is not None and (left := ask.until - _process.clock()) > 0:
                poll.poll(1000 * min(left, GLANCE))
                if mailbox.rung():
                    return True
                if is_dead(watched):
                    break
        return False

    def close(self) -> None:
        self._file.close()


class AsyncFileChannel:
    """The lock file for tasks: a transaction takes microseconds, far less than to hand it to a thread."""

    def __init__(self, path: str | None, durable: bool) -> None:
        self._file = _File(path, durable)

    async def call(self, request: Any, deadline: float) -> Any:
        if isinstance(request, Listening):
            return await self._listen(request, deadline)
        at_once, (pause, longest) = AT_ONCE, AGAIN
        while True:
            try:
                return self._file.attempt(request)
            except Unknown:
                if _process.clock() >= deadline:
                    raise
            if at_once:
                at_once -= 1
                step_aside()
                continue
            import asyncio  # here, as it takes as long to load as all else that threads need

            await asyncio.sleep(pause * random.random())
            pause = min(2 * pause, longest)

    async def _listen(self, ask: Listening, deadline: float) -> bool:
        import asyncio

        loop = asyncio.get_running_loop()
        try:
            mailbox = Mailbox()
        except OSError:  # too many open files: without a mailbox it can still look again
            await asyncio.sleep(max(0.0, min(ask.until - _process.clock(), GLANCE)))
            return False
        with mailbox:
            rung = asyncio.Event()
            heard: list[bool] = []  # told apart from the alarm, which may come in the same moment

            def hear() -> None:
                if mailbox.rung():
                    heard.append(True)
                    rung.set()

            loop.add_reader(mailbox.sock, hear)
            try:
                watched = await self.call(lambda db: ask.register(db, mailbox.port, mailbox.cookie), deadline)
                while watched is not None and (left := ask.until - _process.clock()) > 0:
                    alarm = loop.call_later(min(left, GLANCE), rung.set)
                    await rung.wait()
                    alarm.cancel()
                    if heard or is_dead(watched):
                        break
                    rung.clear()
                return bool(heard)
            finally:
                loop.remove_reader(mailbox.sock)

    def close(self) -> None:
        self._file.close()
