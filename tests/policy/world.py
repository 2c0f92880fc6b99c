"""A world without I/O for the policy: a virtual clock, a store, a network that loses, delays, doubles and reorders,
and processes whose clients acquire, hold, extend, release, are cancelled or die. One seed chooses all that happens.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from atomiclock._hold import HELD, Hold
from atomiclock._keep import Book, Dropped, Idle, On, Tell, keep
from atomiclock._line import FENCE_BITS, Lines, Ticket, must_watch
from atomiclock._options import Options
from atomiclock._plans import Sleep, Terms, abandon, acquire, extend, release, timed_out
from atomiclock.backends import Add, Busy, Extend, Granted, Remove, Unknown, Wait
from atomiclock.errors import BackendUnavailable, LockError

FATES = ("delivered", "request lost", "reply lost", "late", "doubled")


@dataclass
class Faults:
    """How the network of one run behaves; all derived from the seed, and printed with it."""

    lose_request: float
    lose_reply: float
    late: float
    latency: float
    double: float = 0.0

    @classmethod
    def of(cls, rng: random.Random) -> Faults:
        def chance() -> float:
            return rng.choice([0.0, 0.0, 0.1, 0.3])

        return cls(chance(), chance(), chance(), rng.choice([0.001, 0.02, 0.3]), chance() / 2)


class SimStore:
    """One lock at a store that does exactly what it is asked, when the request arrives."""

    late_adds = False
    wait_adds = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.token: str | None = None
        self.expires = -math.inf
        self.fence = 0
        self.tombs: set[str] = set()
        self.waiting: list[Callable[[], None]] = []

    def holder(self) -> str | None:
        return self.token if self.expires > self.world.now else None

    def handle(self, ask: Any) -> Any:
        return getattr(self, type(ask).__name__.lower())(ask)

    def add(self, ask: Add) -> Any:
        if ask.token in self.tombs:
            return Unknown("buried", sent=False)
        held = self.holder()
        if held not in (None, ask.token):
            return Busy(self.expires - self.world.now, "someone")
        if held is None:
            self.fence += 1
        self.token, self.expires = ask.token, self.world.now + ask.ttl
        return Granted(self.fence, repeated=held is not None)

    def remove(self, ask: Remove) -> bool:
        mine = self.holder() == ask.token
        flying = ask.in_flight - mine
        if flying > 0:
            self.tombs.add(ask.token)
        if mine:
            self.token = None
        if self.holder() is None and self.waiting:
            self.waiting.pop(0)()
        return mine

    def extend(self, ask: Extend) -> bool:
        if self.holder() != ask.token:
            return False
        self.expires = self.world.now + ask.ttl
        return True


@dataclass
class World:
    """Runs clients against a store until everybody is done."""

    seed: int
    store_class: type[SimStore] = SimStore
    rng: random.Random = field(init=False)
    now: float = 100.0
    calm: bool = False
    """Once true, the network loses and delays nothing more."""
    grants: list[Hold] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    unfinished: int = 0
    passed_on: int = 0
    """How often a lock went from one client to the next within a process."""
    fates: list[str] = field(default_factory=list)
    """What becomes of the next messages, for exploring all of them in order; then chance decides."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.faults = Faults.of(self.rng)
        self.store = self.store_class(self)
        self.terms = Terms(self.clock, self.rng.random, 1.5, self.store.late_adds, 1, self.store.wait_adds)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def clock(self) -> float:
        return self.now

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._number), action))

    def run(self, until: float = math.inf) -> None:
        """Let everything happen that is due before `until`, checking after each step that the laws hold."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()
            self._check()

    def _check(self) -> None:
        holders = [hold for hold in self.grants if hold.held(self.now)]
        if len(holders) > 1:
            self.violations.append(f"{len(holders)} hold it at {self.now - 100:.3f}")
        for hold in holders:
            if self.store.holder() not in (hold.token, None):
                self.violations.append(f"a holder and another at the store at {self.now - 100:.3f}")

    # Plans

    def start(self, plan: Generator[Any, Any, Any], done: Callable[[Any, BaseException | None], None]) -> Running:
        running = Running(self, plan, done)
        self.at(self.now, lambda: running.step(plan.send, None) if running.untouched else None)
        return running

    def _delay(self) -> float:
        return self.faults.latency * (0.5 + self.rng.random())

    def _fate(self) -> str:
        faults, chance = self.faults, self.rng.random
        if self.calm:
            return "delivered"
        if chance() < faults.lose_request:
            return "request lost"
        if chance() < faults.late:
            return "late"
        if chance() < faults.double:
            return "doubled"
        return "reply lost" if chance() < faults.lose_reply else "delivered"

    def request(self, ask: Any, reply: Callable[[Any], None]) -> None:
        """Carry `ask` to the store and its answer back, or not."""
        fate = self.fates.pop(0) if self.fates else self._fate()
        if fate == "request lost":
            return
        there = self._delay() + (self.rng.choice([1.0, 4.0, 20.0]) if fate == "late" else 0)
        lost = fate == "reply lost"

        def arrive() -> None:
            answer = self.store.handle(ask)
            if not lost:
                self.at(self.now + self._delay(), lambda: reply(answer))

        self.at(self.now + there, arrive)
        if fate == "doubled":  # the second one is late, and nobody hears its answer
            self.at(self.now + there + self.rng.choice([0.1, 1.0, 4.0]), lambda: self.store.handle(ask))

    def block(self, ask: Wait, reply: Callable[[Any], None]) -> None:
        """Carry `ask` to the store, where it blocks until it is woken, and then adds."""
        fate = self.fates.pop(0) if self.fates else self._fate()
        if fate == "request lost":
            return
        done = False

        def go_on() -> None:
            nonlocal done
            if not done:
                done = True
                answer = self.store.handle(Add(ask.key, ask.token, ask.ttl, ask.owner, True, ask.deadline))
                if fate != "reply lost":
                    self.at(self.now + self._delay(), lambda: reply(answer))

        def arrive() -> None:
            self.store.waiting.append(go_on)
            self.at(min(ask.until, self.now + ask.ttl / 4), go_on)

        self.at(self.now + self._delay() + (self.rng.choice([1.0, 4.0]) if fate == "late" else 0), arrive)


class Running:
    """One plan under way in the world."""

    def __init__(self, world: World, plan: Any, done: Callable[[Any, BaseException | None], None]) -> None:
        self.world = world
        self.plan = plan
        self.done = done
        self._turn = 0
        self._idle_until = math.inf

    @property
    def untouched(self) -> bool:
        """Neither begun nor interrupted yet."""
        return self._turn == 0

    def step(self, how: Callable[[Any], Any], value: Any) -> None:
        self._turn += 1
        try:
            ask = how(value)
        except StopIteration as end:
            self.done(end.value, None)
        except LockError as error:
            self.done(None, error)
        else:
            self._perform(ask)

    def interrupt(self, error: BaseException) -> None:
        """Whatever the plan waits for, it is interrupted, as a signal or a cancellation would."""
        self._turn += 1
        try:
            self.plan.throw(error)
        except BaseException as raised:
            self.done(None, raised)

    def stop(self) -> None:
        """It is heard of no more: its process died."""
        self._turn += 1

    def _perform(self, ask: Any) -> None:
        world, turn = self.world, self._turn

        def answer(value: Any) -> None:
            if turn == self._turn:
                if isinstance(value, Unknown):
                    self.step(self.plan.throw, value)
                else:
                    self.step(self.plan.send, value)

        if isinstance(ask, (Sleep, Idle)):
            if ask.until < math.inf:
                world.at(ask.until, lambda: answer(None))
        elif isinstance(ask, Wait) and world.store.wait_adds:
            world.block(ask, answer)
            world.at(ask.deadline, lambda: answer(Unknown("timed out")))
        elif isinstance(ask, Wait):
            world.store.waiting.append(lambda: world.at(world.now + world._delay(), lambda: answer(None)))
            world.at(ask.until, lambda: answer(None))
        elif isinstance(ask, (Tell, Dropped)):
            ask.hold.io.lines.leave(ask.hold)
            world.at(world.now, lambda: answer(None))
        else:
            ask = ask.ask if isinstance(ask, On) else ask
            world.request(ask, answer)
            world.at(ask.deadline, lambda: answer(Unknown("timed out")))

    def poke(self) -> None:
        """Wake an idle keeper."""
        turn = self._turn
        self.world.at(self.world.now, lambda: self.step(self.plan.send, None) if turn == self._turn else None)


class Process:
    """What the clients of one process share: a keeper, and the line before the lock."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.book = Book(nullcontext())
        self.keeper = world.start(keep(self.book, lambda _: world.terms, world.clock), lambda *_: None)
        self.lines = Lines(nullcontext(), world.clock)
        self.options = Options(
            ttl=world.rng.choice([0.5, 2.0, 6.0]),
            timeout=world.rng.choice([0, 1.0, 8.0, 8.0]),
            renew=world.rng.random() < 0.7,
        )
        self.clients: list[Client] = []
        self.plans: list[Running] = [self.keeper]
        self.dead = False

    def run(self, plan: Any, done: Callable[[Any, BaseException | None], None]) -> Running:
        self.plans.append(self.world.start(plan, lambda *end: None if self.dead else done(*end)))
        return self.plans[-1]

    def keep(self, hold: Hold) -> None:
        if self.book.add(hold):
            self.keeper.poke()

    def crash(self) -> None:
        """What it has at the store stays there; nobody believes in it any more."""
        if self.dead:
            return
        self.dead = True
        for plan in self.plans:
            plan.stop()
        for client in self.clients:
            if client.hold is not None and client.hold.state == HELD:
                client.hold.lose("crashed")
            self.world.unfinished -= not client.finished
            client.finished = True


class Gate:
    """Where a client waits in its process's line."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def open(self) -> None:
        self.client.world.at(self.client.world.now, lambda: self.client.look(self))


class Client:
    """A thread of a process: acquires, holds for a while, releases, several times over, as the managers do it."""

    def __init__(self, world: World, name: str, rounds: int, process: Process | None = None) -> None:
        self.world = world
        self.name = name
        self.left = rounds
        self.process = process or Process(world)
        self.process.clients.append(self)
        self.lines = self.process.lines
        self.options = self.process.options
        self.hold: Hold | None = None
        self.ticket: Ticket[Gate] | None = None
        self.running: Running | None = None
        self.finished = False
        world.unfinished += 1
        self.later(world.rng.random(), self.begin)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.world.at(self.world.now + seconds, lambda: None if self.process.dead else action())

    def begin(self) -> None:
        if self.left == 0:
            self.world.unfinished -= 1
            self.finished = True
            return
        self.attempt(self.options)
        if self.world.rng.random() < 0.15:
            hold = self.hold
            self.later(self.world.rng.random() * 2, lambda: self.interrupt() if self.hold is hold else None)

    def attempt(self, options: Options) -> None:
        """Ask for the lock: the line first, then the store."""
        self.left -= 1
        token = f"{self.name}{self.left}"
        self.hold = hold = Hold("n", "n", self.name, token, options, io=self)
        self.begun, self.timeout = self.world.now, options.timeout
        self.ticket = self.lines.enter(hold, lambda: Gate(self)) if options.timeout != 0 else None
        if self.ticket is None:
            self.ask()
            return
        front = self.lines.front(hold.key)
        if front is not None and must_watch(front, self.process.book):
            self.process.keep(front)
        if options.timeout is not None:
            ticket = self.ticket
            self.later(options.timeout, lambda: self.stood(timed_out(hold, None, 0)) if self.ticket is ticket else None)

    def look(self, gate: Gate) -> None:
        """What a waiter in line does when it is woken."""
        if self.ticket is None or self.ticket.gate is not gate or self.process.dead:
            return
        try:
            served = self.lines.served(self.ticket, 0.0)
        except BackendUnavailable as error:
            self.stood(error)
            return
        if served:
            self.stood(None)

    def stood(self, error: BaseException | None) -> None:
        assert self.hold is not None
        self.ticket = None
        if error is not None or self.hold.state == HELD:
            self.acquired(error, False)
        else:
            self.ask()

    def ask(self) -> None:
        assert self.hold is not None
        plan = acquire(self.hold, self.timeout, self.world.terms, self.begun)
        self.running = self.process.run(plan, self.answered)

    def answered(self, _: Any, error: BaseException | None) -> None:
        assert self.hold is not None
        self.running = None
        followed = False
        if error is None:
            assert self.hold.fence is not None
            self.hold.fence <<= FENCE_BITS
            followed = self.lines.followed(self.hold)
        elif isinstance(error, BackendUnavailable):
            self.lines.fail(self.hold, error)
        self.acquired(error, followed)

    def interrupt(self) -> None:
        """A signal, or a cancellation, while it tries."""
        if self.ticket is not None:
            self.stood(KeyboardInterrupt())
        elif self.running is not None and getattr(self.running.plan, "gi_frame", None) is not None:
            self.running.interrupt(KeyboardInterrupt())

    def acquired(self, error: BaseException | None, followed: bool) -> None:
        hold = self.hold
        assert hold is not None
        if error is not None:
            self.lines.withdraw(hold)
            self.give_up()
            self.again()
            return
        self.world.grants.append(hold)
        if hold.renew or followed:
            self.process.keep(hold)
        self.enjoy()

    def enjoy(self) -> None:
        """Hold it for a while."""
        held_for = self.world.rng.choice([0.0, 0.1, 1.0, 5.0])
        if self.world.rng.random() < 0.1 and not self.options.renew:
            self.later(1, self.begin)  # forgotten: it never releases
            return
        if self.world.rng.random() < 0.1:
            self.later(held_for / 2, self.extend)
        self.later(held_for, self.leave)

    def extend(self) -> None:
        hold = self.hold
        assert hold is not None
        if hold.state != HELD:
            return

        def extended(*_: Any) -> None:
            if hold in self.process.book.live:
                self.process.keep(hold)

        self.process.run(extend(hold, None, self.world.terms), extended)

    def give_up(self) -> None:
        """What the managers do with an attempt that failed: take it back at once, or in the background."""
        hold = self.hold
        assert hold is not None
        self.process.book.discard(hold)
        hold.give_up()
        if not hold.lingers:
            self.lines.leave(hold)
            return

        def settled(confirmed: Any, _: BaseException | None) -> None:
            if not confirmed:
                hold.buried = True
                hold.due = hold.valid_until = self.world.now
                self.process.keep(hold)
            self.lines.leave(hold)

        self.process.run(abandon(hold, self.world.now + 1, self.world.terms), settled)

    def leave(self) -> None:
        hold = self.hold
        assert hold is not None
        self.process.book.discard(hold)
        if self.lines.pass_on(hold):
            self.world.passed_on += 1
            self.again()
            return

        def released(_: Any, error: BaseException | None) -> None:
            if hold.lingers:
                self.give_up()
            else:
                self.lines.leave(hold)
            self.again()

        self.process.run(release(hold, self.world.terms), released)

    def again(self) -> None:
        self.later(self.world.rng.random(), self.begin)
