"""The policy under Hypothesis, which chooses every step and every message's fate, and shrinks what goes wrong."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

sys.path.insert(0, str(Path(__file__).parent))

from tally import LONG, chosen, note
from test_schedules import BlindDelete, CheckThenSet, FenceReset, NoTombstones, UncomparedExtend, WaitAdds
from world import FATES, Client, Faults, Process, SimStore, World

from atomiclock import _hold
from atomiclock._hold import HELD
from atomiclock._options import Options

CONTENDERS = st.integers(0, 2)
SEEN: Counter[str] = Counter()


class Contender(Client):
    """A client that does what it is told, one attempt after the other."""

    leaving = False

    def begin(self) -> None:
        pass

    def leave(self) -> None:
        self.leaving = True  # a lease that is lost stays so until the release is told
        super().leave()

    def again(self) -> None:
        self.hold, self.leaving = None, False

    def enjoy(self) -> None:
        pass

    @property
    def idle(self) -> bool:
        return not self.process.dead and self.hold is None

    @property
    def holds(self) -> bool:
        if self.process.dead or self.hold is None or self.leaving:
            return False
        return self.hold.state in (HELD, _hold.LOST)


class Machine(RuleBasedStateMachine):
    """Two of the three contenders are in one process. Nothing is random but what Hypothesis chooses."""

    store_class: type[SimStore] = SimStore

    @initialize(latency=st.sampled_from([0.001, 0.05, 0.3]), ttl=st.sampled_from([0.5, 2.0]), renew=st.booleans())
    def start(self, latency: float, ttl: float, renew: bool) -> None:
        SEEN["schedules"] += 1
        self.world = World(0, self.store_class)
        self.world.faults = Faults(0.0, 0.0, 0.0, latency)
        shared = Process(self.world)
        self.contenders = [
            Contender(self.world, name, 9**9, process)
            for name, process in (("a", shared), ("b", shared), ("c", Process(self.world)))
        ]
        self.options = Options(ttl=ttl, renew=renew)

    @rule(who=CONTENDERS, timeout=st.sampled_from([0, 1.0, 8.0]))
    def acquire(self, who: int, timeout: float) -> None:
        if (client := self.contenders[who]).idle:
            client.attempt(self.options._replace(timeout=timeout))

    @rule(who=CONTENDERS)
    def release(self, who: int) -> None:
        if (client := self.contenders[who]).holds:
            client.leave()

    @rule(who=CONTENDERS)
    def extend(self, who: int) -> None:
        if (client := self.contenders[who]).holds:
            client.extend()

    @rule(who=CONTENDERS)
    def cancel(self, who: int) -> None:
        if not (client := self.contenders[who]).process.dead:
            client.interrupt()

    @precondition(lambda self: not self.contenders[2].process.dead)
    @rule()
    def crash(self) -> None:
        self.contenders[2].process.crash()

    @rule(fates=st.lists(st.sampled_from(FATES), max_size=4))
    def network(self, fates: list[str]) -> None:
        self.world.fates = fates

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.4, 0.7, 2.0, 10.0]))
    def time_goes_by(self, seconds: float) -> None:
        until = self.world.now + seconds
        self.world.run(until)
        self.world.now = until

    @invariant()
    def never_two(self) -> None:
        SEEN["steps"] += 1
        if hasattr(self, "world"):
            assert not self.world.violations, self.world.violations[0]
            fences = [hold.fence for hold in self.world.grants]
            assert fences == sorted(set(fences)), fences

    def teardown(self) -> None:
        """All is delivered from now on, and all leave: everybody can get in."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.fates, world.calm, world.faults.latency = [], True, 0.001
        for _ in range(4):
            self.time_goes_by(15)
            for client in self.contenders:
                if client.holds:
                    client.leave()
        self.time_goes_by(15)
        assert not world.violations, world.violations[0]
        assert world.store.holder() is None, "somebody who is gone has it"
        last = self.contenders[0]
        assert last.idle, "it never came to an end"
        last.attempt(self.options._replace(timeout=8.0))
        world.run(until=world.now + 1)
        assert last.hold is not None
        assert last.hold.state == HELD
        SEEN["grants"] += len(world.grants)


def run(machine: type[Machine], examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    told = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None, suppress_health_check=checks,
        derandomize=True, print_blob=False, phases=phases,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=told)


@pytest.mark.parametrize("store", [SimStore, NoTombstones, WaitAdds])
def test_whatever_hypothesis_chooses_at_most_one_holds_and_all_come_to_an_end(store: type[SimStore]) -> None:
    SEEN.clear()
    run(type("M", (Machine,), {"store_class": store}), chosen(300, 5000))
    note(f"Hypothesis on {store.__name__}: " + ", ".join(f"{count} {what}" for what, count in SEEN.items()) + ", clean")


SHALLOW = (BlindDelete, CheckThenSet)
DEEP = (UncomparedExtend, FenceReset)
"""For these it needs hundreds of schedules; the seeded ones of `test_schedules.py` need a few."""


@pytest.mark.parametrize("store", [*SHALLOW, *DEEP] if LONG else SHALLOW)
def test_hypothesis_finds_a_store_that(store: type[SimStore]) -> None:
    found_out(store.__name__, type("M", (Machine,), {"store_class": store}))


@pytest.mark.skipif(not LONG, reason="needs a thousand schedules: nox -s faults")
def test_hypothesis_finds_a_validity_that_counts_from_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _hold.Hold.granted
    monkeypatch.setattr(_hold.Hold, "granted", lambda hold, _, now, *rest: real(hold, now, now, *rest))
    found_out("validity_from_the_reply", Machine)


def found_out(mutant: str, machine: type[Machine]) -> None:
    SEEN.clear()
    first: list[int] = []

    class Watched(machine):  # type: ignore[misc,valid-type]
        @invariant()  # said anew, or Hypothesis would not call it
        def never_two(self) -> None:
            try:
                super().never_two()
            except AssertionError:
                first.append(SEEN["schedules"])
                raise

    with pytest.raises(AssertionError):
        run(Watched, 10_000, (Phase.generate,))  # up to the first that finds it
    assert SEEN["steps"], "nobody looked"
    note(f"mutant of the policy {mutant}: caught by Hypothesis in schedule {first[0] if first else SEEN['schedules']}")
