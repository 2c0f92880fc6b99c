"""`atomiclock run`: a command under a lock."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from .._core import _host
from .._manager import LockManager
from .._sync_lease import Lease
from ..errors import BackendUnavailable, ConfigurationError, LockLost, NotHeld
from ._child import Child, Watcher, cannot_run
from ._codes import LOST, SIGNAL, Fail
from ._show import warn
from ._supervise import Ending, Inbox, Supervisor
from ._terminal import Terminal


class Job(NamedTuple):
    """What to run under which lock."""

    name: str
    command: Sequence[str]
    url: str | None
    options: Mapping[str, Any]
    """Of the acquire: those that were given."""
    on_lost: str
    grace: float


class Interrupted(BaseException):
    """A signal came while we waited for the lock."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(job: Job) -> int:
    """Run it, and return its exit code or one of ours. Errors are raised, and nothing is left running."""
    if not hasattr(os, "fork"):
        raise ConfigurationError("atomiclock run needs a POSIX system")
    _check_command(job.command[0])
    _as_expected()
    child = Child(job.command)
    watcher = Watcher(child.pid)
    terminal = Terminal(child.pid)
    try:
        with ExitStack() as after, _signals_raise():
            after.callback(watcher.send_home)
            ending, lost = _locked(job, child, terminal, after)
    except Interrupted as interrupted:
        return SIGNAL + interrupted.number
    if ending.by_terminal is not None:
        _as_the_command(ending.by_terminal)
    return _code(job, ending, lost)


def _locked(job: Job, child: Child, terminal: Terminal, after: ExitStack) -> tuple[Ending, str | None]:
    """How the command ended, and why its lock was lost, if it was."""
    unused = after.enter_context(_abandoned(child))
    manager = after.enter_context(LockManager(job.url))
    if manager._core.backend.traits.scope == "process":
        raise ConfigurationError("memory:// excludes no other process: take sqlite://, or the URL of a server")
    inbox = Inbox()
    owner = f"{_host}:{os.getpid()}:{os.path.basename(job.command[0])}"
    lease = manager.acquire(job.name, on_lost=inbox.word, **{"owner": owner, **job.options})
    try:
        with inbox:
            unused.pop_all()
            terminal.give()
            child.start(_environment(lease))
            ending = Supervisor(child, lease, terminal, job.on_lost, job.grace).run(inbox)
    except Fail:  # there is no command
        _release(lease)
        raise
    except BaseException:  # the watcher will be sent home
        child.signal(signal.SIGKILL)
        raise
    finally:
        terminal.take_back()
    return ending, _release(lease)


@contextmanager
def _abandoned(child: Child) -> Iterator[ExitStack]:
    """Send the child home at the end, unless the stack was emptied meanwhile."""
    with ExitStack() as stack:
        stack.callback(child.abandon)
        yield stack


def _as_expected() -> None:
    """What whoever started us may have left in an unusual state, and our processes rely on."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # the kernel would bury the command before we can
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _check_command(command: str) -> None:
    """Say what cannot be run before anybody waits for a lock."""
    if shutil.which(command) is not None:
        return
    there = os.path.exists(command) if os.path.dirname(command) else False
    raise cannot_run(command, 13 if there else 2)


def _environment(lease: Lease) -> dict[str, str]:
    fence = "" if lease.fence is None else str(lease.fence)
    return {"ATOMICLOCK_NAME": lease.name, "ATOMICLOCK_TOKEN": lease.token, "ATOMICLOCK_FENCE": fence}


def _release(lease: Lease) -> str | None:
    """Why the lock was lost, if it was. A release that was not answered goes on until its ttl is over."""
    try:
        lease.release()
    except LockLost as lost:
        return str(lost)
    except NotHeld:
        return None
    except BackendUnavailable as error:
        warn(f"the command has ended, but its lock could not be released: {error}; it ends with its ttl")
    return None


def _code(job: Job, ending: Ending, lost: str | None) -> int:
    if lost is None:
        return ending.code
    if job.on_lost == "ignore":
        warn(f"{lost}; the command ran on, as --on-lost=ignore has it")
        return ending.code
    warn(f"{lost}; " + ("the command was ended" if ending.lost else "the command had just ended by itself"))
    return LOST if ending.lost or ending.code == 0 else ending.code


def _as_the_command(number: int) -> None:
    """End as the command did by Ctrl-C, and with us who started us: a script shall not go on with its next line."""
    signal.signal(number, signal.SIG_DFL)
    if number == signal.SIGQUIT:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command's core is the one of interest
    os.killpg(os.getpgrp(), number)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """A signal that would end us is an exception, so that what was sent for the lock is taken back."""

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
