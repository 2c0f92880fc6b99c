"""What people ask of the lock file: its locks and waiters, and whether its place can hold them."""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import TYPE_CHECKING

from .. import _process
from . import Holder, Steps
from ._admin import Finding, Seen, Waiting
from ._identity import Identity, identity, is_dead
from ._sqlite_file import NETWORK, default_path, file_system
from .sqlite import Row, _row, _text

if TYPE_CHECKING:
    from .sqlite import SQLiteBackend


def held(backend: SQLiteBackend, prefix: str) -> Steps[list[Seen]]:  # noqa: ARG001  # the file is the channel's
    start = prefix.encode("utf-8", "surrogatepass")

    def look(db: sqlite3.Connection) -> list[Seen]:
        keys = db.execute("SELECT key FROM locks WHERE substr(key, 1, ?) = ? ORDER BY key", (len(start), start))
        found = [_seen(db, key) for (key,) in keys.fetchall()]
        return [one for one in found if one is not None]

    return (yield look)  # type: ignore[no-any-return]  # what `look` returns


def seen(backend: SQLiteBackend, key: str) -> Steps[Seen | None]:  # noqa: ARG001
    def look(db: sqlite3.Connection) -> Seen | None:
        return _seen(db, key.encode("utf-8", "surrogatepass"))

    return (yield look)  # type: ignore[no-any-return]  # what `look` returns


def _seen(db: sqlite3.Connection, key: bytes) -> Seen | None:
    row: Row | None = _row(db, key)
    now = _process.clock()
    if row is None or not row.live(now, identity()):
        return None
    waiting = _waiting(db, key, now)
    holder = Holder(_text(row.owner), row.token, row.fence, row.expires - now)
    return Seen(key.decode("utf-8", "surrogatepass"), holder, None, waiting, bool(waiting))


def _waiting(db: sqlite3.Connection, key: bytes, now: float) -> tuple[Waiting, ...]:
    rows = db.execute(
        "SELECT since, boot, space, pid, started FROM waiters WHERE key = ? ORDER BY since, token", (key,)
    ).fetchall()
    alive = [(since, Identity(*who)) for since, *who in rows if not is_dead(Identity(*who))]
    return tuple(Waiting(f"pid {who.pid}", max(0.0, now - since)) for since, who in alive)


def diagnose(backend: SQLiteBackend) -> Steps[list[Finding]]:
    path = backend._path or default_path()

    def look(db: sqlite3.Connection) -> list[str]:
        return [str(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("journal_mode", "synchronous")]

    journal, synchronous = yield look
    found = [Finding("ok", f"the file is {path}, SQLite {sqlite3.sqlite_version}, journal {journal}")]
    if synchronous == "2":
        found.append(Finding("ok", "each change is on the disk before it counts"))
    else:
        found.append(Finding("note", "a power cut may lose the last changes", "durable=true in the URL prevents it"))
    return [*found, *_permissions(path), *_place(path)]


def _permissions(path: str) -> list[Finding]:
    status, folder = os.stat(path), os.stat(os.path.dirname(path))
    mode, around = stat.S_IMODE(status.st_mode), stat.S_IMODE(folder.st_mode)
    text = f"mode {mode:04o}, owner uid {status.st_uid}, in a directory of mode {around:04o}"
    if mode & 0o022 or (around & 0o002 and not around & stat.S_ISVTX):
        return [Finding("warn", f"{text}: other users may change or remove it", f"chmod go-w {path}")]
    return [Finding("ok", text)]


def _place(path: str) -> list[Finding]:
    kind = file_system(os.path.dirname(path))
    if kind in NETWORK:
        return [Finding("bad", f"it is on a network file system ({kind})", "put it on a local disk")]
    if kind in ("tmpfs", "ramfs"):
        return [Finding("note", f"it is on {kind}: a reboot removes it, and its fences begin again")]
    return [Finding("ok" if kind else "note", f"file system {kind or 'unknown'}")]
