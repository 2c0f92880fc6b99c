"""A pytest plugin that runs the tests against the mutant that ATOMICLOCK_MUTANT names, in child processes too."""

from __future__ import annotations

import os
from pathlib import Path

import mutants

from atomiclock.testing import BackendSuite

NAME = os.environ["ATOMICLOCK_MUTANT"]

HERE = str(Path(__file__).parent)
BackendSuite.preload = f"import sys; sys.path.append({HERE!r}); import mutants; mutants.MUTANTS[{NAME!r}]()"
mutants.MUTANTS[NAME]()
