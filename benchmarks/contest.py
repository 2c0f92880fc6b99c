"""What a contestant is: a library's lock on one store, opened in a process of its own.

`open(place)` is called once in each process and returns a function that makes a lock for a name: the pair of calls
that take it and give it back. A lock object belongs to one thread or task; the client behind it is shared, as an
application would share it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

RAW, RIVAL, OURS = "raw", "rival", "ours"
PATIENCE = 600
"""Seconds that a rival may wait, where it wants a bound."""


class Place(NamedTuple):
    """Where the stores are."""

    folder: str
    ports: dict[str, int]
    ttl: int = 30
    """Seconds, for everybody: what ours has unless told otherwise."""

    def port(self, store: str) -> int:
        return self.ports[store]


class Lock(NamedTuple):
    """The two calls, or coroutine functions, of one lock."""

    acquire: Callable[[], Any]
    release: Callable[[], Any]
    keep: Callable[[], Any] | None = None
    """Acquires, and returns what a holder has to keep, which has a `release`: for weighing it."""


def plain(one: Any) -> Lock:
    """Of a lock object that is kept itself."""

    def keep() -> Any:
        one.acquire()
        return one

    return Lock(one.acquire, one.release, keep)


@dataclass(frozen=True)
class Contestant:
    """A library's lock on one store."""

    name: str
    store: str
    role: str
    open: Callable[[Place], Any]
    is_async: bool = False
    needs: tuple[str, ...] = ()
    """Distributions, for the versions in the report."""
    waits: bool = True
    """Whether it can wait for the lock: if not, only what needs no waiting is measured."""
    sends: tuple[str, ...] = ("set", "eval", "evalsha", "blpop", "publish", "subscribe", "pubsub", "script")
    """The Redis commands that it sends itself, as against those that its scripts call."""
    slow: bool = False
    """Whether one round has to do where others want the lock: it waits for so long that more would take minutes."""
    many: bool = False
    """Whether it is asked to hold 10,000 locks at once."""
    scenarios: tuple[str, ...] = ()
    """Only these scenarios, or tables, if any are named."""
    without: tuple[tuple[str, str], ...] = ()
    """Scenarios, or tables, that it does not take part in, and why."""

    @property
    def group(self) -> str:
        """The table it belongs to."""
        return f"{self.store}, asyncio" if self.is_async else self.store

    @property
    def label(self) -> str:
        return f"{self.group}: {self.name}"

    def excuse(self, title: str, scenario: str) -> str | None:
        """Why it does not take part; an empty string if there is nothing to say about it."""
        if self.scenarios and not {title, scenario} & set(self.scenarios):
            return ""
        if scenario == "S4, held" and not self.many:
            return ""
        if not self.waits and scenario in ("S2", "S3", "S3b"):
            return ""
        reasons = dict(self.without)
        return reasons.get(title, reasons.get(scenario))

    def versions(self) -> dict[str, str]:
        found = {}
        for name in self.needs:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed"
        return found


def said(error: BaseException) -> str:
    """An error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


_all: list[Contestant] = []


def contestant(name: str, store: str, role: str = RIVAL, **more: Any) -> Callable[[Callable[..., Any]], Any]:
    """Enter the decorated `open` function in the contest."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        _all.append(Contestant(name, store, role, function, **more))
        return function

    return enter


def enter(entry: Contestant) -> None:
    _all.append(entry)


def contestants() -> list[Contestant]:
    """All of them, the raw client of a store first, and ours last. Imports no library."""
    for module in ("ours", "redis", "memcached", "etcd", "local"):
        importlib.import_module(f"contestants_{module}")
    order = {RAW: 0, RIVAL: 1, OURS: 2}
    return sorted(_all, key=lambda one: order[one.role])


def find(label: str) -> Contestant:
    return next(one for one in contestants() if one.label == label)
