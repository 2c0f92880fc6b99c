"""A page of memory that all processes of a run share: who was last, who is inside, and how often the owner changed.

Its fields are written only by whoever has the lock, so they are as right as the lock is; and where it is not,
`overlaps` says so.
"""

from __future__ import annotations

import mmap
from pathlib import Path

GRANTS, CHANGES, LAST, INSIDE, OVERLAPS = range(5)


class Board:
    """Five numbers in a file mapped by every process."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._cells = memoryview(self._map).cast("Q")

    def clear(self) -> None:
        for cell in range(5):
            self._cells[cell] = 0

    def __getitem__(self, cell: int) -> int:
        return self._cells[cell]

    def enter(self, me: int) -> None:
        """Note that `me`, not 0, has the lock now."""
        cells = self._cells
        if cells[INSIDE]:
            cells[OVERLAPS] += 1
        cells[INSIDE] = me
        cells[GRANTS] += 1
        if cells[LAST] != me:
            cells[LAST] = me
            cells[CHANGES] += 1

    def leave(self, me: int) -> None:
        cells = self._cells
        if cells[INSIDE] != me:
            cells[OVERLAPS] += 1
        cells[INSIDE] = 0
