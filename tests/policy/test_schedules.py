"""The policy in thousands of random worlds: safety while the network misbehaves, and progress once it is calm."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tally import chosen, note
from world import FATES, Client, Faults, Process, SimStore, World

from atomiclock import _hold, _plans
from atomiclock.backends import Add, Extend, Granted, Remove

SCHEDULES = int(os.environ.get("ATOMICLOCK_SCHEDULES", chosen(4000, 40_000)))
HOUSES = ([1, 1], [1, 1, 1], [2], [2, 1], [3], [2, 2])
"""How many contenders are in which process."""
SEEN: Counter[str] = Counter()


def explore(seed: int, store_class: type[SimStore] = SimStore) -> list[str]:
    """What is wrong in the world of `seed`: first whether it was safe, then whether it recovered."""
    world = World(seed, store_class)
    names = iter("abcd")
    for contenders in world.rng.choice(HOUSES):
        process = Process(world)
        for _ in range(contenders):
            Client(world, next(names), rounds=4, process=process)
        if world.rng.random() < 0.1:
            world.at(world.now + 10 * world.rng.random(), process.crash)
    world.run(until=world.now + 120)
    world.calm = True
    world.run(until=world.now + 120)
    wrong = list(world.violations)
    fences = [hold.fence for hold in world.grants if hold.fence is not None]
    if fences != sorted(set(fences)):
        wrong.append(f"fences {fences}")
    if world.unfinished:
        wrong.append(f"{world.unfinished} clients never came to an end")
    SEEN["grants"] += len(world.grants)
    SEEN["passed on"] += world.passed_on
    return wrong


def test_in_every_schedule_at_most_one_holds_and_all_come_to_an_end() -> None:
    SEEN.clear()
    for seed in range(SCHEDULES):
        assert not (wrong := explore(seed)), f"seed {seed}: {wrong[:3]}"
    assert SEEN["passed on"] > SCHEDULES / 20, "no lock was passed on within a process"
    note(f"{SCHEDULES} schedules of the policy, clean: {SEEN['grants']} grants, {SEEN['passed on']} passed on in line")


FIRST = chosen(5, 7)


def test_every_fate_of_the_first_messages_is_survived() -> None:
    for number, script in enumerate(itertools.product(FATES, repeat=FIRST)):
        world = World(seed=number, fates=list(script))
        world.faults = Faults(0.0, 0.0, 0.0, 0.02)
        process = Process(world)
        for name in "ab":
            Client(world, name, rounds=2, process=process if number % 2 else None)
        world.run(until=world.now + 300)
        assert not world.violations, f"{script}: {world.violations[:3]}"
        assert not world.unfinished, f"{script}: somebody never came to an end"
    note(f"{number + 1} combinations of fates of the first {FIRST} messages, clean")


class BlindDelete(SimStore):
    def remove(self, ask: Remove) -> bool:
        self.token = self.holder() and ask.token
        return super().remove(ask)


class NoTombstones(SimStore):
    """A store that cannot refuse an add which arrives after its token was removed, and says so."""

    late_adds = True

    def remove(self, ask: Remove) -> bool:
        return super().remove(ask._replace(in_flight=0))


class WaitAdds(SimStore):
    """A store at which a wait ends with an add."""

    wait_adds = True


class UncomparedExtend(SimStore):
    def extend(self, ask: Extend) -> bool:
        self.token = ask.token
        self.expires = self.world.now + ask.ttl
        return True


class CheckThenSet(SimStore):
    """Looks whether it is free when the request arrives, and takes it a moment later."""

    def add(self, ask: Add) -> Any:
        if self.holder() not in (None, ask.token):
            return super().add(ask)
        self.world.at(self.world.now + 0.005, lambda: self.take(ask))
        return Granted(self.fence + 1)

    def take(self, ask: Add) -> None:
        self.token = None
        super().add(ask)


class FenceReset(SimStore):
    def add(self, ask: Add) -> Any:
        self.fence = self.fence if self.holder() else 0
        return super().add(ask)


def _passed_on_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _hold.Hold.take_over

    def take_over(hold: Any, other: Any, now: float) -> None:
        real(hold, other, now)
        other.state = _hold.HELD

    monkeypatch.setattr(_hold.Hold, "take_over", take_over)


def _passed_on_with_its_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _hold.Hold.take_over

    def take_over(hold: Any, other: Any, now: float) -> None:
        real(hold, other, now)
        hold.fence = other.fence

    monkeypatch.setattr(_hold.Hold, "take_over", take_over)


def _an_old_extension_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal counts from when its answer came."""
    real = _hold.Hold.extended
    monkeypatch.setattr(_hold.Hold, "extended", lambda self, sent, ttl: real(self, sent + 0.5, ttl))


def _validity_from_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _hold.Hold.granted

    def granted(hold: Any, _: float, now: float, fence: int | None, repeated: bool) -> bool:
        return real(hold, now, now, fence, repeated)

    monkeypatch.setattr(_hold.Hold, "granted", granted)


def _lost_counted_as_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hold.Hold, "over", lambda self, _: self.state == _hold.LOST)


@pytest.mark.parametrize("store_class", [BlindDelete, UncomparedExtend, CheckThenSet, FenceReset])
def test_a_store_that_does_not_compare_is_found_out(store_class: type[SimStore]) -> None:
    _report(store_class.__name__, next((s for s in range(SCHEDULES) if explore(s, store_class)), None))


MUTATIONS = (
    _validity_from_the_reply, _lost_counted_as_released, _an_old_extension_counts, _passed_on_and_kept,
    _passed_on_with_its_fence,
)  # fmt: skip


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_lease_that_outlives_its_store_is_found_out(monkeypatch: pytest.MonkeyPatch, mutate: Any) -> None:
    mutate(monkeypatch)
    _report(mutate.__name__.strip("_"), next((seed for seed in range(SCHEDULES) if explore(seed)), None))


def _report(mutant: str, seed: int | None) -> None:
    assert seed is not None, f"{mutant} survived {SCHEDULES} schedules"
    note(f"mutant of the policy {mutant}: caught by schedule {seed + 1}")


def stuck_after_calm(seed: int, store_class: type[SimStore] = SimStore, held_for: float = 0.0) -> bool:
    """Whether the lock is still taken, by nobody, once the network has delivered everything.

    Others hold it for the first `held_for` seconds.
    """
    world = World(seed, store_class)
    if held_for:
        world.store.token, world.store.expires = "others", world.now + held_for
    world.faults.lose_request, world.faults.lose_reply, world.faults.late = 0.0, 0.5, 0.5
    world.faults.double = 0.0  # TCP doubles nothing; an add of which nobody knows stays until its ttl is over
    client = Client(world, "a", rounds=1)
    client.options = client.options._replace(ttl=1000.0, timeout=1.0 + 8 * (seed % 2), renew=True)
    world.run(until=world.now + 1.5 + 12 * (seed % 2))
    world.calm = True
    world.run(until=world.now + 100)
    return world.store.holder() not in (None, "others") and not any(hold.held(world.now) for hold in world.grants)


def test_an_attempt_given_up_leaves_no_lock_however_late_its_request_lands() -> None:
    assert not [seed for seed in range(SCHEDULES) if stuck_after_calm(seed)]


def test_where_no_tombstone_is_possible_a_late_add_is_taken_off_when_it_lands() -> None:
    assert not [seed for seed in range(SCHEDULES) if stuck_after_calm(seed, NoTombstones)]


def test_schedules_without_tombstones_keep_the_laws() -> None:
    assert not [seed for seed in range(SCHEDULES) if explore(seed, NoTombstones)]
    note(f"{SCHEDULES} schedules of a store without tombstones, clean")


def test_schedules_where_a_wait_ends_with_an_add_keep_the_laws() -> None:
    for seed in range(SCHEDULES):
        assert not (wrong := explore(seed, WaitAdds)), f"seed {seed}: {wrong[:3]}"
    assert not [seed for seed in range(SCHEDULES) if stuck_after_calm(seed, WaitAdds, held_for=2.0)]
    note(f"{2 * SCHEDULES} schedules of a store whose waits add, clean")


def test_an_add_at_the_end_of_a_wait_that_is_not_counted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_plain_adds(hold: Any, sent: float) -> None:
        hold.in_flight += not hold.waited
        hold.last_sent = sent

    monkeypatch.setattr(_hold.Hold, "sending", only_plain_adds)
    found = (seed for seed in range(SCHEDULES) if stuck_after_calm(seed, WaitAdds, held_for=2.0))
    _report("add_after_a_wait_not_counted", next(found, None))


def test_without_the_watch_for_late_adds_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoTombstones, "late_adds", False)
    found = next((seed for seed in range(SCHEDULES) if stuck_after_calm(seed, NoTombstones)), None)
    _report("late_adds_forgotten", found)


def test_without_the_undo_a_ghost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "give_up", lambda self: self.hold.give_up())
    _report("no_undo", next((seed for seed in range(SCHEDULES) if stuck_after_calm(seed)), None))


def test_a_release_that_forgets_a_sibling_still_under_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hold.Hold, "may_land", property(lambda self: self.in_flight))
    _report("sibling_forgotten", next((seed for seed in range(SCHEDULES) if stuck_after_calm(seed)), None))


def test_without_the_tombstone_a_late_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _plans, "quick", lambda kind, fields: kind(*fields)._replace(**{"in_flight": 0} if kind is Remove else {})
    )
    _report("no_tombstone", next((seed for seed in range(SCHEDULES) if stuck_after_calm(seed)), None))
