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
        self.environment: dict[str, str] = {}
        """What it has in its environment beside ours."""

    def command_line(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> Self:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(self.command_line(), stdout=log, stderr=log, env=environment)
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
        wait_until(self._stopped, what="all its threads stand still")
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _stopped(self) -> bool:
        assert self.process is not None
        states = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(state.read_text().rpartition(")")[2].split()[0] == "T" for state in states)


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


class EtcdServer(Server):
    """An etcd of one node. `options` are flags of etcd; `--unsafe-no-fsync` spares the machine's disk."""

    name = "etcd"

    def __init__(self, folder: Path, *options: str, scheme: str = "http") -> None:
        super().__init__(folder)
        self.peer_port = free_port()
        self.options = options
        self.scheme = scheme
        self.flags: tuple[str, ...] = ()  # of etcdctl

    def command_line(self) -> list[str]:
        here, peers = f"{self.scheme}://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        return [
            program("etcd", "etcd-server"), "--name", "solo", "--data-dir", str(self.folder / "data"),
            "--listen-client-urls", here, "--advertise-client-urls", here, "--listen-peer-urls", peers,
            "--initial-advertise-peer-urls", peers, "--initial-cluster", f"solo={peers}", "--unsafe-no-fsync",
            *self.options,
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.ctl("endpoint", "health") or True
        return False

    def ctl_command(self, *words: str) -> list[str]:
        endpoint = f"{self.scheme}://127.0.0.1:{self.port}"
        return [program("etcdctl", "etcd-client"), "--endpoints", endpoint, *self.flags, *words]

    def ctl(self, *words: str) -> str:
        """What etcdctl prints for a command."""
        environment = {**os.environ, "ETCDCTL_API": "3"}
        command = self.ctl_command(*words)
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=20)
        return done.stdout.rstrip("\n")

    def keys(self) -> list[str]:
        return [line for line in self.ctl("get", "", "--from-key", "--keys-only").split("\n") if line]

    def leases(self) -> list[str]:
        return self.ctl("lease", "list").split("\n")[1:]

    def metrics(self) -> list[str]:
        from urllib.request import urlopen

        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as page:
            return str(page.read(), "utf-8").splitlines()

    def watchers(self) -> int:
        """How many watches are open."""
        name = "etcd_debugging_mvcc_watcher_total "
        return next(int(line.removeprefix(name)) for line in self.metrics() if line.startswith(name))

    def calls(self) -> dict[str, int]:
        """How many calls of each method it has begun, and messages of streams it has got."""
        lines = self.metrics()
        found: dict[str, int] = {}
        for line in lines:
            if line.startswith(("grpc_server_started_total{", "grpc_server_msg_received_total{")):
                labels, _, value = line.rpartition(" ")
                method = labels.partition('grpc_method="')[2].partition('"')[0]
                prefix = "" if "started" in line else "message "
                found[prefix + method] = found.get(prefix + method, 0) + int(float(value))
        return found


class MemcachedServer(Server):
    """A memcached. `options` are its flags; with `-s` it listens on a socket instead of a port."""

    name = "memcached"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        self.options = options

    def command_line(self) -> list[str]:
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [
            program("memcached", "memcached"), *user, "-p", str(self.port), "-l", "127.0.0.1", "-U", "0", *self.options,
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"memcached://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.command("mn"))
        return False

    def connect(self) -> socket.socket:
        if "-s" in self.options:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(self.options[self.options.index("-s") + 1])
            except OSError:
                sock.close()
                raise
            return sock
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def command(self, text: str, end: str = "\r\n") -> str:
        """What the server answers to a command, up to and without `end`."""
        with self.connect() as sock:
            sock.settimeout(5)
            sock.sendall(text.encode() + b"\r\n")
            said = b""
            while not said.endswith(end.encode()):
                data = sock.recv(65536)
                if not data:
                    break
                said += data
        return said.decode().removesuffix(end)

    def stats(self, section: str = "") -> dict[str, str]:
        lines = self.command(f"stats {section}".rstrip(), "END\r\n").splitlines()
        return dict(line.split(" ", 2)[1:] for line in lines if line.count(" ") == 2)

    def keys(self) -> list[str]:
        """The keys of all items that have not expired."""
        now = int(self.stats()["time"])
        items = [line.split(" ") for line in self.command("lru_crawler metadump all", "END\r\n").splitlines()]
        dates = {words[0].removeprefix("key="): int(words[1].removeprefix("exp=")) for words in items}
        return sorted(key for key, date in dates.items() if not 0 <= date <= now)

    def wait_until_old_enough(self) -> None:
        """Until locks on it do not have to wait for that; see `SURE_AGE` in the adapter."""
        wait_until(lambda: int(self.stats()["uptime"]) >= 4, 10, "it is two seconds old")


class RabbitServer(Server):
    """A RabbitMQ of one node, with its own epmd, cookie and directories, all on the loopback interface."""

    name = "rabbitmq"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.epmd_port = free_port()
        self.epmd: subprocess.Popen[bytes] | None = None

    def command_line(self) -> list[str]:
        # Not the one on the PATH, which becomes the user rabbitmq and then may not write here.
        return [program("rabbitmq-server", "rabbitmq-server").replace("/sbin/", "/lib/rabbitmq/bin/")]

    def start(self) -> Self:
        here, epmd = str(self.folder), {"ERL_EPMD_PORT": str(self.epmd_port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "env.conf").touch()
        environment = {
            **os.environ, **epmd, "HOME": here, "HOSTNAME": "localhost", "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()), "RABBITMQ_MNESIA_BASE": here, "RABBITMQ_LOG_BASE": here,
            "RABBITMQ_CONF_ENV_FILE": f"{here}/env.conf", "RABBITMQ_CONFIG_FILE": f"{here}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/plugins", "RABBITMQ_PID_FILE": f"{here}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
        }  # fmt: skip
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.epmd = subprocess.Popen([program("epmd", "erlang-base")], env=environment, stdout=log, stderr=log)
            self.process = subprocess.Popen(
                self.command_line(), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self.answers, 60, what=f"{self.name} answers")
        return self

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            sock.settimeout(2)
            sock.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(sock.recv(8))
        return False

    def kill(self) -> None:
        if self.process is not None:  # a shell with Erlang in it, in a session of their own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        super().kill()
        if self.epmd is not None:
            self.epmd.kill()
            self.epmd.wait()
            self.epmd = None

    stop = kill
