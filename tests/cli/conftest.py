"""The command line as a process, with a lock file of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from program import Program


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """`atomiclock`, whose default store is a file of this test. What still runs at the end is killed."""
    made = Program(tmp_path)
    yield made
    made.end()
