"""The README says of each backend what the backend says of itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("backends_table", Path(__file__).with_name("backends_table.py"))
assert _spec is not None
assert _spec.loader is not None
backends_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(backends_table)


def test_the_readmes_table_is_what_the_backends_declare() -> None:
    _, shown, _ = backends_table.parts(backends_table.README.read_text(encoding="utf-8"))
    assert shown == backends_table.table(), "run: python tests/docs/backends_table.py --write"
