"""What is shown to the authors of tests does run, as tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent

from atomiclock import testing

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "test-your-application.md"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:asyncio"]


def run(code: str, folder: Path, *options: str) -> str:
    """What pytest says of `code`; it must pass."""
    (folder / "test_it.py").write_text(code)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ATOMICLOCK")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*PYTEST, *options, "test_it.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    return done.stdout


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    code = "".join(blocks)
    assert f"{code.count('def test_')} passed" in run(code, tmp_path)


def test_six_lines_run_the_conformance_suite(tmp_path: Path) -> None:
    shown = re.findall(r"\n((?:    .*\n|\n)+)", cleandoc(testing.__doc__ or "") + "\n")
    (six,) = (dedent(block) for block in shown if "BackendSuite" in block)
    assert len([line for line in six.splitlines() if line.strip()]) == 6
    said = run(six.replace("mine://localhost:1234", "memory://six"), tmp_path, "-k", "timeout")
    assert re.search(r"(\d+) passed, (\d{3}) deselected", said), said
