"""Waiting on a connection that is made: to its deadline and no longer, in however many calls into the system."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from atomiclock.backends import clock
from atomiclock.backends._wire import SPELL, DeadlineSocket, SettledSocket


class Elsewhere(socket.socket):
    """A socket whose waiting is done by other means, as a monkey-patched one's is."""

    def recv(self, *args: Any) -> bytes:
        return super().recv(*args)


class Refusing(socket.socket):
    """A socket to which the system's own end of a wait cannot be told."""

    def setsockopt(self, *_: Any) -> None:
        raise OSError("Invalid argument")


INSTEAD = {"poll waits": Elsewhere, "the system refuses": Refusing}


@pytest.fixture(params=["the system waits", "poll waits", "the system refuses", "the main thread waits"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SettledSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    if request.param in INSTEAD:
        ours = INSTEAD[request.param](fileno=ours.detach())
    settled = DeadlineSocket(ours, clock() + 5).settled()
    assert isinstance(settled, SettledSocket)
    assert (settled._spell == SPELL) is (request.param not in INSTEAD)
    if request.param == "the system waits":
        settled._main = None  # as for any other thread
    yield settled, theirs
    settled.close()
    theirs.close()


@pytest.mark.parametrize("seconds", [0.0, 0.2, SPELL + 0.3, 2 * SPELL + 0.2])
def test_who_hears_nothing_gives_up_at_the_deadline(pair: Any, seconds: float) -> None:
    ours, _ = pair
    begun = clock()
    ours.deadline = begun + seconds
    with pytest.raises(TimeoutError):
        ours.recv(10)
    assert begun + seconds - 0.005 <= clock() < begun + seconds + 0.5


def test_signals_do_not_put_the_deadline_off() -> None:
    ours, theirs = socket.socketpair()
    settled = DeadlineSocket(ours, clock()).settled()
    settled.deadline = clock() + 2 * SPELL
    ticks: list[int] = []
    at_last = threading.Timer(4 * SPELL, lambda: theirs.send(b"too late"))
    at_last.start()
    before = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, SPELL / 4, SPELL / 4)
        with pytest.raises(TimeoutError):
            settled.recv(10)
        assert clock() < settled.deadline + 0.5
        assert len(ticks) >= 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        at_last.cancel()
        settled.close()
        theirs.close()


@pytest.mark.parametrize("seconds", [0.0, 0.2, SPELL + 0.2])
def test_what_comes_is_returned_at_once(pair: Any, seconds: float) -> None:
    ours, theirs = pair
    ours.deadline = clock() + seconds + 5
    sent: list[float] = []
    timer = threading.Timer(seconds, lambda: (sent.append(time.monotonic()), theirs.send(b"hello")))
    timer.start()
    assert ours.recv(10) == b"hello"
    assert time.monotonic() - sent[0] < 0.5
    timer.join()


def test_the_end_is_returned(pair: Any) -> None:
    ours, theirs = pair
    ours.deadline = clock() + 5
    theirs.close()
    assert ours.recv(10) == b""


def test_what_finds_no_room_is_sent_to_its_end_or_to_the_deadline(pair: Any) -> None:
    ours, theirs = pair
    ours.deadline, data = clock() + 10, bytes(1_000_000)
    got = bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(theirs.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    ours.sendall(data)
    reader.join()
    assert got == data
    ours.deadline = clock() + 0.3
    with pytest.raises(TimeoutError):
        ours.sendall(bytes(10_000_000))
    assert clock() < ours.deadline + 0.5
