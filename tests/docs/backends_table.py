"""The README's table of backends, made from what each backend declares.

`python tests/docs/backends_table.py` prints it; with `--write` it goes into README.md.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from atomiclock import Traits
from atomiclock._registry import ROWS

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- backends -->\n", "<!-- end of backends -->\n"

SCOPES = {
    "process": "threads and tasks of one process",
    "machine": "processes of one machine",
    "network": "all clients of one server",
}
FENCES = {
    "none": "none",
    "process": "grows until the process ends",
    "clock": "grows, even if the server loses its data, while its clock does not go back",
    "durable": "grows for ever",
}

CULLING = "the cache's own `clear()` and culling"


def table() -> str:
    """One row for each backend."""
    schemes: dict[str, list[str]] = {}
    for scheme, row in ROWS.items():
        schemes.setdefault(row.path, []).append(scheme)
    lines = ["| URL | excludes | fence | what loses the lock |", "|---|---|---|---|"]
    for path, names in schemes.items():
        module, _, backend = path.partition(":")
        traits: Traits = getattr(import_module(module), backend).traits
        urls = " ".join(f"`{name}://`" for name in names)
        if names == ["django"]:  # its traits are those of each cache; the class has the weakest
            lines.append(f"| {urls} | as the store behind the cache | as there | as there; {CULLING} |")
            continue
        lines.append(f"| {urls} | {SCOPES[traits.scope]} | {FENCES[traits.fence]} | {traits.loses} |")
    return "\n".join(lines) + "\n"


def parts(readme: str) -> tuple[str, str, str]:
    """`readme` before the table, the table, and after it."""
    head, begin, rest = readme.partition(BEGIN)
    body, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no {BEGIN.strip()} ... {END.strip()}")
    return head + begin, body, end + tail


if __name__ == "__main__":
    sys.stdout.write(table())
    if "--write" in sys.argv:
        head, _, tail = parts(README.read_text(encoding="utf-8"))
        README.write_text(head + table() + tail, encoding="utf-8")
