"""Which process a lock on this machine belongs to, so that others can tell whether it still lives."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from .. import _process


class Identity(NamedTuple):
    """A process, unlike any other of this machine, also after its pid is used again.

    `boot` is the boot's id and `space` the pid namespace: a container's pids mean nothing outside it.
    """

    boot: str
    space: str
    pid: int
    started: int

    @property
    def plausible(self) -> bool:
        """Whether it can be one: what is read from a file may have been put there by anybody."""
        boot, space, pid, started = self
        right = type(boot) is type(space) is str and type(pid) is type(started) is int
        return right and -(2**31) <= pid < 2**31


_mine: tuple[int, Identity] | None = None


def identity() -> Identity:
    """This process's."""
    global _mine
    if _mine is None or _mine[0] != _process.generation:
        pid = os.getpid()
        _mine = _process.generation, Identity(_boot(), _space(), pid, _started(pid) or 0)
    return _mine[1]


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return sys.platform  # then a lock that was held when the machine went down lives out its ttl


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; `None` if it is dead but not buried; 0 if unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # After the command, which is in parentheses and may have any characters: state is first, start the 20th.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


_alive: dict[Identity, float] = {}
"""When a process was last seen alive."""
MOST_NOTED = 1000


def died_lately(who: Identity, seconds: float) -> bool:
    """As `is_dead`, but an answer of that age may do: to look takes longer than a transaction."""
    now = _process.clock()
    if now - _alive.get(who, -seconds) < seconds:
        return False
    if is_dead(who):
        return True
    if len(_alive) >= MOST_NOTED:
        _alive.clear()
    _alive[who] = now
    return False


def is_dead(who: Identity) -> bool:
    """Whether that process has certainly ended. When in doubt it lives, and its ttl decides."""
    me = identity()
    if who.boot != me.boot:
        return True
    if who.space != me.space or (who.pid, who.started) == (me.pid, me.started):
        return False
    try:
        os.kill(who.pid, 0)  # also sees what /proc hides from other users
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's process
    started = _started(who.pid)
    return started is None or (started != who.started and 0 not in (started, who.started))
