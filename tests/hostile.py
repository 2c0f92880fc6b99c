"""What every adapter must do with a value that it cannot have written."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from atomiclock import LockError, LockManager

NAME = "n"


def survives(url: str, *, shown: bool = True) -> None:
    """Who meets such a value gets no lock and no strange exception, within its time, and names the lock."""
    begun = time.monotonic()
    with LockManager(url, namespace="") as locks:
        tries = [lambda: locks.try_acquire(NAME), lambda: locks.acquire(NAME, timeout=0.05)]
        for found in map(outcome, tries):
            assert found is None or isinstance(found, LockError), "granted"
        holder = outcome(lambda: locks.holder(NAME))
        assert not shown or holder is not None
        repr(holder)
    assert time.monotonic() - begun < 10


def outcome(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the error that it raises, which can be read by anybody."""
    try:
        return call()
    except LockError as error:
        text = str(error)
        ok = error.name == NAME and len(text) < 1000 and text.isprintable()
        assert ok, text[:2000]  # whatever was returned is looked at as well
        return error


def ids(value: Any) -> str:
    return repr(value)[:30]
