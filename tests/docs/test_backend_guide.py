"""The backend that the guide writes is a backend: it joins by its entry point and keeps the laws."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "how-to" / "write-a-backend.md"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory with the guide's package as it would be installed, and its tests."""
    guide = GUIDE.read_text(encoding="utf-8")
    (tmp_path / "shelf_lock.py").write_text("".join(re.findall(r"^```python\n(.*?)^```$", guide, re.S | re.M)))
    toml, tests = (re.search(rf"^```{kind}\n(.*?)^```$", guide, re.S | re.M) for kind in ("toml", "text"))
    assert toml is not None
    assert tests is not None
    point = re.search(r'^shelf = "(.*)"$', toml[1], re.M)
    assert point is not None
    info = tmp_path / "shelf_lock-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-lock\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[atomiclock.backends]\nshelf = {point[1]}\n")
    (tmp_path / "test_shelf.py").write_text(tests[1])
    return tmp_path


@pytest.mark.timeout(300)
def test_the_guides_backend_keeps_the_laws(shelf: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{shelf}:{ROOT / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=60", "test_shelf.py"],
        cwd=shelf,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
