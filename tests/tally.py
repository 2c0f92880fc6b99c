"""How long a run is to be, and what it counted: that is printed at its end, so that everybody sees what was tried."""

from __future__ import annotations

import os

LONG = os.environ.get("ATOMICLOCK_FAULTS") == "long"
"""Whether to run the long form of the fault suite, as `nox -s faults` does."""

LINES: list[str] = []


def note(*lines: str) -> None:
    """Show `lines` at the end of the run."""
    LINES.extend(lines)


def chosen(short: int, long: int) -> int:
    """How many to try."""
    return long if LONG else short
