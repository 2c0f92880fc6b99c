"""What each step costs and sends, on the real server: round trips, versions, lives, times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcproxy import Fault, Proxy
from servers import MemcachedServer, wait_until

from atomiclock import BackendUnavailable, LockLost, _line, _process
from atomiclock.backends import Add, Busy, Extend, Granted, Peek, Remove, Unknown
from atomiclock.backends.memcached import LIFE, MemcachedBackend, Place, ServerFacts

KEY, TOKEN, OTHER = "key", "a" * 32, "b" * 32
DAY = 86400.0


def soon() -> float:
    return _process.clock() + 5


def add(locks: Any, token: str = TOKEN, ttl: float = 20.0, notes: Any = None) -> Any:
    return locks.perform(Add(KEY, token, ttl, "owner", False, soon(), notes))


def remove(locks: Any, token: str = TOKEN, notes: Any = None) -> Any:
    return locks.perform(Remove(KEY, token, 0, soon(), notes))


def extend(locks: Any, token: str = TOKEN, ttl: float = 20.0, notes: Any = None) -> Any:
    return locks.perform(Extend(KEY, token, ttl, soon(), notes))


def peek(locks: Any) -> Any:
    return locks.perform(Peek(KEY, soon()))


@pytest.mark.parametrize("protocol", ["auto", "classic"])
def test_each_step_is_one_round_trip(make: Callable[..., Any], proxy: Proxy, protocol: str) -> None:
    locks = make(f"{proxy.url}?protocol={protocol}")
    locks.holder("warm up")
    proxy.script()
    lease = locks.acquire("x", renew=False)
    lease.extend()
    lease.extend(5)
    locks.holder("x")
    lease.release()
    assert proxy.seen == ["add", "extend", "extend", "look", "remove"]
    assert proxy.links == 1
    word = proxy.said[0].split(b" ", 1)[0]
    assert word == (b"add" if protocol == "classic" else b"ms")


def test_a_lock_that_is_held_costs_a_look_more(make: Callable[..., Any], proxy: Proxy) -> None:
    locks = make(proxy.url)
    with locks.acquire("x", owner="ann"):
        proxy.script()
        assert locks.try_acquire("x") is None
        assert proxy.seen[:2] == ["add", "look"]


def test_waiters_ask_seldom(make: Callable[..., Any], proxy: Proxy) -> None:
    locks, others = make(proxy.url), make(proxy.url)
    with others.acquire("x"):
        proxy.script()
        assert not locks.lock("x").acquire(timeout=1)
        assert 5 < proxy.seen.count("add") < 80


@pytest.mark.parametrize("threads", [2, 50])
def test_the_load_does_not_grow_with_the_waiters_of_a_process(
    make: Callable[..., Any], proxy: Proxy, threads: int
) -> None:
    locks, others = make(proxy.url), make(proxy.url)
    lease = others.acquire("x", ttl=60)
    workers = [threading.Thread(target=lambda: locks.acquire("x", timeout=60).release()) for _ in range(threads)]
    for worker in workers:
        worker.start()
    wait_until(lambda: proxy.seen.count("add") > 20, 20)  # by then they have waited for a tenth of a second
    time.sleep(1)
    proxy.script()
    time.sleep(2)
    asked = proxy.seen.copy()
    assert 0 < asked.count("add") <= 12, "one waiter asks, and less and less often"
    assert asked.count("look") <= 2, "and seldom looks who it is"
    assert proxy.links <= 4
    lease.release()
    for worker in workers:
        worker.join()


def test_within_a_process_a_lock_is_passed_on_without_the_server(
    make: Callable[..., Any], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_line, "SPAN", 60.0)  # a busy machine passes on less often in a tenth of a second
    locks = make(proxy.url)
    locks.acquire("x").release()
    proxy.script()
    fences: list[int] = []

    def work() -> None:
        for _ in range(20):
            with locks.acquire("x", timeout=60) as lease:
                fences.append(lease.fence)

    workers = [threading.Thread(target=work) for _ in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert fences == sorted(set(fences))
    assert len(fences) == 400
    assert len(proxy.seen) < 200


@pytest.mark.parametrize("verb", ["add", "extend", "remove", "look"])
def test_a_reply_to_another_request_closes_the_connection_and_is_not_believed(
    make: Callable[..., Any], proxy: Proxy, verb: str
) -> None:
    locks = make(proxy.url)
    lease = locks.acquire("x", renew=False)
    before = proxy.links
    proxy.script(Fault(verb, forge=lambda reply: reply.replace(b"\r\n", b"0\r\n", 1)))
    if verb == "look":
        with pytest.raises(BackendUnavailable, match="another request"):
            locks.holder("x")
    elif verb == "add":
        with locks.acquire("y", timeout=5) as other:
            assert locks.holder("y").token == other.token
    else:
        lease.extend(60)
    lease.release()
    assert locks.holder("x") is None
    assert proxy.links == before + 1


@pytest.mark.parametrize("line", [b"SERVER_ERROR busy\r\n", b"SERVER_ERROR out of memory storing object\r\n"])
def test_after_an_error_line_the_connection_is_not_used_again(
    make: Callable[..., Any], proxy: Proxy, line: bytes
) -> None:
    locks = make(proxy.url)
    lease = locks.acquire("x", renew=False, timeout=5)
    before = proxy.links
    proxy.script(Fault("extend", forge=lambda _: line))
    lease.extend()
    lease.release()
    assert proxy.links == before + 1


@pytest.mark.parametrize("verb", ["extend", "remove"])
def test_a_version_that_changed_under_our_hands_is_looked_up(
    make: Callable[..., Any], memcached_server: MemcachedServer, verb: str
) -> None:
    """As when the server moves the item before 1.6.24, or the reply to an extension was lost."""
    locks, notes = make(memcached_server.url), {}
    add(locks, notes=notes)
    place: Place = notes["place"]
    notes["place"] = place._replace(cas=place.cas + 1000)
    if verb == "extend":
        assert extend(locks, ttl=100, notes=notes) is True
        assert peek(locks).remaining > 90
    assert remove(locks, notes=notes) is True
    assert peek(locks) is None


@pytest.mark.parametrize("verb", ["extend", "remove"])
def test_a_version_of_an_earlier_life_is_never_taken_for_another_holders(
    make: Callable[..., Any], own_memcached: MemcachedServer, verb: str
) -> None:
    """Versions are counted from 1 again after a restart, so the next holder's may be that of the last."""
    locks, notes = make(own_memcached.url), {}
    first = add(locks, notes=notes)
    own_memcached.restart()
    own_memcached.wait_until_old_enough()
    locks.disconnect()
    others: dict[str, Any] = {}
    second = add(locks, OTHER, notes=others)
    assert isinstance(second, Granted)
    assert others["place"].cas == notes["place"].cas, "the coincidence that the test is about"
    if verb == "extend":
        assert extend(locks, ttl=500, notes=notes) is False
    else:
        assert remove(locks, notes=notes) is False
    assert peek(locks).token == OTHER
    assert peek(locks).remaining <= 21
    assert (second.fence or 0) > (first.fence or 0)


def test_fences_grow_across_a_restart_although_versions_begin_again(
    make: Callable[..., Any], own_memcached: MemcachedServer
) -> None:
    locks, fences = make(own_memcached.url), []
    for _ in range(2):
        for _ in range(3):
            with locks.acquire("x", timeout=10) as lease:
                fences.append(lease.fence)
        own_memcached.restart()  # and the next may be asked at once: it waits until its second is over
    with locks.acquire("x", timeout=10) as lease:
        fences.append(lease.fence)
    assert fences == sorted(set(fences))
    assert len({(fence >> 8) // LIFE for fence in fences}) == 3
    assert fences[-1] < 2**63


def test_a_server_that_was_just_started_grants_nothing(make: Callable[..., Any], tmp_path: Path) -> None:
    server = MemcachedServer(tmp_path).start()
    try:
        started = time.monotonic()
        locks = make(server.url)
        with locks.acquire("x", timeout=10):
            assert int(server.stats()["uptime"]) >= 4
            assert time.monotonic() - started > 0.9
    finally:
        server.stop()


def test_the_life_of_a_server_does_not_change_while_it_lives(memcached_server: MemcachedServer) -> None:
    lives = set()
    for _ in range(12):
        stats = memcached_server.stats()
        lives.add(int(stats["time"]) - int(stats["uptime"]))
        time.sleep(0.1)
    assert len(lives) == 1


@pytest.mark.parametrize("protocol", ["auto", "classic"])
@pytest.mark.parametrize("ttl", [2_591_998.0, 2_591_999.0, 2_592_000.0, 2_592_001.0, 100 * DAY, 365 * DAY])
def test_a_ttl_around_and_above_thirty_days_is_kept(
    make: Callable[..., Any], memcached_server: MemcachedServer, ttl: float, protocol: str
) -> None:
    locks = make(f"{memcached_server.url}?protocol={protocol}")
    add(locks, ttl=ttl)
    assert ttl - 1 <= peek(locks).remaining <= ttl + 3
    assert 0 < seconds_kept(memcached_server) - ttl <= 5
    assert extend(locks, ttl=10) is True
    assert extend(locks, ttl=ttl) is True
    assert 0 < seconds_kept(memcached_server) - ttl <= 5
    assert remove(locks) is True


def seconds_kept(server: MemcachedServer) -> int:
    """For how long the server itself says that it keeps the lock."""
    return int(server.command(f"mg {KEY} t").split("t")[1])


def test_a_lock_without_an_end_by_other_software_is_shown_so(
    make: Callable[..., Any], memcached_server: MemcachedServer
) -> None:
    assert memcached_server.command(f"set {KEY} 0 0 3\r\noid") == "STORED"
    locks = make(memcached_server.url)
    assert peek(locks).remaining is None
    assert add(locks) == Busy(None, None, signals=False)


def test_the_server_never_drops_the_lock_before_its_ttl_is_over(
    make: Callable[..., Any], memcached_server: MemcachedServer
) -> None:
    locks, ttl = make(memcached_server.url), 1.0
    begun = {}
    for number in range(10):  # at any point between two ticks of its clock
        begun[f"k{number}"] = time.monotonic()
        locks.perform(Add(f"k{number}", TOKEN, ttl, "owner", False, soon()))
        time.sleep(0.1)
    for name, at in begun.items():
        while locks.perform(Peek(name, soon())) is not None:
            time.sleep(0.01)
        assert time.monotonic() - at >= ttl


@pytest.mark.parametrize("verb", ["add", "extend"])
def test_after_a_slow_reply_the_time_is_set_once_more(make: Callable[..., Any], proxy: Proxy, verb: str) -> None:
    """A server that was stopped acts by a clock that stood still, until that has ticked."""
    locks = make(proxy.url)
    lease = locks.acquire("warm up", renew=False)
    proxy.script(Fault(verb, delay=0.3))
    if verb == "add":
        with locks.acquire("x", renew=False, timeout=5) as slow:
            assert proxy.seen == ["add", "extend"]
            assert slow.fence == locks.holder("x").fence
            assert slow.remaining < 30 - 0.3
    else:
        lease.extend()
        assert proxy.seen == ["extend", "extend"]
    lease.release()


def test_a_server_that_was_stopped_keeps_the_lock_for_its_ttl(
    make: Callable[..., Any], own_memcached: MemcachedServer
) -> None:
    locks = make(f"{own_memcached.url}?io_timeout=20")
    locks.holder("warm up")
    kept = []
    for number in range(2):
        key = f"k{number}"
        with own_memcached.frozen():
            ask = Add(key, TOKEN, 10, "owner", False, soon() + 5)
            thread = threading.Thread(target=lambda ask=ask: kept.append(locks.perform(ask)))
            thread.start()
            time.sleep(2.2)
        thread.join()
        assert isinstance(kept[-1], Granted)
        granted = time.monotonic()
        wait_until(lambda: int(own_memcached.stats()["uptime"]) > 4, 5)
        time.sleep(0.05)
        left = int(own_memcached.command(f"mg {key} t").split("t")[1])
        assert left + time.monotonic() - granted >= 11


@pytest.fixture
def full(tmp_path: Path) -> Any:
    """A memcached that may not evict, out of memory, with a lock in it."""
    server = MemcachedServer(tmp_path, "-M", "-m", "2").start()
    server.wait_until_old_enough()
    yield server
    server.stop()


def fill(server: MemcachedServer, size: int) -> None:
    """With items as large as that of a lock with a key of 12 bytes, since each size has memory of its own."""
    with server.connect() as sock:
        for number in range(0, 100_000, 500):
            lines = [b"ms k%011d %d T900 ME q\r\n%b\r\n" % (number + one, size, b"x" * size) for one in range(500)]
            sock.sendall(b"".join(lines) + b"mn\r\n")
            said = b""
            while not said.endswith(b"MN\r\n"):
                said += sock.recv(65536)
            if b"SERVER_ERROR" in said:
                return
    pytest.fail("it never got full")


def test_a_server_that_is_full_and_may_not_evict_keeps_the_lock(make: Callable[..., Any], full: Any) -> None:
    """Meta sets would delete it there: even those of others that only try (measured, 1.6.18)."""
    locks = make(f"{full.url}?io_timeout=2")
    lease = locks.acquire("x", owner="a" * 30, renew=False)
    other = make(f"{full.url}?io_timeout=2")
    fill(full, len(full.command("mg atomiclock:x v").split("\r\n")[1]))
    for _ in range(3):
        assert other.try_acquire("x", owner="b" * 30) is None or pytest.fail("two holders")
    with pytest.raises(BackendUnavailable, match=r"out of memory.*give it more"):
        other.acquire("y", owner="b" * 30, timeout=0.3)
    with pytest.raises(BackendUnavailable, match="out of memory"):
        lease.extend()
    assert locks.holder("x").token == lease.token
    lease.release()
    assert locks.holder("x") is None


def test_eviction_is_told_at_the_next_renewal(make: Callable[..., Any], tmp_path: Path) -> None:
    server = MemcachedServer(tmp_path, "-m", "2", "-o", "no_lru_maintainer").start()
    try:
        server.wait_until_old_enough()
        locks = make(server.url)
        told: list[Any] = []
        lease = locks.acquire("x", ttl=6, on_lost=told.append)
        size = len(server.command("mg atomiclock:x v").split("\r\n")[1])
        with server.connect() as sock:
            for number in range(0, 100_000, 500):
                lines = [b"ms s%d %d T900 q\r\n%b\r\n" % (number + one, size, b"x" * size) for one in range(500)]
                sock.sendall(b"".join(lines) + b"mn\r\n")
                while not sock.recv(65536).endswith(b"MN\r\n"):
                    pass
                if server.command("mg atomiclock:x u") == "EN":  # u: a look that does not count as use
                    break
        wait_until(lambda: told, 5, "the holder is told")
        with pytest.raises(LockLost, match="no longer has it"):
            lease.check()
    finally:
        server.stop()


def test_facts_of_the_server(memcached_server: MemcachedServer, make: Callable[..., Any]) -> None:
    locks = make(memcached_server.url)
    backend: MemcachedBackend = locks.manager._core.backend
    with locks.acquire("x", timeout=5):
        facts = run(locks, backend.facts())
    assert isinstance(facts, ServerFacts)
    assert facts.version == memcached_server.stats()["version"]
    assert facts.evicts is True
    assert facts.items >= 1
    assert facts.bytes_limit == 64 * 2**20
    assert facts.item_size_limit == 2**20
    assert facts.connections_limit == 1024
    assert 0 < facts.uptime < 10_000
    assert abs(facts.started + facts.uptime - time.time()) < 5


def run(locks: Any, steps: Any) -> Any:
    """What `steps` return, on a channel of that colour."""
    import asyncio

    backend = locks.manager._core.backend
    if locks.colour == "sync":
        channel = backend.channel()
        try:
            reply = None
            while True:
                reply = channel.call(steps.send(reply), soon())
        except StopIteration as done:
            return done.value
        finally:
            channel.close()

    async def work() -> Any:
        channel = backend.async_channel()
        reply = None
        while True:
            try:
                request = steps.send(reply)
            except StopIteration as done:
                channel.close()
                return done.value
            reply = await channel.call(request, soon())

    return asyncio.run(work())


def test_a_long_owner_is_cut_and_the_item_stays_small(
    make: Callable[..., Any], memcached_server: MemcachedServer
) -> None:
    locks = make(memcached_server.url)
    with locks.acquire("x", owner="é" * 5000, timeout=5):
        owner = locks.holder("x").owner
        assert owner == "é" * 100
        assert locks.try_acquire("x") is None


def test_a_lock_that_comes_and_goes_is_unknown_and_never_granted(make: Callable[..., Any], proxy: Proxy) -> None:
    """Others take it and give it back between each of our adds and looks."""
    locks = make(proxy.url)
    proxy.script(
        Fault("add", times=99, forge=lambda reply: b"NS c0 O" + reply.split(b"O", 1)[1]),
        Fault("look", times=99, forge=lambda reply: b"EN " + reply.split(b"\r\n")[0].split(b" ")[-1] + b"\r\n"),
    )
    with pytest.raises(Unknown, match="comes and goes"):
        add(locks)
