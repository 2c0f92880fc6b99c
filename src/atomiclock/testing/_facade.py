"""One face for both colours, so that each law is written once: the sync names, with threads or tasks behind them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Protocol

from .._manager import LockManager
from ..backends import Holder

Colour = Literal["sync", "async"]


class Interrupted(BaseException):
    """What a signal handler raises in these tests: like `KeyboardInterrupt`, but pytest does not stop for it."""


INTERRUPTIONS = (Interrupted, CancelledError, asyncio.CancelledError)


class Held(Protocol):
    """A lease, whatever its colour."""

    @property
    def name(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def fence(self) -> int | None: ...
    @property
    def ttl(self) -> float: ...
    @property
    def owner(self) -> str: ...
    @property
    def remaining(self) -> float: ...
    @property
    def lost(self) -> bool: ...
    @property
    def lost_reason(self) -> str | None: ...
    def check(self) -> None: ...
    def extend(self, ttl: float | None = None) -> None: ...
    def release(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> Any: ...


class LockFace(Protocol):
    """A lock object, whatever its colour."""

    @property
    def name(self) -> str: ...
    @property
    def lease(self) -> Any: ...
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> Any: ...


class Locks(Protocol):
    """A manager, whatever its colour."""

    colour: Colour
    manager: Any

    def acquire(self, name: str, **options: Any) -> Held: ...
    def try_acquire(self, name: str, **options: Any) -> Held | None: ...
    def holder(self, name: str, **options: Any) -> Holder | None: ...
    def lock(self, name: str, **options: Any) -> LockFace: ...

    def perform(self, ask: Any) -> Any:
        """The backend's own answer to `ask`; `Unknown` if there is none."""

    def interrupted(self, seconds: float, name: str, **options: Any) -> None:
        """Acquire `name`, and be interrupted after `seconds`: by a signal, or by a cancellation."""

    def reopen(self) -> None:
        """Go on in a forked child."""

    def disconnect(self) -> None:
        """What the manager's own `close` or `aclose` does."""

    def close(self) -> None:
        """Disconnect, and end what this face has started."""


def open_locks(colour: Colour, url: str, **defaults: Any) -> Locks:
    """A new manager for `url`."""
    from ._async_facade import AsyncLocks  # which needs the protocols above

    return AsyncLocks(url, **defaults) if colour == "async" else SyncLocks(url, **defaults)


class SyncLocks:
    """`LockManager` as it is."""

    colour: Colour = "sync"

    def __init__(self, url: str, **defaults: Any) -> None:
        self.manager = LockManager(url, **defaults)

    def acquire(self, name: str, **options: Any) -> Held:
        return self.manager.acquire(name, **options)

    def try_acquire(self, name: str, **options: Any) -> Held | None:
        return self.manager.try_acquire(name, **options)

    def holder(self, name: str, **options: Any) -> Holder | None:
        return self.manager.holder(name, **options)

    def lock(self, name: str, **options: Any) -> LockFace:
        return self.manager.lock(name, **options)

    def perform(self, ask: Any) -> Any:
        return self.manager._store.perform(ask)

    def interrupted(self, seconds: float, name: str, **options: Any) -> None:
        with interrupt_main_thread(seconds):
            self.manager.acquire(name, **options)

    def reopen(self) -> None:
        pass

    def disconnect(self) -> None:
        self.manager.close()

    close = disconnect


@contextmanager
def interrupt_main_thread(seconds: float) -> Iterator[None]:
    """Raise `Interrupted` in the body after `seconds`. Only for the main thread, since signals are."""

    def raise_it(*_: object) -> None:
        raise Interrupted

    ident = threading.get_ident()
    timer = threading.Timer(seconds, lambda: signal.pthread_kill(ident, signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, raise_it)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)
