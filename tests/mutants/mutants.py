"""The mistakes that locks are known for, each a small change of the real code: the suite must find every one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from atomiclock import _hold, _manager, _plans, _process, _sync
from atomiclock.backends import (
    Add,
    Busy,
    Granted,
    _meta,
    _redis_scripts,
    _sqlite_io,
    at_once,
    memcached,
    memory,
    redis,
    sqlite,
)  # fmt: skip
from atomiclock.errors import LockLost

MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(install: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[install.__name__] = install
    return install


@mutant
def blind_delete() -> None:
    """Release removes the key, whoever has it."""

    def in_memory(self: Any, ask: Any) -> bool:
        with self.space.mutex:
            gone = self.space.locks.pop(ask.key, None)
            self.space.wake(ask.key)
        return gone is not None

    memory.MemoryBackend.remove = at_once(in_memory)  # type: ignore[method-assign]  # that is the mutation
    redis.REMOVE = _redis_scripts.Script(
        _replaced(redis.REMOVE, b"local mine = held == ARGV[1]", b"local mine = held"), keys=5, args=4
    )
    for statement in ("DELETE FROM locks WHERE key = ? AND token = ?", sqlite._REMOVE_IF_NOBODY_WAITS):
        _patch_sql(statement, statement.replace("AND token = ?", "OR token = ?"))

    def in_memcached(self: Any, ask: Any) -> Any:
        found = yield _meta.Look(self._key(ask.key))
        if found is not None:
            yield _meta.Drop(self._key(ask.key), found.cas, found.life)
        return found is not None

    memcached.MemcachedBackend.remove = in_memcached  # type: ignore[method-assign]  # that is the mutation


@mutant
def uncompared_extend() -> None:
    """Extend renews the key, whoever has it."""

    def in_memory(self: Any, ask: Any) -> bool:
        space, now = self.space, _process.clock()
        with space.mutex:
            entry = space.current(ask.key, now)
            if entry is not None:
                space.locks[ask.key] = entry._replace(expires=now + ask.ttl)
        return entry is not None

    memory.MemoryBackend.extend = at_once(in_memory)  # type: ignore[method-assign]  # that is the mutation
    redis.EXTEND = _redis_scripts.Script("return redis.call('PEXPIRE', KEYS[1], ARGV[2])", keys=2, args=2)
    _patch_sql(
        "UPDATE locks SET expires = ? WHERE key = ? AND token = ? AND expires > ?",
        "UPDATE locks SET expires = ? WHERE key = ? AND token <> ? AND expires > ?",
    )

    def in_memcached(self: Any, ask: Any) -> Any:
        found = yield _meta.Look(self._key(ask.key))
        return found is not None and (yield from self._extended(self._key(ask.key), *found.parts[:1], ask.ttl, None))

    memcached.MemcachedBackend.extend = in_memcached  # type: ignore[method-assign]  # that is the mutation


@mutant
def check_then_set() -> None:
    """Acquire looks whether the key is free, and sets it in a second step."""

    def wrong(original: Any, force: Any) -> Any:
        def add(self: Any, ask: Add) -> Any:
            holder = yield from self.peek(ask)
            if holder is not None and holder.token != ask.token:
                return Busy(holder.remaining, holder.owner)
            yield from force(self, ask)
            return (yield from original(self, ask))

        return add

    def free_in_memory(self: Any, ask: Add) -> Any:
        time.sleep(0.003)  # between the requests, so that others come in between
        yield lambda: self.space.locks.pop(ask.key, None)

    def free_in_redis(self: Any, ask: Add) -> Any:
        yield redis.pack(b"DEL", ask.key.encode())

    def free_in_file(self: Any, ask: Add) -> Any:
        time.sleep(0.003)
        yield lambda db: db.execute("DELETE FROM locks WHERE key = ?", (ask.key.encode(),))

    def free_in_memcached(self: Any, ask: Add) -> Any:
        time.sleep(0.003)
        found = yield _meta.Look(self._key(ask.key))
        if found is not None:
            yield _meta.Drop(self._key(ask.key), found.cas, found.life)

    for backend, force in (
        (memcached.MemcachedBackend, free_in_memcached),
        (memory.MemoryBackend, free_in_memory),
        (redis.RedisBackend, free_in_redis),
        (sqlite.SQLiteBackend, free_in_file),
    ):
        backend.add = wrong(backend.add, force)  # type: ignore[method-assign]  # that is the mutation


@mutant
def fence_reset() -> None:
    """The fence counts within one hold, and starts again when the lock was free."""
    original = _hold.Hold.granted

    def granted(self: Any, sent: float, now: float, fence: int | None, repeated: bool) -> bool:
        return original(self, sent, now, 1, repeated)

    _hold.Hold.granted = granted  # type: ignore[method-assign]  # that is the mutation


@mutant
def validity_from_reply() -> None:
    """The lease counts from when the answer arrived."""
    original = _hold.Hold.granted

    def granted(self: Any, sent: float, now: float, fence: int | None, repeated: bool) -> bool:
        return original(self, now, now, fence, repeated)

    _hold.Hold.granted = granted  # type: ignore[method-assign]  # that is the mutation


@mutant
def no_undo_after_cancel() -> None:
    """An interrupted attempt takes nothing back."""
    from atomiclock import _async_manager

    async def no_undo(self: Any, hold: Any, error: BaseException) -> None:
        hold.give_up()

    _manager.LockManager._take_back = lambda self, hold, error: hold.give_up()  # type: ignore[method-assign]
    _async_manager.AsyncLockManager._take_back = no_undo  # type: ignore[method-assign]


@mutant
def token_reused() -> None:
    """A process has one token for all its grants."""
    token = os.urandom(16).hex()
    _process.new_token = lambda: token


@mutant
def release_swallows_loss() -> None:
    """Release of a lost lease is a success."""
    original = _plans.release

    def release(hold: Any, terms: Any) -> Any:
        try:
            yield from original(hold, terms)
        except LockLost:
            hold.settled()

    _plans.release = release


@mutant
def no_renewal() -> None:
    """The lease is never extended by itself."""
    _hold.Hold.may_renew = lambda self, now: False  # type: ignore[method-assign]  # that is the mutation


@mutant
def no_wake_up() -> None:
    """Release wakes nobody: waiters look again when they may."""
    memory.Space.wake = lambda self, key: None  # type: ignore[method-assign]  # that is the mutation
    redis.REMOVE = _redis_scripts.Script(
        _replaced(redis.REMOVE, b"redis.call('RPUSH', KEYS[4], '')", b""), keys=5, args=4
    )
    sqlite.ring = lambda port, cookie: True  # type: ignore[assignment]  # that is the mutation


@mutant
def clock_without_margin() -> None:
    """The lease is as long as at the store, and a little longer for the way back."""
    _hold.margin = lambda ttl: -0.05


@mutant
def forked_child_holds() -> None:
    """A child believes what its parent held."""
    original = _hold.Hold.over

    def over(self: Any, now: float) -> bool:
        self.generation = _process.generation
        return original(self, now)

    _hold.Hold.over = over  # type: ignore[method-assign]  # that is the mutation


@mutant
def lost_is_not_told() -> None:
    """`on_lost` is not called."""
    _sync.KeeperThread._tell = lambda self, hold: None  # type: ignore[method-assign]  # that is the mutation
    from atomiclock import _async

    _async.tell = lambda hold: None


@mutant
def lost_reply_is_no() -> None:
    """An acquire whose answer is lost counts as not granted: the next try finds its own lock, and waits for it."""
    numbers = count()

    def wrong(original: Any) -> Any:
        def add(self: Any, ask: Add) -> Any:
            answer = yield from original(self, ask._replace(token=f"{ask.token[:24]}{next(numbers):08x}"))
            return Granted(answer.fence) if isinstance(answer, Granted) else answer

        return add

    for backend in (memcached.MemcachedBackend, memory.MemoryBackend, redis.RedisBackend, sqlite.SQLiteBackend):
        backend.add = wrong(backend.add)  # type: ignore[method-assign]  # that is the mutation


def _replaced(script: Any, old: bytes, new: bytes) -> str:
    assert old in script.text, "the mutant no longer fits the code"
    return str(script.text.replace(old, new).decode())


def _patch_sql(old: str, new: str) -> None:
    """Execute `new` where the code executes `old`."""
    original = _sqlite_io._File.attempt

    class Database:
        def __init__(self, db: Any) -> None:
            self._db = db

        def execute(self, statement: str, *rest: Any) -> Any:
            return self._db.execute(new if statement == old else statement, *rest)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._db, name)

    def attempt(self: Any, transaction: Any) -> Any:
        return original(self, lambda db: transaction(Database(db)))

    _sqlite_io._File.attempt = attempt  # type: ignore[method-assign]  # that is the mutation
