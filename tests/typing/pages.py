"""Write the Python of pages as modules into a directory, for type checkers: pages.py DIRECTORY PAGE.md..."""

from __future__ import annotations

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def module(page: Path) -> str:
    """The blocks of `page`, each on the lines on which it stands there. What awaits at the top needs a function."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for match in BLOCK.finditer(text):
        first = text[: match.start(1)].count("\n")
        for number, line in enumerate(match[1].split("\n")):
            lines[first + number] = line
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        page = Path(name)
        (folder / f"{page.stem.replace('-', '_')}.py").write_text(module(page), encoding="utf-8")
