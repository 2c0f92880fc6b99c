"""The run itself: waves of duplicates, one kill, pings until somebody takes over, and the end of all tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.analysis import Interval, Kill, intervals, overlaps, takeover
from runner.journal import Event, JournalReader
from runner.workers import Worker, kill_and_see_dead

if TYPE_CHECKING:
    from celery import Task

    from runner.queue import Queue

STEP = 0.05
ROUND = 1.5
PING = 0.1
START_WITHIN = 20.0
# For all tasks to end once the last wave is out, the kill and the takeover included.
END_WITHIN = 45.0
# The ages at which the import of the slow feed, which takes 3.4 s, is in its middle.
KILL_FROM, KILL_UNTIL, KILL_ANYHOW = 0.5, 2.8, 2.2


class DemoError(Exception):
    """The run cannot go on; the text says why."""


class Interrupted(DemoError):
    """Somebody asked for the end."""


@dataclass(frozen=True)
class Plan:
    """What to enqueue: `copies` of each feed in each of `rounds` waves; and in which feed's import to kill."""

    task: Task
    feeds: list[str]
    victim: str
    rounds: int
    copies: int


@dataclass
class Outcome:
    """What is known of the run so far."""

    published: dict[str, str] = field(default_factory=dict)
    done: dict[str, Event] = field(default_factory=dict)
    found: list[Interval] = field(default_factory=list)
    kill: Kill | None = None
    began: float = 0.0
    ended: float = 0.0

    @property
    def unfinished(self) -> set[str]:
        """The tasks of which nothing was heard; a killed one never will be."""
        return self.published.keys() - self.done.keys() - ({self.kill.task} if self.kill else set())

    @property
    def skipped(self) -> int:
        """The duplicates that returned at once."""
        return sum(event["skipped"] for event in self.done.values())

    @property
    def overlaps(self) -> int:
        """How often two imported one feed at once."""
        return len(overlaps(self.found))

    @property
    def takeover_seconds(self) -> float | None:
        """How long after the kill that began."""
        heir = self.taken_over
        return heir.begin - self.kill.sent if heir and self.kill else None

    @property
    def taken_over(self) -> Interval | None:
        """The import that followed the killed one."""
        return takeover(self.found, self.kill) if self.kill else None


class Scene:
    """Plays one Plan until its end or until `stop` is set.

    `say` gets a line for each thing worth telling, `show` the Outcome after each step.
    """

    def __init__(
        self,
        plan: Plan,
        queue: Queue,
        journal: JournalReader,
        crew: list[Worker],
        say: Callable[[str], None],
        show: Callable[[Outcome], None],
        stop: threading.Event,
    ) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._queue = queue
        self._journal = journal
        self._crew = crew
        self._say = say
        self._show = show
        self._stop = stop
        self._next_ping = 0.0
        self._takeover_told = False

    def play(self) -> Outcome:
        """The whole run; raises DemoError if it cannot be brought to its end."""
        self._await_workers()
        self.outcome.began = time.monotonic()
        deadline = self.outcome.began + self.plan.rounds * ROUND + END_WITHIN
        for number in range(1, self.plan.rounds + 1):
            self._publish(self.plan.feeds * self.plan.copies)
            self._say(f"wave {number} of {self.plan.rounds}: each feed {self.plan.copies} times at once")
            until = time.monotonic() + ROUND
            while time.monotonic() < until:
                self._step(deadline, kill=number > 1)
        while self.outcome.unfinished or self.outcome.kill is None or self.outcome.taken_over is None:
            self._step(deadline, kill=True)
        self.outcome.ended = time.monotonic()
        return self.outcome

    def _await_workers(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        while sum(event["event"] == "ready" for event in self._journal.events) < len(self._crew):
            self._look_after_workers()
            if time.monotonic() > deadline:
                raise DemoError(f"the workers were not ready within {START_WITHIN:.0f} s\n{self._crew[0].tail()}")
            time.sleep(STEP)
            self._journal.read()

    def _look_after_workers(self) -> None:
        if self._stop.is_set():
            raise Interrupted("interrupted")
        for worker in self._crew:
            if not worker.alive:
                code = worker.process.returncode
                raise DemoError(f"worker {worker.name} ended by itself, exit code {code}\n{worker.tail()}")

    def _publish(self, feeds: list[str]) -> None:
        self.outcome.published |= self._queue.publish(self.plan.task, feeds)

    def _step(self, deadline: float, *, kill: bool) -> None:
        self._look_after_workers()
        if time.monotonic() > deadline:
            raise DemoError(self._what_is_missing())
        self._take_in()
        if kill and self.outcome.kill is None:
            self._kill_when_right()
        self._ping_until_taken_over()
        self._show(self.outcome)
        time.sleep(STEP)

    def _take_in(self) -> None:
        new = self._journal.read()
        if not new:
            return
        self.outcome.done |= {event["task"]: event for event in new if event["event"] == "done"}
        killed = self.outcome.kill
        self.outcome.found = intervals(self._journal.events, {killed.pid: killed.dead} if killed else {})

    def _kill_when_right(self) -> None:
        """SIGKILL the child in the middle of the victim's import.

        Preferably while no other call for that feed is under way: one that began between the death and our
        noticing it would look like an overlap. With imports that do overlap such a moment may never come.
        """
        feed, now = self.plan.victim, time.monotonic()
        running = [i for i in self.outcome.found if i.feed == feed and i.end > now]
        victim = next((i for i in running if KILL_FROM < now - i.begin < KILL_UNTIL), None)
        calls = [task for task in self.outcome.unfinished if self.outcome.published[task] == feed]
        if victim is None or (len(calls) > 1 and now - victim.begin < KILL_ANYHOW):
            return
        try:
            sent, dead = kill_and_see_dead(victim.pid)
        except (ProcessLookupError, TimeoutError) as error:
            raise DemoError(f"child {victim.pid} could not be killed: {error}") from error
        self.outcome.kill = Kill(feed, victim.pid, victim.task, sent, dead)
        self._say(f"SIGKILL to child {victim.pid}, {sent - victim.begin:.1f} s into its import of {feed}")

    def _ping_until_taken_over(self) -> None:
        """More duplicates of the feed whose import was killed: someone has to come for it to be taken over."""
        kill, now = self.outcome.kill, time.monotonic()
        if kill is None or self._takeover_told:
            return
        if heir := self.outcome.taken_over:
            self._takeover_told = True
            self._say(f"taken over by child {heir.pid}, {heir.begin - kill.sent:.2f} s after the kill")
        elif now >= self._next_ping:
            self._publish([kill.feed])
            self._next_ping = now + PING

    def _what_is_missing(self) -> str:
        outcome = self.outcome
        if outcome.kill is None:
            return f"no import of {self.plan.victim} could be caught in its middle"
        if outcome.taken_over is None:
            return f"nobody took over the killed import of {outcome.kill.feed}: its lock is stuck"
        return f"{len(outcome.unfinished)} tasks did not end within {END_WITHIN:.0f} s after the last wave"
