"""What a call does that finds its lock held: a decision without I/O, so that every row of the table can be tested.

Two things are never done. A call is not ended with `Ignore` unless a message with the same id goes on in its place:
`.get()`, groups and chords would wait for ever. And a message that the broker delivered twice is no duplicate: its
own earlier delivery holds the lock, or has ended with the result that somebody waits for.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from ..errors import ConfigurationError
from ._rules import WORDS, Rules


class Where(enum.Enum):
    """How a call came about."""

    WORKER = "from a message"
    EAGER = "by task_always_eager or apply()"
    DIRECT = "as a plain function"


class Conflict(NamedTuple):
    """What a call knows when its lock is held. A callable `on_conflict` is given it, and returns one of the words."""

    name: str
    """Of the lock."""
    holder: str | None
    """The holder's label; `None` if other software holds it."""
    task_id: str | None
    """Of the call, not of the holder."""
    own: bool
    """Whether the holder is an earlier delivery of the same message."""
    tries: int
    """How often this call was put back already."""
    since: float
    """Seconds since it first met the conflict."""


class Skip(NamedTuple):
    """Return `skip_result`."""


class Fail(NamedTuple):
    """Raise `LockBusy`."""


class Again(NamedTuple):
    """Put the same message back, to be delivered after `countdown` seconds."""

    countdown: float


class Queue(NamedTuple):
    """Take the place of the one that waits, and come again after `countdown`; skip if somebody has that place."""

    countdown: float


class Stand(NamedTuple):
    """Wait here for the lock, for that many seconds; then do `last`."""

    seconds: float
    last: Skip | Fail


Answer = Skip | Fail | Again | Queue | Stand


def answer(rules: Rules, where: Where, conflict: Conflict, random: float) -> Answer:
    """What to do about `conflict`. `random` is from [0, 1), so that calls that met come back apart."""
    if conflict.own and where is Where.WORKER:
        return Again(pause(rules, conflict.tries, random))
    word = rules.on_conflict
    if callable(word):
        word = word(conflict)
        if word not in WORDS:
            raise ConfigurationError(f"on_conflict returns one of {', '.join(map(repr, WORDS))}, not {word!r}")
    if word == "skip":
        return Skip()
    if word == "raise":
        return Fail()
    if where is not Where.WORKER or word == "wait":
        last = at_last(rules) if word == "wait" else Fail()
        return Stand(rules.wait, last) if rules.wait > 0 else last
    if word == "coalesce":
        return Queue(pause(rules, conflict.tries, random))
    if conflict.since >= rules.give_up:
        return at_last(rules)
    return Again(pause(rules, conflict.tries, random))


def at_last(rules: Rules) -> Skip | Fail:
    """What follows when patience is at an end."""
    return Skip() if rules.then == "skip" else Fail()


def pause(rules: Rules, tries: int, random: float) -> float:
    """Seconds until the next try: doubled from the first to the longest, less up to a half."""
    first, longest = rules.delay
    return min(longest, first * 2.0 ** min(tries, 30)) * (1 - random / 2)
