"""Whatever the server and the network do, every call ends in time, and the event loop goes on meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from colours import Face
from proxy import Fault, Proxy
from servers import RedisServer, free_port, wait_until
from wire import nobody_accepts, wire_to

from atomiclock import BackendUnavailable

FOR_EVER = 9**9
SCHEMES = ("redis", "memcached", "etcd")
MARGIN = 0.6
"""Seconds by which a call may be late on a busy machine: connecting, taking back, waking up."""
STALL = 0.5


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Connections are accepted by the kernel, and nobody ever reads or answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def ends_unavailable(face: Face, call: Callable[[], Any], at_most: float, at_least: float = 0.0) -> None:
    face.longest_stall()
    begun, since = time.monotonic(), face.clock()
    with pytest.raises(BackendUnavailable):
        call()
    assert time.monotonic() - begun >= at_least
    assert face.clock() - since <= at_most
    assert face.longest_stall() < STALL


def test_a_loop_that_is_blocked_is_noticed(face: Face) -> None:
    def block() -> None:
        since = face.clock()
        while face.clock() - since < 2 * STALL:
            time.sleep(0.1)

    if face.colour == "async":
        face.longest_stall()
        face.call(block)
        assert face.longest_stall() >= STALL


HANGS = {
    "no reply to the request": Fault("add", times=FOR_EVER, forward="no", reply="never"),
    "the reply drips": Fault("add", times=FOR_EVER, reply="drip"),
    "no reply in the handshake": Fault("handshake", times=FOR_EVER, forward="no", reply="never"),
    "the handshake drips": Fault("handshake", times=FOR_EVER, reply="drip"),
}


@pytest.mark.parametrize("hang", HANGS)
def test_acquire_ends_at_its_timeout_when(face: Face, proxy: Proxy, hang: str) -> None:
    locks = face.manager(proxy.url)
    fault = HANGS[hang]
    fault.hits = 0
    proxy.script(fault)
    ends_unavailable(face, lambda: locks.acquire("x", timeout=0.7), 0.7 + MARGIN)
    assert fault.hits


@pytest.mark.parametrize("hang", HANGS)
def test_one_attempt_ends_at_the_bound_of_a_request_when(face: Face, proxy: Proxy, hang: str) -> None:
    locks = face.manager(f"{proxy.url}?io_timeout=0.7")
    HANGS[hang].hits = 0
    proxy.script(HANGS[hang])
    ends_unavailable(face, lambda: locks.try_acquire("x"), 0.7 + MARGIN)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_acquire_ends_at_its_timeout_when_nobody_accepts(face: Face, scheme: str) -> None:
    with nobody_accepts() as port:
        locks = face.manager(f"{scheme}://127.0.0.1:{port}")
        ends_unavailable(face, lambda: locks.acquire("x", timeout=0.7), 0.7 + MARGIN, 0.5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_holders_calls_end_in_time_when_nobody_accepts_any_more(
    face: Face, scheme: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(f"{scheme}_server")
    with wire_to(server.port, http2=scheme == "etcd") as wire:
        locks = face.manager(f"{scheme}://127.0.0.1:{wire.port}?io_timeout=0.7")
        lease = locks.acquire("x", renew=False)
        wire.strike("refused")
        with nobody_accepts(wire.port):
            ends_unavailable(face, lease.extend, 0.7 + MARGIN)
            ends_unavailable(face, lease.release, 0.7 + MARGIN)
        wire.heal()
        wait_until(lambda: released(lease), 10, "it can be released when the network is well again")


def released(lease: Any) -> bool:
    with suppress(BackendUnavailable):
        lease.release()
        return True
    return False


@pytest.mark.parametrize("scheme", ["redis", "rediss", "memcached", "etcd"])
def test_acquire_ends_at_its_timeout_when_nobody_answers(face: Face, listener: socket.socket, scheme: str) -> None:
    locks = face.manager(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
    ends_unavailable(face, lambda: locks.acquire("x", timeout=0.7), 0.7 + MARGIN, 0.5)


def test_one_attempt_is_bounded_by_default(face: Face, listener: socket.socket) -> None:
    locks = face.manager(f"redis://127.0.0.1:{listener.getsockname()[1]}")
    ends_unavailable(face, lambda: locks.try_acquire("x"), 3 + MARGIN, 0.5)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "release": lambda _, lease: lease.release(),
    "extend": lambda _, lease: lease.extend(),
    "holder": lambda locks, _: locks.holder("x"),
    "try_acquire": lambda locks, _: locks.try_acquire("x"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["hangs", "drips", "accepts and is silent"])
def test_every_call_without_a_timeout_is_bounded_when_the_server(face: Face, proxy: Proxy, call: str, how: str) -> None:
    locks = face.manager(f"{proxy.url}?io_timeout=0.6")
    lease = locks.acquire("x", renew=False)
    if how == "hangs":
        proxy.script(Fault(None, times=FOR_EVER, forward="no", reply="never"))
    elif how == "drips":
        proxy.script(Fault(None, times=FOR_EVER, reply="drip"))
    else:
        proxy.silent = True
    # A reply of few bytes may arrive within the bound even if it drips.
    face.longest_stall()
    begun = face.clock()
    try:
        CALLS[call](locks, lease)
        assert how == "drips"
    except BackendUnavailable:
        pass
    assert face.clock() - begun < 0.6 + MARGIN
    assert face.longest_stall() < STALL
    proxy.clear()


@pytest.mark.parametrize("timeout", [0, 0.5])
def test_server_that_is_down_is_unavailable_at_once_and_never_busy(face: Face, timeout: float) -> None:
    locks = face.manager(f"redis://127.0.0.1:{free_port()}")
    ends_unavailable(face, lambda: locks.acquire("x", timeout=timeout), timeout + 0.5)
    ends_unavailable(face, lambda: locks.try_acquire("x"), 0.5)


def test_wait_for_ever_ends_when_the_server_is_down(face: Face) -> None:
    locks = face.manager(f"redis://127.0.0.1:{free_port()}?io_timeout=0.5")
    ends_unavailable(face, lambda: locks.acquire("x", timeout=None), 0.5 + MARGIN)


def test_waiter_is_told_when_the_server_hangs_meanwhile(face: Face, own_redis: RedisServer) -> None:
    locks = face.manager(f"{own_redis.url}?io_timeout=0.5")
    held = locks.acquire("x", ttl=1, renew=False)
    frozen = own_redis.frozen()
    timer = threading.Timer(0.3, frozen.__enter__)
    timer.start()
    try:
        ends_unavailable(face, lambda: locks.acquire("x", timeout=30), 1 + 0.5 + 2 * MARGIN)
    finally:
        frozen.__exit__(None, None, None)
    assert not held


def test_frozen_server_does_not_keep_a_holder_from_knowing_that_it_lost(face: Face, own_redis: RedisServer) -> None:
    locks = face.manager(own_redis.url)
    begun = face.clock()
    lease = locks.acquire("x", ttl=0.8)
    with own_redis.frozen():
        while not lease.lost:
            assert face.clock() - begun < 0.8 + 0.6
            time.sleep(0.01)
        with pytest.raises(BackendUnavailable):
            locks.acquire("y", timeout=0.3)
