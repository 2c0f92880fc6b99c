"""One machine: files, and the memory of one process."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from contest import PATIENCE, RAW, Lock, Place, contestant, plain


@contestant("raw sqlite3, insert + delete", "file", RAW, waits=False)
def raw_sqlite(place: Place) -> Callable[[str], Lock]:
    db = sqlite3.connect(f"{place.folder}/raw.db", isolation_level=None)
    db.executescript(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; CREATE TABLE IF NOT EXISTS l (k PRIMARY KEY, t)"
    )

    def lock(name: str) -> Lock:
        tokens: list[str] = []

        def acquire() -> None:
            tokens.append(uuid.uuid4().hex)
            db.execute("INSERT INTO l VALUES (?, ?)", (name, tokens[-1]))

        return Lock(acquire, lambda: db.execute("DELETE FROM l WHERE k = ? AND t = ?", (name, tokens.pop())))

    return lock


@contestant("filelock", "file", needs=("filelock",), many=True)
def filelock(place: Place) -> Callable[[str], Lock]:
    from filelock import FileLock

    def lock(name: str) -> Lock:
        return plain(FileLock(f"{place.folder}/{name}.filelock"))

    return lock


@contestant("filelock AsyncFileLock", "file", is_async=True, needs=("filelock",))
async def filelock_async(place: Place) -> Callable[[str], Lock]:
    from filelock import AsyncFileLock

    def lock(name: str) -> Lock:
        one = AsyncFileLock(f"{place.folder}/{name}.asyncfilelock")
        return Lock(one.acquire, one.release)

    return lock


@contestant("portalocker", "file", needs=("portalocker",))
def portalocker(place: Place) -> Callable[[str], Lock]:
    import portalocker

    def lock(name: str) -> Lock:
        one = portalocker.Lock(f"{place.folder}/{name}.portalocker", timeout=PATIENCE)
        return Lock(one.acquire, one.release)

    return lock


NOT_FOR_THREADS = "its POSIX file locks do not exclude the threads of one process from each other"
FASTENERS = (("S3, 10 threads", NOT_FOR_THREADS), ("S3, 100 threads", NOT_FOR_THREADS), ("S3b", NOT_FOR_THREADS))


@contestant("fasteners", "file", needs=("fasteners",), without=FASTENERS)
def fasteners(place: Place) -> Callable[[str], Lock]:
    import fasteners

    def lock(name: str) -> Lock:
        one = fasteners.InterProcessLock(os.path.join(place.folder, f"{name}.fasteners"))
        return Lock(one.acquire, one.release)

    return lock


@contestant("threading.Lock", "memory", RAW)
def threading_lock(_: Place) -> Callable[[str], Lock]:
    locks: dict[str, Any] = defaultdict(threading.Lock)

    def lock(name: str) -> Lock:
        one = locks[name]
        return Lock(one.acquire, one.release)

    return lock


@contestant("asyncio.Lock", "memory", RAW, is_async=True)
async def asyncio_lock(_: Place) -> Callable[[str], Lock]:
    locks: dict[str, Any] = defaultdict(asyncio.Lock)

    def lock(name: str) -> Lock:
        one = locks[name]

        async def release() -> None:
            one.release()

        return Lock(one.acquire, release)

    return lock
