"""What people may ask of a store beyond the five verbs: which locks there are, who waits, whether it is set up well.

Beside an adapter `redis.py` there may be a module `_redis_admin.py` with any of these functions; another package's
backend names its module in an attribute `admin`. Each is a generator like a verb, and performed by the same channels.
What a module does not have, its store cannot tell.

    held(backend, prefix) -> Steps[list[Seen]]      all locks whose key begins with `prefix`
    seen(backend, key) -> Steps[Seen | None]        one lock
    diagnose(backend) -> Steps[list[Finding]]       what of the store's state or settings matters to locks
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, NamedTuple

from . import Backend, Holder, Peek, Steps


class Waiting(NamedTuple):
    """Somebody who waits."""

    owner: str | None
    since: float | None
    """Seconds for which it has waited."""


class Seen(NamedTuple):
    """One lock that is held."""

    key: str
    holder: Holder
    age: float | None = None
    """Seconds since it was granted; `None` if the store does not know."""
    waiting: tuple[Waiting, ...] | None = None
    """Who waits in the store, first come first; `None` if the store does not know who."""
    awaited: bool | None = None
    """Whether anybody waits; `None` if the store does not know."""


class Finding(NamedTuple):
    """One thing about a store. `bad`: locks do not work; `warn`: they can be lost; `note`: worth knowing."""

    level: Literal["ok", "note", "warn", "bad"]
    text: str
    advice: str = ""


class CannotList(Exception):
    """This store cannot tell which locks it has. The message says why, and what to do instead."""


def admin_of(backend: Backend) -> Any:
    """The module for `backend`; `None` if it has none."""
    given = getattr(backend, "admin", None)
    if given is not None:
        return import_module(given) if isinstance(given, str) else given
    package, _, name = type(backend).__module__.rpartition(".")
    if package != __package__ or name not in ("redis", "sqlite", "etcd", "memcached"):
        return None
    return import_module(f"{package}._{name}_admin")


def held(backend: Backend, prefix: str) -> Steps[list[Seen]]:
    """All locks whose key begins with `prefix`. Raises `CannotList`."""
    admin = admin_of(backend)
    if not hasattr(admin, "held"):
        why = getattr(admin, "NO_LIST", "this store cannot tell which locks it has")
        raise CannotList(f"{backend.place}: {why}; name the locks that you want to see")
    found: list[Seen] = yield from admin.held(backend, prefix)
    return found


def seen(backend: Backend, key: str, deadline: float) -> Steps[Seen | None]:
    """The lock of `key`, or `None` if nobody has it."""
    admin = admin_of(backend)
    if hasattr(admin, "seen"):
        found: Seen | None = yield from admin.seen(backend, key)
        return found
    holder = yield from backend.peek(Peek(key, deadline))
    return None if holder is None else Seen(key, holder)


def diagnose(backend: Backend) -> Steps[list[Finding]]:
    """What of the store's state or settings matters to locks."""
    admin = admin_of(backend)
    if not hasattr(admin, "diagnose"):
        return []
    findings: list[Finding] = yield from admin.diagnose(backend)
    return findings


def text_of(key: bytes) -> str | None:
    """The key as text; `None` if it is other software's, and none of ours can be spelled so."""
    try:
        return key.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
