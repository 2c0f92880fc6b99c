"""Medians, spread and fairness."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third: half of the rounds lie between them."""
    return percentile(values, 25), percentile(values, 75)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` per cent lie, by linear interpolation."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * part / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all got the same, 1/n if one got everything."""
    total = sum(shares)
    return total * total / (len(shares) * sum(share * share for share in shares)) if total else 0.0


def handoffs(stamps: Iterable[tuple[float, float, int]]) -> tuple[list[float], int]:
    """Seconds from each release to the next owner's grant, and how many grants came before the release.

    `stamps` are (granted, release begun, who).
    """
    ordered = sorted(stamps)
    found, overlaps = [], 0
    for (_, released, who), (granted, _, other) in itertools.pairwise(ordered):
        if granted < released:
            overlaps += 1
        elif who != other:
            found.append(granted - released)
    return found, overlaps
