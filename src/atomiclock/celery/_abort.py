"""Raise `LockLost` in a task the moment its lock is lost, where Python lets us: in the main thread of a process.

A prefork child and a solo worker run their tasks there. The signal is the one that Celery's pool uses for soft time
limits, so it also interrupts what waits in the kernel; whatever handled it before handles what is not ours.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._lease import LeaseView

_NUMBER = getattr(signal, "SIGUSR1", None)
_armed: list[LeaseView] = []
"""The leases of the task that runs, innermost last."""
_struck: list[LeaseView] = []
_before: Any = None


@contextmanager
def abortable(lease: LeaseView) -> Iterator[bool]:
    """Let `strike(lease)` raise `LockLost` inside the block. False if this is not the place where it can."""
    if _NUMBER is None or threading.current_thread() is not threading.main_thread():
        yield False
        return
    _take_over()
    try:
        _armed.append(lease)
        yield True
    finally:
        _armed.remove(lease)


def strike(lease: LeaseView) -> None:
    """Interrupt the block in which `lease` is abortable, if it still runs. From any thread."""
    ident = threading.main_thread().ident
    if lease in _armed and _NUMBER is not None and ident is not None:
        _struck.append(lease)
        signal.pthread_kill(ident, _NUMBER)


def _take_over() -> None:
    global _before
    now = signal.getsignal(_NUMBER) if _NUMBER is not None else None
    if now is not _on_signal and _NUMBER is not None:  # the pool sets its own when a child begins
        _before = now
        signal.signal(_NUMBER, _on_signal)


def _on_signal(number: int, frame: Any) -> None:
    if not _struck:
        if callable(_before):
            _before(number, frame)
        return
    while _struck:
        lease = _struck.pop()
        if lease in _armed and lease.lost:
            lease.check()
