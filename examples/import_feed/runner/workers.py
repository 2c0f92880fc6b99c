"""The worker processes: started, awaited, stopped, each by the pid we got when we started it."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

EXAMPLE = Path(__file__).resolve().parent.parent
CONCURRENCY = 4
# A warm shutdown waits for running imports, of which the longest takes four seconds.
GRACE = 8.0


class Worker:
    """One `celery worker` with its children."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        arguments = ["-A", "project", "worker", "-n", f"{name}@localhost", "-P", "prefork", f"-c{CONCURRENCY}"]
        quiet = ["-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C then reaches the demo alone, which stops the workers in order.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", *arguments, *quiet],
                cwd=EXAMPLE,
                # What we import from, they do: a relative PYTHONPATH means something else in another directory.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the worker's main process runs."""
        return self.process.poll() is None

    def ask_to_stop(self) -> None:
        """Begin the warm shutdown; returns at once."""
        if self.alive:
            self.process.terminate()

    def wait(self, deadline: float) -> None:
        """Return when it is gone, which it is not long after `deadline` whatever it does."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # Not reaped yet, so the group, which is its session's and holds its children, is still its own.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def workers(names: list[str], logs: Path) -> Iterator[list[Worker]]:
    """Started workers, stopped on the way out, whatever the way."""
    started: list[Worker] = []
    try:
        for name in names:
            started.append(Worker(name, logs / f"{name}.log"))
        yield started
    finally:
        for worker in started:
            worker.ask_to_stop()
        deadline = time.monotonic() + GRACE
        for worker in started:
            worker.wait(deadline)


@contextmanager
def orderly_end() -> Iterator[threading.Event]:
    """The event that Ctrl-C, SIGTERM and SIGHUP set, instead of raising wherever we are, which may be the clean-up."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_and_see_dead(pid: int, patience: float = 10.0) -> tuple[float, float]:
    """SIGKILL one process that is not our child; returns when it was sent and when the process did nothing any more.

    It is stopped first: what is seen only after the kill may be seen late on a busy machine, when another process has
    taken over already, and would look as if both had run at once.
    """
    try:
        process = os.pidfd_open(pid)
    except (AttributeError, OSError):  # no such call on this system, or not in this container
        return _kill_and_poll(pid, patience)
    try:
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + patience
        while not _stands_still(pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        sent = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        # Readable as soon as the process has ended, even while its parent has not asked yet.
        if not select.select([process], [], [], patience)[0]:
            raise TimeoutError(f"process {pid} outlived SIGKILL by {patience} s")
        return sent, sent
    finally:
        os.close(process)


def _stands_still(pid: int) -> bool:
    """Whether all threads of the process are stopped, or gone."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has just ended
            if thread.read_text().rpartition(")")[2].split()[0] not in "TZX":
                return False
    return True


def _kill_and_poll(pid: int, patience: float) -> tuple[float, float]:
    """The same without a pidfd: the process counts as dead once its parent has reaped it."""
    sent = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while time.monotonic() < sent + patience:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return sent, time.monotonic()
        time.sleep(0.005)
    raise TimeoutError(f"process {pid} outlived SIGKILL by {patience} s")
