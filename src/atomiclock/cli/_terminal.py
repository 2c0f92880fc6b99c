"""Whose turn it is to read from the terminal and to hear its Ctrl-C: ours, or the command's."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

if sys.platform != "win32":
    import termios


class Terminal:
    """The terminal that is our stdin, if it is one."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._mine = os.getpgrp()
        self.is_there = self._foreground() is not None
        self._modes = termios.tcgetattr(0) if self.is_there else None
        self.given = False

    def give(self) -> None:
        """To the command's group, if it is ours to give."""
        if self.is_there and self._foreground() == self._mine:
            self._set(self._group)
            self.given = True

    def take_back(self) -> None:
        if self.given and self._foreground() == self._group:
            self._set(self._mine)

    def reset(self) -> None:
        """As it was, after a command that was killed could not do so itself."""
        if self._modes is not None and self._foreground() == self._mine:
            with _from_background(), suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._modes)

    @staticmethod
    def _foreground() -> int | None:
        try:
            return os.tcgetpgrp(0) if os.isatty(0) else None
        except OSError:  # a terminal, but not of our session
            return None

    @staticmethod
    def _set(group: int) -> None:
        with _from_background(), suppress(OSError):  # hung up meanwhile
            os.tcsetpgrp(0, group)


@contextmanager
def _from_background() -> Iterator[None]:
    """Who is not in front is stopped when it touches the terminal, unless it ignores that."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)
