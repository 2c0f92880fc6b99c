"""`atomiclock` on the command line. Needs the extra `cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, and exit with its code."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        sys.stderr.write(f"atomiclock: the command line needs {error.name}: pip install 'atomiclock[cli]'\n")
        raise SystemExit(64) from None
    from ._main import run

    raise SystemExit(run(sys.argv[1:]))
