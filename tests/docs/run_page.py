"""Run the Python of one page as a reader would, from top to bottom: run_page.py PAGE.md REDIS_URL [WRITTEN=REAL]...

Blocks marked `python` are executed in one namespace, which has a few names that a reader would have; one with a
top-level `await` or `async with` runs on an event loop. Blocks marked `pycon` are doctests in the same namespace.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FENCE = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PLACEHOLDER = "redis://localhost:6379/0"


def surroundings() -> dict[str, Any]:
    """What the pages take as given."""
    from celery import Celery

    app = Celery("pages", broker="memory://")
    app.conf.task_always_eager = True

    async def charge_async(invoice: int, fence: int) -> None: ...

    return {
        "__name__": "page",
        "Feed": SimpleNamespace(objects=SimpleNamespace(import_feed=lambda url: SimpleNamespace(url=url))),
        "app": app,
        "charge": lambda invoice, fence: None,
        "charge_async": charge_async,
        "invoice": 42,
        "steps": [lambda: None],
    }


def run(page: Path, redis_url: str, *replaced: str) -> None:
    """Run the page's blocks; raises what they raise. `replaced`: what is written there, "=", and what is meant here."""
    namespace = surroundings()
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text[: match.start(2)].count("\n")
        code = match[2].replace(PLACEHOLDER, redis_url)
        for written, _, real in (pair.partition("=") for pair in replaced):
            code = code.replace(written, real)
        if match[1] == "pycon":
            examples = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, clear_globs=False)
            if result.failed:
                raise SystemExit(f"{page.name}: {result.failed} of {result.attempted} examples differ")
            namespace.update(examples.globs)
            continue
        compiled = compile("\n" * line + code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if compiled.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(compiled, namespace))
        else:
            exec(compiled, namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]), *sys.argv[2:])
