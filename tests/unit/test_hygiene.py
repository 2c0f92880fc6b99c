"""What `import atomiclock` loads, and what the public names are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import atomiclock
from atomiclock import testing

HEAVY = {"redis", "asyncio", "sqlite3", "celery", "pytest", "platformdirs", "threading", "hypothesis", "ssl", "socket",
         "dataclasses", "inspect", "urllib.parse", "importlib.metadata", "hashlib", "django", "hpack"}  # fmt: skip


def loaded(script: str) -> set[str]:
    """The modules that `script` loads beyond those of a bare interpreter."""
    code = f"import sys; before = set(sys.modules)\n{script}\nprint(*(set(sys.modules) - before), sep='\\n')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n"))


def test_importing_the_package_loads_no_driver_and_nothing_heavy() -> None:
    assert loaded("import atomiclock") & HEAVY == set()


def test_what_children_of_the_conformance_suite_need_has_no_pytest() -> None:
    assert "pytest" not in loaded("import atomiclock.testing._facade")


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_a_lock_for_threads_loads_nothing_for_tasks(scheme: str, tmp_path: Path) -> None:
    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path / 'locks.db'}"
    modules = loaded(f"import atomiclock\nwith atomiclock.acquire_lock('x', {url!r}): pass")
    assert modules & {"asyncio", "dataclasses", "inspect", "redis", "pytest"} == set()
    assert ("sqlite3" in modules) == (scheme == "sqlite")


@pytest.mark.parametrize("name", atomiclock.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert name in dir(atomiclock)
    assert getattr(atomiclock, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Lokc"):
        _ = atomiclock.Lokc
    with pytest.raises(AttributeError, match="Suite"):
        _ = testing.Suite
