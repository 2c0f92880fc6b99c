"""The conformance suite on a fake whose clock is moved as real time goes by: it is a backend as any other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from atomiclock.testing import BackendSuite, FakeStore, _fake_world


class TestFake(BackendSuite):
    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
        # Time shall run as it does for others, also for who waits for itself.
        monkeypatch.setattr(_fake_world, "only_me", lambda party: False)
        end = threading.Event()

        def tick() -> None:
            clock, before = store._fake.clock, time.monotonic()
            while not end.wait(0.001):
                now = time.monotonic()
                target, before = clock() + min(now - before, 0.005), now  # never makes up for a pause: that is a jump
                while clock.step(target):  # without waiting for anybody, as time does
                    pass
                store._fake.keeper.turn()

        with FakeStore() as store:
            name = store._fake.name
            self.preload = f"from atomiclock.testing import _fake_world as w; w.open_fake(w.Fake({name!r}))"
            ticker = threading.Thread(target=tick, daemon=True)
            ticker.start()
            yield store
            end.set()
            ticker.join()

    @pytest.fixture
    def url(self, store: FakeStore) -> str:
        return store.url

    @pytest.fixture
    def leftovers(self, store: FakeStore) -> Callable[[], int]:
        fake = store._fake
        return lambda: len(fake.locks) + len(fake.waiters) + len(fake.keeper.expected) + len(fake.clock.sleepers)
