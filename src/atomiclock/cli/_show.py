"""What people and scripts read: tables, lines and JSON. Colours on a terminal only, and not with NO_COLOR."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from ..backends._admin import Seen

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def colours() -> bool:
    """Whether what is written is for a terminal, whose user wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console() -> Console:
    """Standard output, for tables."""
    from rich.console import Console  # which takes longer to load than all the rest

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  # what it is called for: rich would end with 1, which means something here

    system: Literal["auto"] | None = "auto" if colours() else None  # left to itself rich writes bold despite NO_COLOR
    width = None if sys.stdout.isatty() else 1000  # a pipe has no edge at which to fold
    return Ours(highlight=False, emoji=False, markup=False, width=width, color_system=system)


def warn(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"atomiclock: {one_line(text)}\n")
    sys.stderr.flush()


def one_line(text: str) -> str:
    """`text` without what could move the cursor: names and labels are other people's."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def write_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def as_data(seen: Seen) -> dict[str, Any]:
    """A lock for scripts. `null` is what the store does not know."""
    waiting = None if seen.waiting is None else [waiter._asdict() for waiter in seen.waiting]
    return {
        "name": seen.key,
        **seen.holder._asdict(),
        "held_for": seen.age,
        "awaited": seen.awaited,
        "waiting": waiting,
    }


def seconds(number: float | None) -> str:
    if number is None:
        return "?"
    if number < 120:
        return f"{number:.1f} s"
    minutes = number / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def waiters(seen: Seen) -> str:
    if seen.waiting is not None:
        return str(len(seen.waiting))
    return "?" if seen.awaited is None else "some" if seen.awaited else "0"


def table(locks: Iterable[Seen]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NAME", "HOLDER", "HELD FOR", "LEFT", "WAITING", "FENCE", "TOKEN"):
        made.add_column(column, overflow="fold")
    for seen in locks:
        holder = seen.holder
        cells = (
            Text(one_line(seen.key), "cyan"),
            Text(one_line(holder.owner or "other software")),
            Text(seconds(seen.age)),
            Text("for ever" if holder.remaining is None else seconds(holder.remaining)),
            Text(waiters(seen)),
            Text("" if holder.fence is None else str(holder.fence)),
            Text(one_line(holder.token), "dim"),
        )
        made.add_row(*cells)
    return made


def sheet(seen: Seen) -> list[tuple[str, str]]:
    """One lock, line by line."""
    holder = seen.holder
    lines = [
        ("name", seen.key),
        ("holder", holder.owner or "other software"),
        ("held for", seconds(seen.age) if seen.age is not None else "not known to this store"),
        ("left", "for ever" if holder.remaining is None else f"{seconds(holder.remaining)}, unless it is renewed"),
        ("fence", "none" if holder.fence is None else str(holder.fence)),
        ("token", holder.token),
    ]
    if seen.waiting is None:
        known = {None: "not known to this store", True: "somebody", False: "nobody"}[seen.awaited]
        return [*lines, ("waiting", known)]
    who = [
        (waiter.owner or "other software") + ("" if waiter.since is None else f", for {seconds(waiter.since)}")
        for waiter in seen.waiting
    ]
    return [*lines, *[("waiting", text) for text in who or ["nobody"]]]
