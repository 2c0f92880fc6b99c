"""The scenarios S1 to S4. The contestants of a store take turns, round by round, whoever begins changing too."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from board import CHANGES, OVERLAPS, Board
from contest import OURS, Contestant
from seats import Hall, Seat, Trouble
from stats import handoffs, jain
from stores import Stores

HOLD = (0.005, 0.105)
"""Seconds for which a lock is held in S2: spread, so that it meets those that poll at any point of their sleep. With
10 ms each time, whoever polls ten times a second would find the lock free after 90 ms, always."""
clock = time.monotonic


@dataclass(frozen=True)
class Effort:
    """How long the run may take."""

    rounds: int
    cycle: float
    """Seconds for each turn of S1."""
    handoff: tuple[tuple[int, int, float], ...]
    """Processes, rounds and seconds of S2."""
    contend: tuple[tuple[str, int, int, int, float], ...]
    """Title, processes, threads of each, rounds and seconds of S3."""
    crowd: tuple[float, float]
    """Seconds of S3b: until all wait, and then."""
    names: tuple[int, float]
    """How many names in S4, but no more seconds than that."""
    held: tuple[int, float, int]
    """How many leases in S4, but no more seconds for getting them; and their ttl, of which a third is looked at."""
    starts: int
    """Processes started for each line of S5."""
    slow: bool = True
    """Whether those take part for whom others would have to wait too long."""


FULL = Effort(
    rounds=9,
    cycle=0.1,
    handoff=((2, 3, 1.1), (4, 1, 1.0)),
    contend=(("10 threads", 1, 10, 2, 0.4), ("100 threads", 1, 100, 3, 0.8), ("8 processes", 8, 1, 3, 0.5)),
    crowd=(1.0, 5.0),
    names=(10_000, 2.0),
    held=(10_000, 6.0, 12),
    starts=9,
)
QUICK = Effort(
    rounds=3,
    cycle=0.05,
    handoff=((2, 1, 0.8),),
    contend=(("10 threads", 1, 10, 1, 0.3), ("100 threads", 1, 100, 1, 0.5), ("8 processes", 8, 1, 1, 0.3)),
    crowd=(0.5, 0.8),
    names=(2_000, 0.4),
    held=(1_000, 1.0, 3),
    starts=3,
    slow=False,
)


def say(title: str) -> None:
    """What comes next, for those who watch."""
    print(f"{time.strftime('%H:%M:%S')} {title} ...", file=sys.stderr, flush=True)


@dataclass
class Run:
    """What a run has, and what it has found so far."""

    hall: Hall
    stores: Stores
    effort: Effort
    entries: Sequence[Contestant]
    found: dict[str, dict[str, dict[str, list[Any]]]] = field(default_factory=dict)
    """By table title, group and name: what each round found."""
    troubles: list[dict[str, str]] = field(default_factory=list)
    _serial: int = 0

    def name(self, scenario: str) -> str:
        """A lock name that nobody has used."""
        self._serial += 1
        return f"{scenario}-{self._serial}"

    def trouble(self, scenario: str, entry: Contestant, what: str) -> None:
        known = {"scenario": scenario, "group": entry.group, "name": entry.name, "what": what}
        if known not in self.troubles:
            self.troubles.append(known)
            print(f"  ! {scenario}, {entry.label}: {what}", file=sys.stderr, flush=True)

    def groups(self, title: str, scenario: str) -> Iterator[list[Contestant]]:
        """Who takes part, by group."""
        taking = []
        for entry in self.entries:
            if entry.store == "memory" and title == "S3, 8 processes":
                continue  # it is the memory of one
            excuse = entry.excuse(title, scenario)
            if excuse is None:
                taking.append(entry)
            elif excuse:
                self.trouble(title, entry, f"not measured: {excuse}")
        for group in dict.fromkeys(entry.group for entry in taking):
            yield [entry for entry in taking if entry.group == group]

    def turns(self, title: str, scenario: str, rounds: int, one: Callable[[Contestant], Any]) -> None:
        """Let everybody in each group have `rounds` turns. Who fails twice is out."""
        say(title)
        for entries in self.groups(title, scenario):
            failed = dict.fromkeys(entries, 0)
            for number in range(rounds):
                shift = number % len(entries)
                for entry in entries[shift:] + entries[:shift]:
                    if failed[entry] > 1 or (entry.slow and number and scenario != "S1"):
                        continue
                    try:
                        value = one(entry)
                    except Trouble as trouble:
                        failed[entry] += 1
                        self.trouble(title, entry, str(trouble))
                        self.hall.dismiss(entry)
                    else:
                        group = self.found.setdefault(title, {}).setdefault(entry.group, {})
                        group.setdefault(entry.name, []).append(value)


def cycles(run: Run) -> None:
    """S1: nobody else wants the lock."""

    def one(entry: Contestant) -> float:
        (seat,) = run.hall.seats(entry)
        got = seat.do("cycles", 30, name=f"S1-{entry.name}".replace(" ", "-"), seconds=run.effort.cycle)
        return 1e6 * float(got["spent"]) / int(got["cycles"])

    run.turns("S1", "S1", run.effort.rounds, one)


def handoff(run: Run) -> None:
    """S2: from the call of `release()` in one process to the return of `acquire()` in another."""
    for processes, rounds, seconds in run.effort.handoff:
        title = f"S2, {processes} processes"

        def one(
            entry: Contestant, processes: int = processes, seconds: float = seconds, title: str = title
        ) -> list[float]:
            local = entry.store == "memory"
            seats = run.hall.seats(entry, 1 if local else processes)
            ids = list(range(1, processes + 1))
            parts = [ids] if local else [[number] for number in ids]
            answers = _together(run, seats, "handoff", seconds, parts, hold=HOLD)
            found, overlaps = handoffs([stamp for answer in answers for stamp in answer["stamps"]])
            if overlaps:
                run.trouble(title, entry, f"TWO HOLDERS AT ONCE: {overlaps} times")
            _note_errors(run, title, entry, answers)
            return found

        run.turns(title, "S2", rounds, one)


def contend(run: Run) -> None:
    """S3: everybody asks again at once."""
    for title, processes, threads, rounds, seconds in run.effort.contend:

        def one(
            entry: Contestant,
            title: str = title,
            processes: int = processes,
            threads: int = threads,
            seconds: float = seconds,
        ) -> dict[str, Any]:
            seats = run.hall.seats(entry, processes)
            parts = [list(range(1 + seat * threads, 1 + seat * threads + threads)) for seat in range(processes)]
            return _contended(run, f"S3, {title}", entry, seats, parts, seconds)

        run.turns(f"S3, {title}", "S3", rounds, one)


def _contended(
    run: Run, title: str, entry: Contestant, seats: list[Seat], parts: list[list[int]], seconds: float
) -> dict[str, Any]:
    board = Board(run.hall.board)
    seen: dict[str, int | None] = {}

    def count_requests(when: str) -> None:
        seen[when] = run.stores.requests(entry.store, entry.sends)

    answers = _together(
        run, seats, "contend", seconds, parts,
        soon=lambda: count_requests("before"), at_end=lambda: seen.update(changes=board[CHANGES]),
    )  # fmt: skip
    count_requests("after")
    before, after, changes = seen["before"], seen["after"], seen["changes"] or 0
    shares = [share for answer in answers for share in answer["grants"]]
    total = sum(shares) + sum(answer["late"] for answer in answers)
    requests = None if before is None or after is None or not total else (after - before) / total
    overlaps = board[OVERLAPS]
    if overlaps:
        run.trouble(title, entry, f"TWO HOLDERS AT ONCE: {overlaps} times")
    _note_errors(run, title, entry, answers)
    served = sum(share > 0 for share in shares)
    if entry.role == OURS and not served:
        run.trouble(title, entry, "nobody got the lock")
    return {
        "changes": changes / seconds,
        "grants": sum(shares) / seconds,
        "jain": jain(shares),
        "starved": len(shares) - served if sum(shares) >= 2 * len(shares) else None,
        "requests": requests,
        "requests_per_change": requests * sum(shares) / changes if requests and changes else None,
        "overlaps": overlaps,
        "drained": max(answer["drained"] for answer in answers),
    }


def _together(
    run: Run,
    seats: list[Seat],
    task: str,
    seconds: float,
    parts: list[list[int]],
    soon: Callable[[], None] = lambda: None,
    at_end: Callable[[], None] = lambda: None,
    **details: Any,
) -> list[dict[str, Any]]:
    """What all seats answer to a task that they begin and end at the same moments. Calls `soon` before it begins."""
    Board(run.hall.board).clear()
    begin = clock() + 0.2 + 0.003 * sum(len(part) for part in parts)
    name = run.name(task)
    for seat, ids in zip(seats, parts, strict=True):
        seat.ask(task, name=name, ids=ids, begin=begin, end=begin + seconds, **details)
    time.sleep(max(0.0, begin - 0.04 - clock()))
    soon()
    time.sleep(max(0.0, begin + seconds - clock()))
    at_end()
    return [seat.reply(25) for seat in seats]


def _note_errors(run: Run, title: str, entry: Contestant, answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        for error, times in answer.get("errors", {}).items():
            run.trouble(title, entry, f"{times} x {error}")


def crowd(run: Run) -> None:
    """S3b: 100 wait for a lock that is held all the time."""
    settle, seconds = run.effort.crowd

    def one(entry: Contestant) -> dict[str, Any]:
        name, seats = run.name("crowd"), []
        try:
            seats.append(run.hall.alone(entry))
            if entry.store != "memory":
                seats.append(run.hall.alone(entry))
            holder, waiting = seats[0], seats[-1]
            holder.do("hold", 20, name=name)
            idle = waiting.descriptors()
            waiting.do("crowd", 20, name=name, count=100)
            time.sleep(settle)  # all are connected and wait
            requests, cpu, begun = run.stores.requests(entry.store, entry.sends), waiting.cpu(), clock()
            time.sleep(seconds)
            spent, cpu = clock() - begun, waiting.cpu() - cpu
            after = run.stores.requests(entry.store, entry.sends)
            threads, descriptors = waiting.threads(), waiting.descriptors() - idle
            _note_errors(run, "S3b", entry, [waiting.do("crowd_errors", 20)])
        finally:
            for seat in seats:
                seat.kill()
        per_second = None if requests is None or after is None else (after - requests) / spent
        return {"requests": per_second, "cpu": 100 * cpu / spent, "descriptors": descriptors, "threads": threads}

    run.turns("S3b", "S3b", 1, one)


def names(run: Run) -> None:
    """S4: many names, each used once, in two halves: what is more after the second than after the first grows."""
    count, seconds = (part / 2 for part in run.effort.names)

    def one(entry: Contestant) -> dict[str, Any]:
        (seat,) = run.hall.seats(entry)
        stages, cycles, spent = [run.stores.left(entry.store)], 0, 0.0
        for _ in range(2):
            got = seat.do("names", seconds + 30, prefix=run.name("names"), count=int(count), seconds=seconds)
            stages.append(run.stores.left(entry.store))
            cycles, spent = cycles + got["cycles"], spent + got["spent"]
        before, middle, after = stages
        left = {kind: max(0, after[kind] - before[kind]) for kind in after}
        grown = {kind: max(0, after[kind] - middle[kind]) for kind in after}
        return {"cycles": cycles, "per_second": cycles / spent, "left": left, "grown": grown}

    run.turns("S4, names used once", "S4, names", 1, one)


def held(run: Run) -> None:
    """S4: many leases held at once, and renewed where the library can."""
    count, getting, ttl = run.effort.held

    def one(entry: Contestant) -> dict[str, Any]:
        seat = run.hall.alone(entry, ttl)
        try:
            prefix = run.name("held")
            got = seat.do("gather", getting + 30, prefix=prefix, count=count, seconds=getting)
            cpu, begun = seat.cpu(), clock()
            requests = run.stores.requests(entry.store, entry.sends)
            time.sleep(ttl / 3)  # each lease is renewed once
            spent = clock() - begun
            after = run.stores.requests(entry.store, entry.sends)
            cpu, threads = 100 * (seat.cpu() - cpu) / spent, seat.threads()
            released = seat.do("scatter", 60, prefix=prefix)
            _note_errors(run, "S4, held at once", entry, [released])
        finally:
            seat.kill()
        number = max(1, int(got["held"]))
        return {
            "held": got["held"],
            "traced": got["traced"] / number,
            "threads": threads,
            "cpu": cpu,
            "requests": None if requests is None or after is None else (after - requests) / spent,
        }

    run.turns("S4, held at once", "S4, held", 1, one)


def scale(run: Run) -> None:
    """S4: both."""
    names(run)
    held(run)


SCENARIOS: dict[str, Callable[[Run], None]] = {"S1": cycles, "S2": handoff, "S3": contend, "S3b": crowd, "S4": scale}
