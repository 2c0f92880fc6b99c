"""Laws of the traits: they are what the tables in the docs say of a backend."""

from __future__ import annotations

import math

from .. import _registry
from ..backends import Traits
from ._base import Laws
from ._facade import Locks


class TraitLaws(Laws):
    def test_traits_are_complete_and_consistent(self, traits: Traits) -> None:
        assert traits.scope in ("process", "machine", "network")
        assert traits.fence in ("none", "process", "clock", "durable")
        assert traits.waits in ("wake", "poll")
        assert traits.survives_restart in ("yes", "no", "if persisted")
        assert 0 <= traits.ttl_step < traits.longest_ttl
        assert traits.longest_ttl >= 3600
        assert traits.loses.strip()
        if traits.scope == "process":
            assert traits.survives_restart == "no", "a process takes its memory with it"
            assert traits.fence in ("none", "process")

    def test_making_a_backend_connects_to_nothing(self, url: str) -> None:
        backend, _ = _registry.backend_for(url)
        assert 0 < backend.request_bound < math.inf
        assert backend.place
        backend.channel().close()

    def test_a_manager_that_was_closed_connects_again(self, locks: Locks, another: Locks, name: str) -> None:
        lease = locks.acquire(name)
        locks.disconnect()
        assert lease, "what is held stays held"
        assert another.try_acquire(name) is None
        lease.release()
        locks.disconnect()
        locks.disconnect()
        locks.acquire(name, timeout=0).release()

    def test_a_manager_shows_where_its_store_is(self, locks: Locks, url: str) -> None:
        assert "LockManager" in repr(locks.manager)
        assert url.partition("://")[0] in repr(locks.manager)
