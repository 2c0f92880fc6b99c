"""`atomiclock` on the command line. Needs the extra `cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, and exit with its code."""
    try:
        code = _run()
    except KeyboardInterrupt:  # while the modules were loaded, which takes longest of all
        code = 128 + 2
    raise SystemExit(code)


def _run() -> int:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        sys.stderr.write(f"atomiclock: the command line needs {error.name}: pip install 'atomiclock[cli]'\n")
        return 64
    from ._main import run

    return run(sys.argv[1:])
