"""A password is shown nowhere: in no error, traceback, log, warning, repr, pickle, thread's name or command line."""

from __future__ import annotations

import logging
import pickle
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from servers import EtcdServer, MemcachedServer, RedisServer, free_port

from atomiclock import LockError, _api, acquire_lock
from atomiclock.testing._facade import Colour, open_locks

SECRET = "hunter2-and-more"
SCHEMES = ["redis", "rediss", "valkey", "valkeys", "memcached", "etcd", "etcds"]


class Peer:
    """Something that is not the server: hangs up, answers as a web server does, or says what it was told."""

    def __init__(self, manners: str) -> None:
        self.manners = manners
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(2)
            try:
                while data := client.recv(65536):
                    if self.manners == "hang up":
                        return
                    client.sendall(data if self.manners == "echo" else b"HTTP/1.1 400 Bad Request\r\n\r\n")
            except OSError:
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture(params=["nobody", "hang up", "web server", "echo"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param == "nobody":
        yield free_port()
        return
    peer = Peer(request.param)
    yield peer.port
    peer.close()


class Eye:
    """All that anybody is shown while it is open."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        self._caplog = caplog
        self._capfd = capfd
        self._seen: list[str] = []
        caplog.set_level(logging.DEBUG)

    def look(self, *things: Any) -> None:
        self._seen += [f"{thing!r} {thing}" for thing in things]

    def caught(self, error: BaseException) -> None:
        self.look(error, error.args, vars(error))
        self._seen += traceback.format_exception(type(error), error, error.__traceback__)
        if isinstance(error, LockError):
            self._seen.append(pickle.dumps(error).decode("latin-1"))

    def check(self) -> None:
        self._seen += [thread.name for thread in threading.enumerate()]
        for path in Path("/proc/self/task").glob("*/comm"):
            with suppress(OSError):  # that thread has just ended
                self._seen.append(path.read_text())
        self._seen.append(Path("/proc/self/cmdline").read_text())
        shown = self._capfd.readouterr()
        text = "\n".join([*self._seen, self._caplog.text, shown.out, shown.err])
        assert text.strip()
        where = text.find(SECRET)
        assert where < 0, text[max(0, where - 300) : where + 100]


@pytest.fixture
def eye(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Eye]:
    eye = Eye(caplog, capfd)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield eye
        eye.look(*[one.message for one in warned])
    eye.check()


def fails(eye: Eye, colour: Colour, url: str) -> None:
    """Use `url` in vain, in all ways, and show what comes of it."""
    locks = open_locks(colour, url)
    core = locks.manager._core
    eye.look(locks.manager, core.backend, core.backend.place, vars(core.backend).get("_target"))
    for call in (lambda: locks.acquire("a", timeout=0.2), lambda: locks.try_acquire("a"), lambda: locks.holder("a")):
        with pytest.raises(LockError) as raised:
            call()
        eye.caught(raised.value)
    locks.close()


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_of_a_server_that_cannot_be_used(eye: Eye, colour: Colour, scheme: str, port: int) -> None:
    fails(eye, colour, f"{scheme}://user:{SECRET}@127.0.0.1:{port}?io_timeout=0.4")


def test_of_one_that_does_not_take_it(
    eye: Eye, redis_server: RedisServer, memcached_server: MemcachedServer, etcd_server: EtcdServer
) -> None:
    for server in (redis_server, memcached_server):
        for colour in ("sync", "async"):
            locks = open_locks(colour, server.url.replace("://", f"://user:{SECRET}@"))
            try:
                locks.acquire("a", timeout=0.5).release()
            except LockError as error:
                eye.caught(error)
            locks.close()
    with (
        pytest.raises(LockError) as raised,
        acquire_lock("a", f"redis://user:{SECRET}@127.0.0.1:{free_port()}", timeout=0),
    ):
        pass
    eye.caught(raised.value)
    eye.look(acquire_lock("a", f"redis://user:{SECRET}@127.0.0.1:1"))
    _api._managers.clear()


def test_the_eye_sees(eye: Eye, capfd: pytest.CaptureFixture[str]) -> None:
    """All that it looks at, so that what it does not find is not there."""
    shows = [
        lambda: eye.look(SECRET),
        lambda: eye.caught(ValueError(SECRET)),
        lambda: eye.caught(LockError("x", name=SECRET)),
        lambda: logging.getLogger("anybody").debug(SECRET),
        lambda: sys.stderr.write(SECRET),
    ]
    for show in shows:
        show()
        with pytest.raises(AssertionError):
            eye.check()
        eye._seen.clear()
        eye._caplog.clear()
