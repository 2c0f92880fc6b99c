"""What every group of laws shares: the fixtures of the suite, and waiting for a condition with a bound."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from .. import _process, _registry
from ..backends import Remove, Traits
from ._facade import Colour, Held, Locks, open_locks
from ._trouble import Trouble, trouble_for

T = TypeVar("T")

SLACK = 2.0
"""Seconds that a busy machine may take for what should take milliseconds."""


class Laws:
    """The fixtures. A backend's suite overrides `url`, and may override `leftovers` and `preload`."""

    preload: str = ""
    """Python that child processes run first, if importing the package does not suffice to know the URL's scheme."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError("a fixture `url` that returns the backend's URL, with nobody else on it")

    @pytest.fixture
    def leftovers(self) -> Callable[[], int]:
        """Counts what is in the store: keys, rows, leases. Override it, so that what is left behind is seen."""
        return lambda: 0

    @pytest.fixture(params=["sync", "async"])
    def colour(self, request: pytest.FixtureRequest) -> Colour:
        colour: Colour = request.param
        return colour

    @pytest.fixture
    def traits(self, url: str) -> Traits:
        return _registry.backend_for(url)[0].traits

    @pytest.fixture
    def short(self, traits: Traits) -> float:
        """A ttl that ends soon, but that a busy machine can keep."""
        return max(0.3, 2 * traits.ttl_step)

    @pytest.fixture
    def brief(self, traits: Traits) -> float:
        """A ttl that ends at once, for leases that shall be lost."""
        return max(0.06, 1.5 * traits.ttl_step)

    @pytest.fixture
    def name(self) -> str:
        return f"law-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    def managers(self, url: str, colour: Colour) -> Iterator[Callable[..., Locks]]:
        """Makes managers that share nothing but the store."""
        made: list[Locks] = []

        def make(**defaults: Any) -> Locks:
            made.append(open_locks(colour, url, **defaults))
            return made[-1]

        yield make
        for locks in made:
            locks.close()

    @pytest.fixture
    def locks(self, managers: Callable[..., Locks]) -> Locks:
        return managers()

    @pytest.fixture
    def another(self, managers: Callable[..., Locks]) -> Locks:
        """A second manager."""
        return managers()

    @pytest.fixture
    def troubled(self, managers: Callable[..., Locks]) -> Locks:
        """A manager whose store can be told to give trouble: by `trouble`."""
        return managers()

    @pytest.fixture
    def trouble(self, troubled: Locks) -> Trouble:
        return trouble_for(troubled)


def needs(condition: object, what: str) -> None:
    """Skip a law about what the backend's traits say it does not offer."""
    if not condition:
        pytest.skip(f"traits: {what}")


def eventually(condition: Callable[[], T | None], seconds: float = 20.0, what: str = "") -> T:
    """What `condition` returns once it is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {what or condition}")
        time.sleep(0.01)
    return found


def stays(condition: Callable[[], object], seconds: float, what: str = "") -> None:
    """Fail if `condition` becomes false within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not condition():
            pytest.fail(f"not for {seconds:g} s: {what or condition}")
        time.sleep(0.02)


def lost(locks: Locks, name: str, ttl: float) -> Held:
    """A lease on `name` whose ttl is over."""
    lease = locks.acquire(name, ttl=ttl, renew=False, timeout=10)
    eventually(lambda: lease.lost, what="the lease is lost")
    return lease


def key_for(locks: Locks, name: str) -> str:
    """The key of `name` in the store."""
    key: str = locks.manager._core.key(name, locks.manager._core.options())
    return key


def vanish(locks: Locks, name: str) -> None:
    """Remove a lock from the store behind its holder's back, as a flush or an eviction would."""
    holder = locks.holder(name)
    assert holder is not None, "there is nothing to remove"
    assert locks.perform(Remove(key_for(locks, name), holder.token, 0, _process.clock() + 5))


class Threads:
    """Threads that are joined at the end, the first error of which is raised."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, work: Callable[[], object]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                pytest.fail(f"a thread did not end within {seconds:g} s")
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.join()
