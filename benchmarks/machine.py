"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from contest import Contestant

PROGRAMS = (["redis-server", "--version"], ["memcached", "-V"], ["etcd", "--version"])


LOAD = round(os.getloadavg()[0], 2)
"""When this was loaded, which is before anything is measured: later it would be our own."""


def describe(entries: Sequence[Contestant]) -> dict[str, Any]:
    versions: dict[str, str] = {}
    for entry in entries:
        versions |= entry.versions()
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": LOAD,
        "servers": {command[0]: _version(command) for command in PROGRAMS},
        "versions": dict(sorted(versions.items())),
    }


def _version(command: list[str]) -> str:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    except OSError:
        return "missing"
    words = done.stdout.split()
    return next((word.removeprefix("v=") for word in words if word.removeprefix("v=")[:1].isdigit()), "?")
