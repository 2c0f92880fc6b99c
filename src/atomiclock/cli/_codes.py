"""Exit codes, where those of sysexits.h say the same, and how an error becomes one line and a code."""

from __future__ import annotations

from ..backends._admin import CannotList
from ..errors import BackendUnavailable, ConfigurationError, LockError, LockLost, LockTimeout

OK = 0
NO = 1
"""`show`: nobody holds it. `break`: that holder does not. `doctor`: something is bad."""
USAGE = 64
"""The command line, the URL or an option is wrong, or the store refuses us."""
UNAVAILABLE = 69
"""The store did not answer."""
INTERNAL = 70
"""A bug."""
OUTPUT = 74
"""What we had to say cannot be written, as on a full disk."""
BUSY = 75
"""Somebody else held the lock until the timeout was over."""
LOST = 79
"""The lock was lost while the command ran. Beyond those of sysexits.h, so no other program means something by it."""
CANNOT_RUN = 126
NOT_FOUND = 127
SIGNAL = 128
"""Plus the number of the signal."""


class Fail(Exception):
    """Ends the program with a line on stderr, which says what to do next, and a code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def code_of(error: LockError | CannotList) -> int:
    if isinstance(error, (CannotList, ConfigurationError)):  # also a store that is there and refuses us
        return USAGE
    if isinstance(error, LockTimeout):
        return BUSY
    if isinstance(error, LockLost):
        return LOST
    return UNAVAILABLE if isinstance(error, BackendUnavailable) else NO


def next_step(error: LockError | CannotList, waited: bool = True) -> str:
    """What to do about it, where the error does not say so itself. `waited`: whether it was asked to wait."""
    if type(error) is BackendUnavailable:
        return "; is it running, and is the URL right? `atomiclock doctor URL` looks into it"
    if isinstance(error, LockTimeout):
        longer = "a longer --timeout waits longer" if waited else "without --no-wait it waits"
        return f"; `atomiclock show NAME` tells more, {longer}"
    return ""
