"""What the README and the documentation show does run; so do the examples in docstrings."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
from servers import MemcachedServer, RedisServer

import atomiclock

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"pytest.md"}  # tests: run as such, in test_pages_that_are_not_python.py
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "```py" in path.read_text(encoding="utf-8") and path.name not in ELSEWHERE
)
MODULES = sorted(
    module.name
    for module in walk_packages(atomiclock.__path__, "atomiclock.")
    if module.name != "atomiclock.fencing.django"  # which only a project of Django can import; it has no examples
)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_page_run_from_top_to_bottom(
    page: Path, redis_server: RedisServer, memcached_server: MemcachedServer, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ATOMICLOCK")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "XDG_STATE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    elsewhere = [f'("localhost", 11211)=("127.0.0.1", {memcached_server.port})']
    runner = str(Path(__file__).with_name("run_page.py"))
    done = subprocess.run(
        [sys.executable, "-W", "error", runner, str(page), redis_server.url, *elsewhere],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["atomiclock", *MODULES])
def test_the_examples_in_docstrings_run(name: str) -> None:
    outcome = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.failed == 0


def test_every_relative_link_leads_to_a_file() -> None:
    import re

    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken
