"""While the command runs: signals are passed on, a stop stops us both, and the loss of the lock ends it."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import Any, NamedTuple

from .._sync_lease import Lease
from ._child import Child
from ._terminal import Terminal

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
LOOK_AGAIN = 5.0
"""Seconds after which the lease is looked at although nothing happened."""


class Ending(NamedTuple):
    """How the command ended."""

    code: int
    lost: bool
    """Whether it was ended by us because the lock was lost."""
    by_terminal: int | None
    """The signal of the terminal that killed it, which was meant for us as well."""


class Inbox:
    """Signals, and a word from another thread, in one pipe. They come there as long as it is entered."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def __enter__(self) -> Inbox:
        self._wakeup_before = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        self._before: dict[int, Any] = {}
        for number in (*PASSED_ON, signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT):
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCHLD:
                self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup_before)

    def word(self, _: Lease) -> None:
        """From any thread: look."""
        with suppress(OSError):  # full: then it will look anyway
            os.write(self._in, b"\0")

    def wait(self, seconds: float) -> bytes:
        """The signals that came, within `seconds` at the latest; 0 is a word."""
        select.select([self._out], [], [], seconds)
        try:
            return os.read(self._out, 4096)
        except BlockingIOError:
            return b""


def _noted(*_: object) -> None:
    """The number is in the pipe already."""


class Supervisor:
    """One command that runs under one lease."""

    def __init__(self, child: Child, lease: Lease, terminal: Terminal, on_lost: str, grace: float) -> None:
        self._child = child
        self._lease = lease
        self._terminal = terminal
        self._on_lost = on_lost
        self._grace = grace
        self._kill_at: float | None = None  # set when the lock was lost
        self._killed = False
        self._told_to_stop = False

    def run(self, inbox: Inbox) -> Ending:
        """Until the command has ended and, if the lock was lost, all of its group."""
        while True:
            self._look_at_lease()
            if self._child.ended():
                return self._end()
            stopped = self._child.stopped_by()
            if stopped is not None:
                self._stop_too(stopped)
                continue
            left = LOOK_AGAIN if self._kill_at is None or self._killed else self._kill_at - time.monotonic()
            for number in inbox.wait(max(0.0, min(left, LOOK_AGAIN))):
                self._got(number)

    def _got(self, number: int) -> None:
        if number == signal.SIGCONT:
            self._go_on()
        elif number == signal.SIGTSTP:
            self._told_to_stop = True
            self._child.signal(number)
        elif number in PASSED_ON:
            self._child.signal(number)

    def _look_at_lease(self) -> None:
        if self._on_lost == "ignore" or self._killed or not self._lease.lost:
            return
        now = time.monotonic()
        if self._kill_at is None:
            self._kill_at = now if self._on_lost == "kill" else now + self._grace
            if self._on_lost == "term":
                self._child.signal(signal.SIGTERM)
                self._child.signal(signal.SIGCONT)  # one that is stopped could not hear it
        if now >= self._kill_at:
            self._child.signal(signal.SIGKILL)
            self._killed = True

    def _end(self) -> Ending:
        code = self._child.bury()
        if self._kill_at is not None:
            self._child.end_group(self._kill_at)
        self._terminal.take_back()
        if code > 128:
            self._terminal.reset()
        meant_for_us = code - 128 if self._terminal.given and code - 128 in (signal.SIGINT, signal.SIGQUIT) else None
        return Ending(code, self._kill_at is not None, meant_for_us)

    # Stopped and continued, as by Ctrl-Z and `fg`

    def _stop_too(self, number: int) -> None:
        """Stop our whole job with the command, so that the shell has the terminal again.

        Nothing is renewed while we are stopped. The command does not run then either, and is not continued before we
        know that its lease still stands.
        """
        if not (self._terminal.is_there or self._told_to_stop):
            return  # somebody has stopped the command, and will continue it
        self._told_to_stop = False
        self._terminal.take_back()
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # The terminal would have stopped a script that started us as well. Whom nobody could continue is not stopped.
        os.killpg(os.getpgrp(), signal.SIGTSTP if number == signal.SIGSTOP else number)
        signal.signal(signal.SIGTSTP, before)
        self._go_on()

    def _go_on(self) -> None:
        self._look_at_lease()
        if self._kill_at is None:
            self._terminal.give()
            self._child.signal(signal.SIGCONT)
