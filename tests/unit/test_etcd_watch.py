"""The stream of watches without a server: who waits is told of its end, whatever comes in between."""

from __future__ import annotations

from typing import Any

import pytest

from atomiclock.backends._etcd_recipe import Watch
from atomiclock.backends._etcd_watch import Watches
from atomiclock.testing._facade import Interrupted


class Stream(Watches):
    """One to nobody."""

    def __init__(self) -> None:
        super().__init__("host:1", False, b"")
        self.begin()

    def send(self, data: bytes) -> None:
        pass

    def hang_up(self) -> None:
        pass


def watch(stream: Stream, key: bytes, hear: Any) -> Any:
    return stream.watch(Watch(key, 5, 0.0, b"own of " + key), hear)


def test_an_end_that_is_interrupted_is_completed_by_the_next() -> None:
    stream, told, interrupts = Stream(), [], [Interrupted()]

    def hear(value: object) -> None:
        if interrupts:
            raise interrupts.pop()
        told.append(value)

    for key in (b"a", b"b", b"c"):
        watch(stream, key, hear)
    with pytest.raises(Interrupted):
        stream.close()
    stream.close()
    assert told == [None] * 3
