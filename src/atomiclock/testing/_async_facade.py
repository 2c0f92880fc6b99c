"""The asynchronous manager with the sync names: each call is a task on a private event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from .._async_lease import AsyncLease
from .._async_lock import ManagedAsyncLock
from .._async_manager import AsyncLockManager
from ..backends import Holder
from ._facade import Colour, Held, LockFace

T = TypeVar("T")


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)), daemon=True)
        self._thread.start()
        self.loop = started.result()

    async def _main(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class AsyncLocks:
    """`AsyncLockManager`, each call a task on a private event loop."""

    colour: Colour = "async"

    def __init__(self, url: str, **defaults: Any) -> None:
        self.manager = AsyncLockManager(url, **defaults)
        self.thread = LoopThread()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.thread.run(work)

    def acquire(self, name: str, **options: Any) -> Held:
        return AsyncHeld(self, self.run(self.manager.acquire(name, **options)))

    def try_acquire(self, name: str, **options: Any) -> Held | None:
        lease = self.run(self.manager.try_acquire(name, **options))
        return None if lease is None else AsyncHeld(self, lease)

    def holder(self, name: str, **options: Any) -> Holder | None:
        return self.run(self.manager.holder(name, **options))

    def lock(self, name: str, **options: Any) -> LockFace:
        return AsyncLockFace(self, self.manager.lock(name, **options))

    def perform(self, ask: Any) -> Any:
        return self.run(self.manager._store.perform(ask))

    def interrupted(self, seconds: float, name: str, **options: Any) -> None:
        async def acquire() -> None:
            task = asyncio.ensure_future(self.manager.acquire(name, **options))
            await asyncio.wait({task}, timeout=seconds)
            task.cancel()
            await task

        self.run(acquire())

    def reopen(self) -> None:
        self.thread = LoopThread()

    def disconnect(self) -> None:
        self.run(self.manager.aclose())

    def close(self) -> None:
        self.disconnect()
        self.thread.stop()


class Block:
    """An `async with` whose body is the caller's, on another thread: one task enters it and leaves it."""

    def __init__(self, locks: AsyncLocks, manager: Any) -> None:
        self._entered: Future[Any] = Future()
        self._manager = manager
        self._loop = locks.thread.loop
        self._done = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        self._done.add_done_callback(self._failed)

    async def _run(self) -> None:
        async with self._manager as value:
            self._leave: asyncio.Future[BaseException | None] = self._loop.create_future()
            self._entered.set_result(value)
            error = await self._leave
            if error is not None:
                raise error

    def _failed(self, done: Future[None]) -> None:
        if not self._entered.done():
            self._entered.set_exception(done.exception() or RuntimeError("never entered"))

    def enter(self) -> Any:
        return self._entered.result()

    def exit(self, error: BaseException | None) -> None:
        self._loop.call_soon_threadsafe(self._leave.set_result, error)
        trouble = self._done.exception()
        if trouble is not None and trouble is not error:
            raise trouble


class AsyncHeld:
    """An `AsyncLease` with the sync names."""

    def __init__(self, locks: AsyncLocks, lease: AsyncLease) -> None:
        self._locks = locks
        self._lease = lease
        self._block: Block | None = None

    @property
    def name(self) -> str:
        return self._lease.name

    @property
    def token(self) -> str:
        return self._lease.token

    @property
    def fence(self) -> int | None:
        return self._lease.fence

    @property
    def ttl(self) -> float:
        return self._lease.ttl

    @property
    def owner(self) -> str:
        return self._lease.owner

    @property
    def remaining(self) -> float:
        return self._lease.remaining

    @property
    def lost(self) -> bool:
        return self._lease.lost

    @property
    def lost_reason(self) -> str | None:
        return self._lease.lost_reason

    def check(self) -> None:
        self._lease.check()

    def extend(self, ttl: float | None = None) -> None:
        self._locks.run(self._lease.extend(ttl))

    def release(self) -> None:
        self._locks.run(self._lease.release())

    def __bool__(self) -> bool:
        return bool(self._lease)

    def __enter__(self) -> AsyncHeld:
        self._block = Block(self._locks, self._lease)
        self._block.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._block is not None:
            self._block.exit(error)
        else:
            self._locks.run(self._lease.__aexit__(kind, error, tb))


class AsyncLockFace:
    """An `AsyncLock` with the sync names."""

    def __init__(self, locks: AsyncLocks, lock: ManagedAsyncLock) -> None:
        self._locks = locks
        self._lock = lock
        self._blocks: dict[int, Block] = {}

    @property
    def name(self) -> str:
        return self._lock.name

    @property
    def lease(self) -> Any:
        lease = self._lock.lease
        return None if lease is None else AsyncHeld(self._locks, lease)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._locks.run(self._lock.acquire(blocking, timeout))

    def release(self) -> None:
        self._locks.run(self._lock.release())

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> Any:
        block = self._blocks[threading.get_ident()] = Block(self._locks, self._lock)
        return AsyncHeld(self._locks, block.enter())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._blocks.pop(threading.get_ident()).exit(error)

    def __repr__(self) -> str:
        return repr(self._lock)
