"""Laws of what a grant can be told by: fence, token, and what others are shown."""

from __future__ import annotations

import os
from itertools import pairwise

from ..backends import Traits
from ._base import SLACK, Laws, eventually, lost, needs
from ._facade import Locks


class FenceLaws(Laws):
    def test_fences_grow_over_release_and_expiry_and_managers(
        self, locks: Locks, another: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        needs(traits.fence != "none", "no fence")
        fences: list[int | None] = []
        for mine in (locks, another, another, locks):
            with mine.acquire(name) as lease:
                fences.append(lease.fence)
        fences.append(lost(locks, name, brief).fence)
        with another.acquire(name, timeout=10) as lease:
            fences.append(lease.fence)
        assert all(type(fence) is int for fence in fences)
        assert all(a < b for a, b in pairwise(fences)), fences  # type: ignore[operator]  # ints

    def test_a_fence_does_not_change_while_it_is_held(self, locks: Locks, name: str, traits: Traits) -> None:
        with locks.acquire(name) as lease:
            before = lease.fence
            lease.extend()
            holder = locks.holder(name)
            assert lease.fence == before
            assert holder is not None
            assert holder.fence == before
            assert (before is None) == (traits.fence == "none")

    def test_tokens_differ_from_grant_to_grant(self, locks: Locks, another: Locks, name: str) -> None:
        tokens = []
        for mine in (locks, another) * 5:
            with mine.acquire(name) as lease, mine.acquire(name + "2") as second:
                tokens += [lease.token, second.token]
        assert len(set(tokens)) == 20
        assert min(len(token) for token in tokens) >= 22, "128 bits"

    def test_the_holder_is_shown_while_it_holds(self, locks: Locks, another: Locks, name: str) -> None:
        assert another.holder(name) is None
        with locks.acquire(name, ttl=20, owner="Ann's laptop é 💡") as lease:
            holder = another.holder(name)
            assert holder is not None
            assert (holder.owner, holder.token, holder.fence) == ("Ann's laptop é 💡", lease.token, lease.fence)
            assert holder.remaining is not None
            assert 0 < holder.remaining <= 20 + SLACK
            assert lease.owner == "Ann's laptop é 💡"
        assert another.holder(name) is None

    def test_the_holder_is_not_shown_after_it_expired(
        self, locks: Locks, name: str, traits: Traits, brief: float
    ) -> None:
        lost(locks, name, brief)
        eventually(lambda: locks.holder(name) is None, 2 * traits.ttl_step + SLACK)

    def test_an_owner_that_was_not_chosen_names_the_process(self, locks: Locks, another: Locks, name: str) -> None:
        with locks.acquire(name):
            holder = another.holder(name)
        assert holder is not None
        assert str(os.getpid()) in (holder.owner or "")

    def test_an_owner_may_have_any_characters(self, locks: Locks, name: str) -> None:
        for owner in ("", "two words", "a\r\nSET x 1\r\n", "\0", "\udcff"):
            with locks.acquire(name, owner=owner):
                holder = locks.holder(name)
                assert holder is not None
                assert holder.owner is not None
