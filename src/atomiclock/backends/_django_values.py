"""What the caches share whose entries we write ourselves: the value of a lock, and how its waiters ask again.

The value is a pickled text, as if `cache.add(key, "atomiclock TOKEN OWNER")` had put it there, so `cache.get(key)`
gives other programs a text, and not an error. What others have put there is read without running anything.
"""

from __future__ import annotations

import pickle
import random
import warnings
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .. import _process
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Wait
from ._wire import Nap

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

MARK = "atomiclock"
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.25
"""Seconds after which a waiter looks again: a tenth of what it has waited so far, within these."""
ENOUGH_ENTRIES = 10_000
"""A cache that may drop entries from fewer than this on is warned about. Django's default is 300."""

_warned: set[str] = set()


class Adapter(Protocol):
    """A backend that is made from a cache and not from a URL."""

    traits: Traits
    request_bound: float
    place: str

    def add(self, ask: Add) -> Steps[Granted | Busy]: ...
    def remove(self, ask: Remove) -> Steps[bool]: ...
    def extend(self, ask: Extend) -> Steps[bool]: ...
    def peek(self, ask: Peek) -> Steps[Holder | None]: ...
    def wait(self, ask: Wait) -> Steps[Granted | Busy | None]: ...
    def channel(self) -> Channel: ...
    def async_channel(self) -> AsyncChannel: ...


class Value(NamedTuple):
    """Who has a lock. `token` is for people alone if the lock is not `ours`."""

    token: str
    owner: str | None
    ours: bool


def packed(token: str, owner: str, protocol: int) -> bytes:
    """The value of a lock that we have taken."""
    return pickle.dumps(f"{MARK} {token} {owner}", protocol)


def unpacked(data: bytes) -> Value:
    """What a value says, whoever wrote it."""
    found: Any = None
    with suppress(Exception):  # whatever broken or hostile bytes may lead to
        found = _Literal(BytesIO(data)).load()
    if isinstance(found, str) and found.count(" ") >= 2:
        mark, token, owner = found.split(" ", 2)
        if mark == MARK:
            return Value(token, owner, ours=True)
    text = f"{type(found).__name__} that cannot be shown"
    with suppress(Exception):  # such as a number of ten thousand digits
        text = str(found)[:200]
    return Value(text, None, ours=False)


class _Literal(pickle.Unpickler):
    """Reads text, numbers and the like. What would need a class or a function, which is how a pickle runs code, is
    refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def nap(ask: Wait) -> Nap:
    """What a waiter does where no release can wake it."""
    now = _process.clock()
    pause = min(max((now - ask.since) / 10, FIRST_PAUSE), LONGEST_PAUSE) * (0.5 + random.random())
    return Nap(min(ask.until, now + pause))


def warn_of_culling(cache: Any, place: str) -> None:
    """Warn of a cache that a busy day may fill so far that it drops locks."""
    if cache._max_entries < ENOUGH_ENTRIES:
        warn_once(
            f"{place} drops entries, locks too, when it has more than {cache._max_entries}: give locks an alias of "
            f"their own, with OPTIONS={{'MAX_ENTRIES': {100 * ENOUGH_ENTRIES}}}"
        )


def warn_once(text: str) -> None:
    """Warn once in each process, however often a manager is made."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, RuntimeWarning, stacklevel=2)
