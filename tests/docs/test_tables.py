"""The tables in the pages say of each backend what the backend says of itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("backends_table", Path(__file__).with_name("backends_table.py"))
assert _spec is not None
assert _spec.loader is not None
backends_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(backends_table)


@pytest.mark.parametrize(("page", "mark", "made"), backends_table.PLACES, ids=lambda part: getattr(part, "stem", None))
def test_a_table_is_what_the_backends_declare(page: Path, mark: str, made: object) -> None:
    _, shown, _ = backends_table.parts(page, mark)
    assert callable(made)
    assert shown == made(), "run: python tests/docs/backends_table.py --write"
