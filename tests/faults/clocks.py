"""A wall clock for processes of ours alone, which a test can set; the machine's own stays as it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

from servers import program

HOUR = 3600


class WallClock:
    """What processes with `environment` believe the time to be: libfaketime tells them, if they are linked to libc.

    Their monotonic clocks, CLOCK_BOOTTIME too, go on as they are, as they do when somebody sets a machine's clock.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set(0)
        _sweep()
        ask = [program("faketime", "faketime"), "-m", "-f", "+0", "sh", "-c", 'echo "$LD_PRELOAD"']
        library = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        self.environment = {
            # With jemalloc, which Debian's Redis has, libfaketime calls itself without end: let libc's come before it.
            "LD_PRELOAD": f"{library}:libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Let it be so many seconds before (or, if negative, behind) the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)  # at once: it is read all the time


def _sweep() -> None:
    """Remove what killed processes left in shared memory: under a pid of theirs libfaketime would not start."""
    for pattern in ("faketime_shm_*", "sem.faketime_sem_*"):
        for left in Path("/dev/shm").glob(pattern):
            if not Path("/proc", left.name.rpartition("_")[2]).exists():
                left.unlink(missing_ok=True)
