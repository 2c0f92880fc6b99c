"""A cluster that loses a node, a server that is down, hangs, restarts or is something else, and calls that are cut."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from servers import EtcdServer, free_port, wait_until

from atomiclock import BackendUnavailable, LockError, LockLost, LockManager, LockTimeout
from atomiclock._url import parse
from atomiclock.backends import Unknown
from atomiclock.backends._etcd_errors import explain
from atomiclock.backends._etcd_target import target_of_url
from atomiclock.backends._grpc import CANCELLED, Answer
from atomiclock.testing._facade import Colour, Interrupted, Locks, interrupt_main_thread, open_locks

SLACK = 2.0


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Colour:
    colour: Colour = request.param
    return colour


@pytest.fixture
def opened(colour: Colour) -> Iterator[Callable[..., Locks]]:
    made: list[Locks] = []

    def make(url: str, **defaults: Any) -> Locks:
        made.append(open_locks(colour, url, **defaults))
        return made[-1]

    yield make
    for locks in made:
        locks.close()


class Node(EtcdServer):
    """One of a cluster."""

    cluster = ""

    def command_line(self) -> list[str]:
        command = super().command_line()
        command[command.index("--name") + 1] = f"n{self.peer_port}"
        command[command.index("--initial-cluster") + 1] = self.cluster
        return command

    def leads(self) -> bool:
        return self.ctl("endpoint", "status").split(", ")[4] == "true"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    nodes = [Node(tmp_path_factory.mktemp("node")) for _ in range(3)]
    members = ",".join(f"n{node.peer_port}=http://127.0.0.1:{node.peer_port}" for node in nodes)
    for node in nodes:
        node.cluster = members
    starters = [threading.Thread(target=node.start) for node in nodes]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(30)
    yield nodes
    for node in nodes:
        node.stop()


def url_of(nodes: list[Node]) -> str:
    return "etcd://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_the_node_we_talk_to_is_killed(
    cluster: list[Node], opened: Callable[..., Locks], role: str, colour: Colour
) -> None:
    first = next(node for node in cluster if node.leads() == (role == "leader"))
    locks = opened(url_of([first, *[node for node in cluster if node is not first]]))
    name, got = f"failover-{role}-{colour}", []
    lease = locks.acquire(name, ttl=6)
    other = locks.acquire(f"{name}-2", ttl=30)
    waiter = threading.Thread(target=lambda: got.append(locks.acquire(name, timeout=30)), daemon=True)
    waiter.start()
    time.sleep(0.3)
    first.kill()
    try:
        begun = time.monotonic()
        locks.acquire(f"{name}-3", timeout=10).release()
        assert time.monotonic() - begun < 5 + SLACK
        other.release()
        time.sleep(3)
        lease.check()  # it was renewed over another node
        lease.release()
        waiter.join(10)
        assert got[0].fence > lease.fence
        got[0].release()
    finally:
        first.start()
    wait_until(lambda: name not in " ".join(first.keys()), 10, what="nothing is left")


def test_a_cluster_without_a_majority_grants_nothing(cluster: list[Node], opened: Callable[..., Locks]) -> None:
    locks = opened(url_of(cluster[:1]))
    name = f"majority-{id(locks)}"
    locks.acquire(name).release()
    with cluster[1].frozen(), cluster[2].frozen():
        for timeout in (0, 1):
            begun = time.monotonic()
            with pytest.raises(BackendUnavailable):
                locks.acquire(name, timeout=timeout)
            assert time.monotonic() - begun < 3 + SLACK

    def granted() -> bool:
        with suppress(BackendUnavailable):  # while they elect a leader
            locks.acquire(name, timeout=10).release()
            return True
        return False

    wait_until(granted, 15, what="it goes on with the majority back")
    wait_until(lambda: name not in " ".join(cluster[0].keys()), 10, what="nothing is left")


@contextmanager
def silent() -> Iterator[int]:
    """A port where connections are accepted and nothing is ever said."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        yield sock.getsockname()[1]


def test_endpoints_that_are_down_or_silent_are_passed_over(
    etcd_server: EtcdServer, opened: Callable[..., Locks]
) -> None:
    with silent() as port:
        locks = opened(f"etcd://127.0.0.1:{free_port()},127.0.0.1:{port},127.0.0.1:{etcd_server.port}?io_timeout=1")
        with locks.acquire("a", timeout=6):
            begun = time.monotonic()
            assert locks.try_acquire("a") is None
            assert time.monotonic() - begun < SLACK, "it stays with the one that answers"


@pytest.mark.parametrize("timeout", [0, 0.4, None])
def test_nobody_is_there(opened: Callable[..., Locks], timeout: float | None) -> None:
    locks = opened(f"etcd://127.0.0.1:{free_port()}?io_timeout=1")
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable, match="not reachable") as caught:
        locks.acquire("a", timeout=timeout)
    assert caught.value.name == "a"
    assert time.monotonic() - begun < 1 + SLACK


class Web(BaseHTTPRequestHandler):
    def do_PRI(self) -> None:  # how HTTP/2 begins
        self.send_error(400)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def web() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("other", [silent, web])
@pytest.mark.parametrize("timeout", [0, 0.4])
def test_something_else_is_there(opened: Callable[..., Locks], other: Any, timeout: float) -> None:
    with other() as port:
        locks = opened(f"etcd://127.0.0.1:{port}?io_timeout=1")
        begun = time.monotonic()
        with pytest.raises(BackendUnavailable, match=r"etcd|gRPC|reachable") as caught:
            locks.acquire("a", timeout=timeout)
        assert caught.value.name == "a"
        assert time.monotonic() - begun < 1 + SLACK


def test_another_service_that_speaks_grpc_is_refused(opened: Callable[..., Locks]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(BackendUnavailable, match="does not speak etcd"):
            opened(f"etcd://127.0.0.1:{port}").acquire("a", timeout=1)
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("most", [1, 3])
def test_a_server_that_bears_few_calls_at_a_time_renews_all_leases(
    tmp_path: Path, opened: Callable[..., Locks], most: int
) -> None:
    """A renewal is two calls, and fifty leases are renewed at a time."""
    server = EtcdServer(tmp_path, "--max-concurrent-streams", str(most)).start()
    try:
        locks = opened(server.url, ttl=3)
        held = [locks.acquire(f"{number}") for number in range(12)]
        time.sleep(4)
        for lease in held:
            lease.check()
            lease.release()
    finally:
        server.stop()


def test_a_call_that_others_cancelled_may_have_been_done() -> None:
    """As etcd's own proxy says when it loses its cluster."""
    target = target_of_url(parse("etcd://h"))
    problem = explain(Answer(b"", CANCELLED, "context canceled"), target, "h:2379")
    assert isinstance(problem, Unknown)
    assert problem.sent


def test_a_server_that_hangs(own_etcd: EtcdServer, opened: Callable[..., Locks]) -> None:
    locks = opened(f"{own_etcd.url}?io_timeout=1", ttl=4)
    lease, second = locks.acquire("held", ttl=60), locks.acquire("short", ttl=4)
    with own_etcd.frozen():
        for call in (
            lambda: locks.acquire("a", timeout=0.3), lambda: locks.acquire("a", timeout=0),
            lambda: locks.acquire("a"), lambda: locks.holder("held"), lease.extend, lease.release,
        ):  # fmt: skip
            begun = time.monotonic()
            with pytest.raises(BackendUnavailable):
                call()
            assert time.monotonic() - begun < 1 + SLACK
        wait_until(lambda: second.lost, 5, what="who cannot renew knows it")
    locks.acquire("a", timeout=10).release()
    wait_until(lambda: not own_etcd.keys(), 10, what="all is taken back")
    wait_until(lambda: not own_etcd.leases(), 10, what="all is taken back")


def test_nobody_waits_longer_than_he_wants_for_a_stream_that_another_opens(
    etcd_server: EtcdServer, opened: Callable[..., Locks], colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the server is silent for new connections, and TLS waits for its first word."""
    opening = threading.Event()

    def slow(*_: Any) -> Any:
        opening.set()
        time.sleep(2)
        raise Unknown("nobody is there", sent=False)

    async def slow_async(*_: Any) -> Any:
        opening.set()
        await asyncio.sleep(2)
        raise Unknown("nobody is there", sent=False)

    def wait_for_a() -> None:
        with suppress(LockError):
            locks.acquire("a", timeout=3)

    others, locks = opened(etcd_server.url), opened(etcd_server.url)
    with others.acquire("a"), others.acquire("b"):
        locks.acquire("c", timeout=2).release()  # it is connected
        monkeypatch.setattr("atomiclock.backends._etcd_channel.open_watches", slow)
        monkeypatch.setattr("atomiclock.backends._etcd_tasks._open_watches", slow_async)
        opener = threading.Thread(target=wait_for_a)
        opener.start()
        assert opening.wait(2)
        begun = time.monotonic()
        with pytest.raises((LockTimeout, BackendUnavailable)):
            locks.acquire("b", timeout=0.3)
        assert time.monotonic() - begun < 1
        opener.join(10)


def test_what_is_held_is_held_over_a_restart(own_etcd: EtcdServer, opened: Callable[..., Locks]) -> None:
    locks, another = opened(own_etcd.url, ttl=5), opened(own_etcd.url, ttl=5)
    got: list[Any] = []
    lease = locks.acquire("held")
    waiter = threading.Thread(target=lambda: got.append(another.acquire("held", timeout=30)), daemon=True)
    waiter.start()
    wait_until(lambda: len(own_etcd.keys()) == 2, what="it waits")
    own_etcd.restart()
    assert another.try_acquire("held") is None
    time.sleep(3)
    lease.check()
    lease.release()
    waiter.join(10)
    assert got[0].fence > lease.fence
    got[0].release()
    wait_until(lambda: not own_etcd.leases(), 10, what="nothing is left; what was kept for the next one ends by itself")


def test_leases_that_the_cluster_ends_all_at_once_are_told_within_one_renewal_and_others_get_in(
    etcd_server: EtcdServer, opened: Callable[..., Locks]
) -> None:
    """As a leader does that was stuck (etcd#15247). A client cannot know it before it asks."""
    locks, others = opened(etcd_server.url, ttl=6), opened(etcd_server.url, ttl=6)
    held = [locks.acquire(name) for name in "abc"]
    for lease in etcd_server.leases():
        etcd_server.ctl("lease", "revoke", lease)
    later = [others.acquire(name, timeout=5) for name in "abc"]
    wait_until(lambda: all(lease.lost for lease in held), 6 / 3 + SLACK, "told within one renewal interval")
    for lease, successor in zip(held, later, strict=True):
        assert "the store no longer has it" in str(lease.lost_reason), "told by the store, and not by its own clock"
        with pytest.raises(LockLost):
            lease.release()
        assert successor.fence > lease.fence
        successor.release()  # which nobody has touched


@pytest.mark.filterwarnings(
    "ignore:.*socket:pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning"
)
def test_interrupts_at_any_time_leave_nothing_and_harm_no_later_call(etcd_server: EtcdServer) -> None:
    """Signals in the main thread, in the middle of acquire, wait and release."""

    pick = random.Random(7)
    with LockManager(etcd_server.url, ttl=4) as locks, LockManager(etcd_server.url) as another:
        hits = 0
        for number in range(80):
            held = another.acquire("x") if number % 4 == 0 else None
            lease = None
            try:
                with interrupt_main_thread(pick.uniform(0.0002, 0.004)):
                    with suppress(LockError):
                        lease = locks.acquire("x", timeout=1)
                        time.sleep(0.001)
                        lease.release()
                    time.sleep(0.01)
            except Interrupted:
                hits += 1
            if lease:
                lease.release()
            del lease
            if held is not None:
                held.release()
            with another.acquire("x", timeout=5), locks.acquire(f"y{number}", timeout=5):
                pass
        assert hits > 40
    wait_until(lambda: not etcd_server.keys(), 5, what="no key is left")
    # A grant that arrives after its lease was revoked leaves one without a key, until the ttl is over.
    wait_until(lambda: not etcd_server.leases(), 10, what="no lease is left")
    gc.collect()  # of sockets that were being made, here where it is no surprise


def test_a_connection_that_dies_with_threads_in_it(own_etcd: EtcdServer) -> None:
    """Each of them goes on over a new one, and only one is opened."""
    with LockManager(own_etcd.url) as locks:
        stop, errors, done = threading.Event(), [], [0] * 4

        def work(number: int) -> None:
            while not stop.is_set():
                try:
                    with locks.acquire(f"t{number}", timeout=10):
                        done[number] += 1
                except Exception as error:
                    errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            time.sleep(0.3)
            own_etcd.restart()
        so_far = list(done)
        wait_until(lambda: all(a > b for a, b in zip(done, so_far, strict=True)), what="all go on")
        stop.set()
        for thread in threads:
            thread.join(15)
        assert errors == []
    wait_until(lambda: not own_etcd.keys() and not own_etcd.leases(), what="nothing is left")


def test_a_first_endpoint_that_is_something_else_does_not_keep_us_from_the_second(etcd_server: EtcdServer) -> None:
    with web() as port:
        with LockManager(f"etcd://127.0.0.1:{port},127.0.0.1:{etcd_server.port}") as locks:
            lease = locks.try_acquire("x")
            assert lease is not None
            lease.release()
        with LockManager(f"etcd://127.0.0.1:{port},localhost:{port}") as locks, pytest.raises(BackendUnavailable):
            locks.try_acquire("x")


@pytest.mark.parametrize("silent", [False, True])
def test_a_first_endpoint_that_is_down_costs_a_try_nothing_but_time(etcd_server: EtcdServer, silent: bool) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if silent:
            sock.listen(1)
        url = f"etcd://127.0.0.1:{sock.getsockname()[1]},127.0.0.1:{etcd_server.port}"
        with LockManager(url) as locks, LockManager(url) as others:
            lease = locks.try_acquire("x")
            assert lease is not None
            with pytest.raises(LockTimeout):
                others.acquire("x", timeout=1.0)
            lease.release()
