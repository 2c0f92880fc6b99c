"""Runs `interrupts.py` in a process of its own.

Raising from a trace function at any point is more than CPython is made for: it can leave the interpreter's record of
the exception that is being handled in disorder, and the tests after it would see that.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tally import LONG, note

SUITE = Path(__file__).with_name("interrupts.py")


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="CPython 3.12 crashes when a trace function raises")
@pytest.mark.timeout(3600 if LONG else 600)
def test_an_interrupt_at_any_point_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider"]
    command += ["--reruns=0", "-o", "timeout=900"]
    done = subprocess.run(command, cwd=SUITE.parents[2], capture_output=True, text=True, check=False)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    counted = [line for line in done.stdout.splitlines() if " interrupts " in line]
    assert counted
    note(*counted)
