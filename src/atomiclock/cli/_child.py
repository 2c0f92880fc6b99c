"""The command's process, and the watcher that ends it if we are killed ourselves.

Both are forked first of all, before there is a thread or a connection that a fork could break. The child waits on a
pipe until it may become the command: so its process group is known to the watcher before the command exists, and
there is no moment in which we could be killed and leave the command behind.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from ._codes import CANNOT_RUN, NOT_FOUND, Fail

LOOK_AGAIN = 0.02
"""Seconds between looks at whether a process group is gone."""


class Child:
    """A process, leader of a group of its own, that becomes `command` when it is told to."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        mine = os.getpid()
        go, self._go = os.pipe()
        self._said, said = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self._said)
            _wait_and_become(command, go, said, mine)
        os.close(go)
        os.close(said)
        with suppress(OSError):  # the child does it too: whoever comes first
            os.setpgid(self.pid, self.pid)

    def start(self, environment: Mapping[str, str]) -> None:
        """Let it become the command. Raises `Fail` if it cannot."""
        os.write(self._go, json.dumps(dict(environment)).encode())
        os.close(self._go)
        with open(self._said, "rb") as said:
            number = said.read()  # nothing: the pipe was closed by the exec
        if number:
            os.waitpid(self.pid, 0)
            raise cannot_run(self.command[0], int(number))

    def abandon(self) -> None:
        """It will never be told to: it ends by itself."""
        os.close(self._go)
        os.close(self._said)
        os.waitpid(self.pid, 0)

    def ended(self) -> bool:
        """Whether the command has ended. It is not buried yet, so that its number stays its own."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def stopped_by(self) -> int | None:
        """The signal that has just stopped it, if one has."""
        found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        return None if found is None else found.si_status

    def bury(self) -> int:
        """Its exit code, as a shell has it, once it has ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """To all processes of its group."""
        with suppress(ProcessLookupError, PermissionError):  # it is gone; or all that is left is another user's
            os.killpg(self.pid, number)

    def group_is_there(self) -> bool:
        """Whether any process of its group is left, after it was buried."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def end_group(self, deadline: float) -> None:
        """Wait for the rest of its group until `deadline`, and kill what is left then."""
        while self.group_is_there():
            if time.monotonic() >= deadline:
                self.signal(signal.SIGKILL)
                return
            time.sleep(LOOK_AGAIN)


def cannot_run(command: str, number: int) -> Fail:
    if number in (errno.ENOENT, errno.ENOTDIR):
        return Fail(f"{command}: no such command: check its name and PATH", NOT_FOUND)
    hint = "it has no #! line: put its interpreter first" if number == errno.ENOEXEC else "check its permissions"
    return Fail(f"{command}: cannot be run: {os.strerror(number)}: {hint}", CANNOT_RUN)


def _wait_and_become(command: Sequence[str], go: int, said: int, parent: int) -> NoReturn:
    """In the child. Nothing of ours may go on after it, whatever happens."""
    try:
        os.setpgid(0, 0)
        _as_it_was()
        _die_with(parent)
        with open(go, "rb") as pipe:
            told = pipe.read()
        if told:
            os.environ.update(json.loads(told))
            os.execvp(command[0], list(command))  # noqa: S606  # no shell is the point
    except OSError as error:
        os.write(said, str(error.errno).encode())
    finally:
        os._exit(CANNOT_RUN)


def _as_it_was() -> None:
    """Undo what Python does to signals. Who ignored them, as nohup does, goes on to ignore them."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _die_with(parent: int) -> None:
    """Have the kernel kill the command when we die, at the same moment, even if the watcher was killed too.

    On Linux only; and a program that changes its user loses this, so it is no substitute for the watcher.
    """
    if sys.platform == "linux":
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(CANNOT_RUN)


class Watcher:
    """A process that kills a child's group as soon as we have died without having sent it home."""

    def __init__(self, group: int) -> None:
        alive, self._alive = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _watch(group, alive)
        os.close(alive)

    def send_home(self) -> None:
        with suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._alive, b"home")
        os.close(self._alive)
        os.waitpid(self.pid, 0)


def _watch(group: int, alive: int) -> NoReturn:
    try:
        os.setsid()  # no signal of the terminal is for us
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):  # whoever reads what the command says is not to wait for us
            os.dup2(null, standard)
        os.closerange(3, alive)
        os.closerange(alive + 1, os.sysconf("SC_OPEN_MAX"))
        if not os.read(alive, 16):
            os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(0)
