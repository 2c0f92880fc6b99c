"""Real servers for the tests: started on free loopback ports, stopped by their own pid, never any other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


def free_port() -> int:
    """A loopback port that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 10.0, what: str = "condition") -> None:
    """Wait for `condition` to be true, and fail loudly if it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def program(name: str, package: str) -> str:
    """The path of a server, which may be in a directory that a user's PATH lacks."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError(f"{name} is missing: apt-get install {package} (nox -s tests does it)")
    return found


class Server:
    """A server process on a loopback port, in a directory of its own."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command_line(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> Self:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command_line(), stdout=log, stderr=log)
        wait_until(self.answers, 20, what=f"{self.name} answers")
        return self

    def kill(self) -> None:
        """SIGKILL: what was only in memory is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    stop = kill

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP for the duration: connections are accepted by the kernel, and nobody ever answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


class RedisServer(Server):
    """A redis-server without persistence, unless `options` say otherwise."""

    name = "redis-server"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        self.socket = folder / "redis.sock"
        self.options = options

    def command_line(self) -> list[str]:
        return [
            program("redis-server", "redis-server"), "--port", str(self.port), "--bind", "127.0.0.1",
            "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no", "--dir", str(self.folder),
            *self.options,
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        return False

    def command(self, *words: str) -> str:
        """What redis-cli prints for a command."""
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), "--raw", *words], capture_output=True, text=True, check=True
        )
        return done.stdout.rstrip("\n")

    def keys(self) -> list[str]:
        return sorted(line for line in self.command("KEYS", "*").split("\n") if line)
