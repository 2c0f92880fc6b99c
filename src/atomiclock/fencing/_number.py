"""What the guards take for a fence."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..errors import ConfigurationError, StaleFence

LARGEST = 2**63 - 1
"""What a 64-bit column can hold. A fence of Redis is above 2**53, so a double cannot."""


class Fenced(Protocol):
    """A lease of either colour, or whatever else has a lock's name and a fence."""

    @property
    def name(self) -> str: ...
    @property
    def fence(self) -> int | None: ...


class Number(NamedTuple):
    """A fence that was checked, and the name of its lock if that is known."""

    value: int
    name: str | None

    def stale(self, where: str, seen: int | None) -> StaleFence:
        """The error for a write to `where` that was refused."""
        later = "a later one" if seen is None else f"{seen}, which is later"
        said = f"refused a write to {where} with the fence {self.value}: it has seen {later}"
        return StaleFence(said, name=self.name, fence=self.value, seen=seen)


def number_of(fence: int | Fenced) -> Number:
    """The fence as a number. `ConfigurationError` for none: a guard that is silently off would be none."""
    name = None if isinstance(fence, int) else getattr(fence, "name", None)
    value = fence if isinstance(fence, int) else getattr(fence, "fence", None)
    if fence is None or (name is not None and value is None):
        of = f" of {name!r}" if name else ""
        raise ConfigurationError(
            f"this lease{of} has no fence, since its store cannot have one: a guard would guard nothing. Take a store "
            "whose fence grows, or write without a guard where that is what you want",
            name=name,
        )
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ConfigurationError(f"a fence is an int from 0 to 2**63 - 1, or a lease that has one, not {fence!r}"[:200])
    return Number(value, name)
