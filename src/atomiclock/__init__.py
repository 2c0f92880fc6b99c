"""atomiclock: one lock over memory, files, Redis and other stores, that tells the truth about its lease.

>>> from atomiclock import acquire_lock
>>> with acquire_lock("invoice:42", "memory://", timeout=5) as lease:
...     lease.name, bool(lease), lease.fence is not None
('invoice:42', True, True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._api import acquire_lock, try_lock
from ._options import configure
from .errors import (
    BackendRefused,
    BackendUnavailable,
    ConfigurationError,
    LockError,
    LockLost,
    LockTimeout,
    NotHeld,
    StaleFence,
)

if TYPE_CHECKING:
    from ._async_lease import AsyncLease
    from ._async_manager import AsyncLockManager
    from ._manager import LockManager
    from ._observe import Event, log_event, observe
    from ._protocols import AsyncLock, Lock
    from ._sync_lease import Lease
    from .backends import Holder, Traits

__version__ = "0.1.0"

# Loaded when first asked for: `import atomiclock` must cost next to nothing, and sync code needs no asyncio.
_LAZY = {
    "AsyncLease": "_async_lease",
    "AsyncLockManager": "_async_manager",
    "Lease": "_sync_lease",
    "LockManager": "_manager",
    "Event": "_observe",
    "log_event": "_observe",
    "observe": "_observe",
    "AsyncLock": "_protocols",
    "Lock": "_protocols",
    "Holder": "backends",
    "Traits": "backends",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "AsyncLease",
    "AsyncLock",
    "AsyncLockManager",
    "BackendRefused",
    "BackendUnavailable",
    "ConfigurationError",
    "Event",
    "Holder",
    "Lease",
    "Lock",
    "LockError",
    "LockLost",
    "LockManager",
    "LockTimeout",
    "NotHeld",
    "StaleFence",
    "Traits",
    "acquire_lock",
    "configure",
    "log_event",
    "observe",
    "try_lock",
]
