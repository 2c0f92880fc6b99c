"""The targets, and how this run compares with them. Speed is the machine's, too: nothing here fails a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stats import median
from tables import Found, aligned, column

OURS = "atomiclock"
STORE_ONLY = "atomiclock, handover=False"
TWO, TEN, HUNDRED, EIGHT = "S2, 2 processes", "S3, 10 threads", "S3, 100 threads", "S3, 8 processes"
FILE_RIVALS = ("filelock", "portalocker", "fasteners")


class Target(NamedTuple):
    store: str
    what: str
    relation: str
    limit: float
    measure: Callable[[], float]


class Results:
    """Reads one figure out of what was found. `LookupError` if it was not measured."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def rounds(self, title: str, group: str, name: str) -> list[Any]:
        return self._found[title][group][name]

    def cycle(self, group: str, name: str) -> float:
        return median(self.rounds("S1", group, name))

    def handoff(self, group: str, name: str) -> float:
        every = [value for values in self.rounds(TWO, group, name) for value in values]
        if not every:
            raise LookupError("no handoff was seen")
        return 1000 * median(every)

    def contended(self, title: str, group: str, name: str, what: str = "changes") -> float:
        values = column(self.rounds(title, group, name), what)
        if not values:
            raise LookupError(what)
        return median(values)

    def only(self, title: str, group: str, name: str, what: str) -> float:
        return self.contended(title, group, name, what)


def _network(
    r: Results, store: str, rival: str, raw: str, limits: dict[str, float], group: str = ""
) -> Iterator[Target]:
    """The row of a store with a server."""
    group = group or store
    yield Target(
        group, f"S1 speed against {raw}", ">=", limits["S1"], lambda: r.cycle(group, raw) / r.cycle(group, OURS)
    )
    yield Target(
        group, f"S2 p50 against {rival}", "<=", limits["S2"], lambda: r.handoff(group, OURS) / r.handoff(store, rival)
    )
    versions = [(STORE_ONLY, limits["100"])] + ([(OURS, limits["handover"])] if "handover" in limits else [])
    for name, limit in versions:
        yield Target(
            group,
            f"S3 100: owner changes of {name} against {rival}",
            ">=",
            limit,
            lambda name=name: r.contended(HUNDRED, group, name) / r.contended(HUNDRED, store, rival),  # type: ignore[misc]
        )
    yield Target(
        group,
        f"S3 8 processes: owner changes against {rival}",
        ">=",
        limits["8"],
        lambda: r.contended(EIGHT, group, OURS) / r.contended(EIGHT, store, rival),
    )


def _requests(r: Results, group: str) -> float:
    """Requests per grant, at the worst number of waiters, each grant by the store."""
    measured = [r.contended(title, group, STORE_ONLY, "requests") for title in (TEN, HUNDRED)]
    return max(*measured, r.contended(EIGHT, group, OURS, "requests"))


def _order(r: Results, group: str) -> Iterator[Target]:
    for title in (TEN, HUNDRED, EIGHT)[: 2 if group.startswith("memory") else 3]:
        yield Target(
            group, f"{title}: Jain's index", ">=", 0.95, lambda title=title: r.contended(title, group, OURS, "jain")
        )  # type: ignore[misc]
        yield Target(
            group, f"{title}: starved", "<=", 0, lambda title=title: r.contended(title, group, OURS, "starved")
        )  # type: ignore[misc]


def _scale(r: Results, group: str) -> Iterator[Target]:
    yield Target(
        group, "S4 bytes for each renewed lease", "<=", 1536, lambda: r.only("S4, held at once", group, OURS, "traced")
    )
    yield Target(
        group, "S4 more left behind by twice as many names used once", "<=", 0,
        lambda: float(sum(r.rounds("S4, names used once", group, OURS)[-1]["grown"].values())),
    )  # fmt: skip


def _files(r: Results) -> Iterator[Target]:
    group = "file"
    yield Target(
        group,
        "S1 speed against raw sqlite3",
        ">=",
        0.6,
        lambda: r.cycle(group, "raw sqlite3, insert + delete") / r.cycle(group, OURS),
    )
    yield Target(group, "S1 speed against filelock", ">=", 1, lambda: r.cycle(group, "filelock") / r.cycle(group, OURS))
    yield Target(
        group, "S2 p50 against filelock", "<=", 0.05, lambda: r.handoff(group, OURS) / r.handoff(group, "filelock")
    )
    yield Target(
        group, "S3 100: owner changes against filelock", ">=", 2,
        lambda: r.contended(HUNDRED, group, OURS) / r.contended(HUNDRED, group, "filelock"),
    )  # fmt: skip
    yield Target(
        group, "S3 8 processes: owner changes against the best file rival", ">=", 2,
        lambda: r.contended(EIGHT, group, OURS) / max(r.contended(EIGHT, group, name) for name in FILE_RIVALS),
    )  # fmt: skip


def _memory(r: Results) -> Iterator[Target]:
    group = "memory"
    yield Target(group, "S1 µs", "<=", 15, lambda: r.cycle(group, OURS))
    yield Target(group, "S2 p50 ms", "<=", 0.2, lambda: r.handoff(group, OURS))
    yield Target(group, "S3 100: owner changes/s", ">=", 20_000, lambda: r.contended(HUNDRED, group, OURS))


def targets(found: Found) -> Iterator[Target]:
    r = Results(found)
    redis = {"S1": 1.0, "S2": 0.5, "100": 4, "handover": 10, "8": 3}
    yield from _network(r, "redis", "python-redis-lock", "raw redis-py", redis)
    yield from _network(
        r, "redis", "python-redis-lock", "raw redis.asyncio", {**redis, "S1": 0.9, "S2": 0.8}, "redis, asyncio"
    )
    memcached = {"S1": 0.8, "S2": 0.1, "100": 20, "8": 10}
    yield from _network(r, "memcached", "sherlock", "raw pymemcache", memcached)
    etcd = {"S1": 0.8, "S2": 0.4, "100": 5, "8": 3}
    yield from _network(r, "etcd", "python-etcd3", "raw grpc, txn + txn on a kept lease", etcd)
    yield from _files(r)
    yield from _memory(r)
    for group, limit in (("redis", 3), ("redis, asyncio", 3), ("etcd", 6)):
        yield Target(
            group, "requests per grant, any number of waiters", "<=", limit, lambda group=group: _requests(r, group)
        )  # type: ignore[misc]
    yield Target(
        "memcached", "requests per grant: 100 threads against 10", "<=", 1.25,
        lambda: r.contended(HUNDRED, "memcached", OURS, "requests") / r.contended(TEN, "memcached", OURS, "requests"),
    )  # fmt: skip
    for group in (
        "redis",
        "redis, asyncio",
        "etcd",
        "etcd, asyncio",
        "file",
        "file, asyncio",
        "memory",
        "memory, asyncio",
    ):
        yield from _order(r, group)
    for group in ("redis", "redis, asyncio", "memcached", "memcached, asyncio", "etcd", "etcd, asyncio"):
        yield Target(
            group, "S3b requests/s of 100 waiters", "<=", 5, lambda group=group: r.only("S3b", group, OURS, "requests")
        )  # type: ignore[misc]
    for group in (
        "memory",
        "file",
        "redis",
        "redis, asyncio",
        "memcached",
        "memcached, asyncio",
        "etcd",
        "etcd, asyncio",
    ):
        yield from _scale(r, group)
    yield Target(
        "", "import atomiclock, ms less than import filelock", ">=", 0,
        lambda: median(r.rounds("S5, import", "", "filelock")) - median(r.rounds("S5, import", "", OURS)),
    )  # fmt: skip


def judge(found: Found) -> list[dict[str, Any]]:
    """Each target with what was measured, or `None`, and whether it is reached."""
    judged = []
    for target in targets(found):
        try:
            value = target.measure()
        except (LookupError, ZeroDivisionError):
            judged.append({**target._asdict(), "value": None, "reached": None})
            continue
        slack = 0.01 * target.limit  # less is no difference that can be measured here
        reached = value >= target.limit - slack if target.relation == ">=" else value <= target.limit + slack
        judged.append({**target._asdict(), "value": value, "reached": reached})
    for each in judged:
        del each["measure"]
    return judged


def markdown(judged: list[dict[str, Any]]) -> str:
    """What was measured, in a table."""
    rows = [["store", "", "", "target", "measured"]]
    for each in judged:
        if each["value"] is not None:
            verdict = "ok" if each["reached"] else "NOT YET"
            limit = f"{each['relation']} {each['limit']:g}"
            rows.append([each["store"], each["what"], verdict, limit, f"{each['value']:,.2f}"])
    return "\n".join(aligned(rows, left=3))


def show(judged: list[dict[str, Any]], complete: bool) -> str:
    """The block that ends the output. What was not measured is named if the run was to measure everything."""
    unmeasured = [f"{each['store']} {each['what']}" for each in judged if each["value"] is None]
    text = ["AGAINST THE TARGETS", markdown(judged)]
    if unmeasured:
        named = f": {'; '.join(unmeasured)}" if complete else ""
        text += ["", f"NOT MEASURED: {len(unmeasured)} of {len(judged)} targets{named}"]
    return "\n".join(text)
