"""A verb that needs no request is spared its steps, and is a generator as any other for whoever wraps it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

from atomiclock import AsyncLockManager, LockManager, _registry
from atomiclock._core import Core
from atomiclock.backends import VERBS, Add, Granted, Peek, Remove, facts_of
from atomiclock.backends.memory import MemoryBackend


class Counting:
    """A backend around another, as anybody may write one."""

    traits = MemoryBackend.traits
    place, request_bound = "around memory://", 1.0

    def __init__(self, inner: MemoryBackend, seen: list[str]) -> None:
        self._inner = inner
        self._seen = seen

    def add(self, ask: Add) -> Any:
        self._seen.append("add")
        return (yield from self._inner.add(ask))

    def remove(self, ask: Remove) -> Any:
        self._seen.append("remove")
        return (yield from self._inner.remove(ask))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Channel:
    def __init__(self, inner: Any, seen: list[str]) -> None:
        self._inner = inner
        self._seen = seen

    def call(self, request: Any, deadline: float) -> Any:
        self._seen.append("a request")
        return self._inner.call(request, deadline)

    def close(self) -> None:
        self._inner.close()


class Listening(MemoryBackend):
    """All verbs are inherited: it only wants to see the requests."""

    seen: list[str]

    def channel(self) -> Any:
        return _Channel(super().channel(), self.seen)

    def async_channel(self) -> Any:
        return _Channel(super().async_channel(), self.seen)


def cycle(backend: Any, monkeypatch: pytest.MonkeyPatch, colour: str) -> None:
    monkeypatch.setattr(_registry, "backend_for", lambda _: (backend, {}))
    if colour == "sync":
        with LockManager("memory://").acquire("a") as lease:
            assert lease.fence
        return

    async def main() -> None:
        async with AsyncLockManager("memory://").acquire("a") as lease:
            assert lease.fence

    asyncio.run(main())


def memory(cls: Callable[[str], Any] = MemoryBackend) -> Any:
    return cls("at-once")


colours = pytest.mark.parametrize("colour", ["sync", "async"])


@colours
def test_who_wraps_the_verbs_is_asked_each_time(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    cycle(Counting(memory(), seen), monkeypatch, colour)
    assert seen == ["add", "remove"]


@colours
def test_who_has_channels_of_its_own_sees_each_request(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = memory(Listening)
    backend.seen = []
    cycle(backend, monkeypatch, colour)
    assert backend.seen == ["a request"] * 2


@colours
def test_a_verb_that_was_replaced_is_not_asked_any_more(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = MemoryBackend.add

    @wraps(original)  # which copies all that the function has
    def add(self: Any, ask: Add) -> Any:
        seen.append("add")
        return (yield from original(self, ask))

    monkeypatch.setattr(MemoryBackend, "add", add)
    cycle(memory(), monkeypatch, colour)
    assert seen == ["add"]
    monkeypatch.undo()
    backend = memory()
    backend.add = lambda ask: add(backend, ask)
    cycle(backend, monkeypatch, colour)
    assert seen == ["add", "add"]


def test_only_a_backend_that_has_such_verbs_itself_is_spared_the_steps() -> None:
    backend = memory()
    assert {VERBS[ask] for ask in facts_of(backend)} == {"add", "remove", "extend", "peek"}
    assert facts_of(memory(Listening)) == facts_of(Counting(backend, [])) == {}
    assert facts_of(Core("sqlite://", None, {}, "sync", None).backend) == {}


def test_a_verb_at_once_takes_the_steps_of_any_other() -> None:
    backend = memory()
    channel = backend.channel()
    steps = backend.add(Add("k", "t", 5.0, "me", False, 0.0))
    with pytest.raises(StopIteration) as end:
        steps.send(channel.call(next(steps), 0.0))
    assert end.value.value == Granted(facts_of(backend)[Peek](Peek("k", 0.0)).fence)
    assert facts_of(backend)[Remove](Remove("k", "t", 0, 0.0)) is True
