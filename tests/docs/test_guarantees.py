"""The table of faults in the guarantees names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/explanation/guarantees.md").read_text()
NAMED = set(re.findall(r"`((?:tests|src)/[\w/]+\.py)`", PAGE))


def test_every_test_that_the_guarantees_name_exists() -> None:
    assert len(NAMED) > 10
    assert [name for name in sorted(NAMED) if not (ROOT / name).is_file()] == []
