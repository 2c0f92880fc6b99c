"""Every fault of a network, at every call, on every store that has a network, for threads and for tasks.

Three questions after each: did the call end in time, does what it reported agree with the store, and does nothing
stay behind once the network is well again (long before the ttl)?
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from colours import COLOURS, Face
from leftovers import in_etcd
from servers import wait_until
from tally import LONG, note
from wire import AT_CONNECT, Kind, Wire, wire_to

from atomiclock import BackendUnavailable, LockManager, LockTimeout

BACKENDS = ("redis", "memcached", "etcd")
KINDS: tuple[Kind, ...] = (
    "delay", "drip", "request cut", "request late", "reply late", "reply lost", "reply cut", "reply never",
    "black hole", "never answers", "refused",
)  # fmt: skip
CALLS = ("connect", "acquire", "put", "extend", "release")
"""`put`: an acquire at its second request, where it has two. For etcd that is the one which takes the lock."""
TIMEOUT, BOUND, TTL = 0.5, 0.6, 40
MARGIN = 1.0
"""Seconds by which a call may be late on a busy machine."""
SOON = 8.0
"""Seconds in which what was left behind is gone, once the network is well: much less than the ttl."""
STALL = 0.5


def cases() -> list[Any]:
    """All of them; the short form has one colour and one duration for each, so that all of these occur."""
    found = []
    for number, (backend, call, kind) in enumerate(itertools.product(BACKENDS, CALLS, KINDS)):
        if call == "put" and (backend != "etcd" or kind in AT_CONNECT):
            continue
        varieties = list(itertools.product(COLOURS, ("once", "on and on")))
        for colour, how_long in varieties if LONG else [varieties[(number + number // 10) % 4]]:
            # A server that is down answers nobody.
            found.append((colour, backend, call, kind, "on and on" if kind in AT_CONNECT else how_long))
    note(f"{len(set(found))} faults of networks: {len(KINDS)} kinds at each call of {', '.join(BACKENDS)}")
    return list(dict.fromkeys(found))


@pytest.fixture
def server(backend: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{backend}_server")


@pytest.fixture
def wire(server: Any, backend: str) -> Iterator[Wire]:
    with wire_to(server.port, http2=backend == "etcd") as wire:
        yield wire


@pytest.fixture
def face(colour: str) -> Iterator[Face]:
    face = Face(colour)
    yield face
    face.close()


@pytest.fixture
def witness(server: Any) -> Iterator[LockManager]:
    """Eyes on the store past the network."""
    with LockManager(server.url) as locks:
        yield locks


def holding(witness: LockManager) -> str | None:
    holder = witness.holder("x")
    return None if holder is None else holder.token


def answered(call: Callable[[], Any]) -> bool:
    """Whether it was, in the little time that there is."""
    with suppress(BackendUnavailable):
        call()
        return True
    return False


class Call:
    """One call under a fault, and what came of it."""

    def __init__(self, locks: Any, lease: Any, name: str) -> None:
        self.locks, self.lease, self.name = locks, lease, name
        self.error: Exception | None = None

    def make(self) -> None:
        try:
            if self.name == "extend":
                self.lease.extend(2 * TTL)
            elif self.name == "release":
                self.lease.release()
            else:
                self.lease = self.locks.acquire("x", timeout=TIMEOUT, ttl=TTL, renew=False)
        except (BackendUnavailable, LockTimeout) as error:
            self.error = error

    def agrees(self, witness: LockManager) -> None:
        """What it reported is what the store has."""
        if self.error is not None:
            assert isinstance(self.error, BackendUnavailable), "the lock was free or ours: that is not a no"
            assert self.lease is None or not self.lease.lost, "nobody took it"
            return
        holder = witness.holder("x")
        if self.name == "release":
            assert holder is None or holder.token != self.lease.token
            return
        assert holder is not None
        assert (holder.token, holder.fence) == (self.lease.token, self.lease.fence)
        assert self.lease
        assert holder.remaining is not None
        assert self.lease.remaining <= holder.remaining + 0.001

    def ends_well(self) -> None:
        """With the network well again the holder goes on as if nothing had been."""
        if self.lease is None:
            return
        if self.name == "extend":
            wait_until(lambda: answered(lambda: self.lease.extend(TTL)), SOON, "it is extended")
            assert TTL / 2 < self.lease.remaining <= TTL
        if self.name != "release" or self.error is not None:
            wait_until(lambda: answered(self.lease.release), SOON, "it is released")


@pytest.mark.parametrize(("colour", "backend", "call", "kind", "how_long"), cases())
def test_a_call_ends_in_time_tells_the_truth_and_leaves_nothing_when(
    face: Face, server: Any, wire: Wire, witness: LockManager, call: str, kind: Kind, how_long: str, backend: str
) -> None:
    locks = face.manager(f"{backend}://127.0.0.1:{wire.port}?io_timeout={BOUND}")
    if call != "connect":
        locks.acquire("warm", renew=False).release()
    lease = locks.acquire("x", ttl=TTL, renew=False) if call in ("extend", "release") else None
    one = Call(locks, lease, call)
    face.longest_stall()
    wire.strike(kind, 1 if how_long == "once" else 9**9, skip=call == "put")
    begun = face.clock()
    one.make()
    took, stall = face.clock() - begun, face.longest_stall()
    assert wire.hit.is_set(), "the fault struck nothing"
    assert took < (BOUND if lease else TIMEOUT) + MARGIN
    assert stall < STALL
    one.agrees(witness)
    wire.heal()
    one.ends_well()
    wait_until(lambda: witness.holder("x") is None, SOON, "nothing stays behind")
    late = wire.deliver()
    wait_until(lambda: witness.holder("x") is None, 2, "what was late takes nothing")
    with witness.acquire("x", timeout=5, renew=False) as mine:
        assert holding(witness) == mine.token
    left = set(server.keys())
    assert not {key for key in left if key.split("/")[0] == "atomiclock:x"}
    wait_until(lambda: len(wire.links) <= 2, SOON, "no connection stays behind")
    if backend == "etcd":
        wait_until(lambda: answered(lambda: locks.holder("x")), SOON, "it reaches the store again")
        for each in (locks.close if hasattr(locks, "close") else locks.aclose, witness.close):
            each()  # what they keep for their next lock goes with them, if the last call was answered
        assert in_etcd(server, 2 * TTL) == [], "leases that stay have nothing on them and end with the ttl"
        kept = late + (how_long == "on and on")
        wait_until(lambda: len(server.leases()) <= kept, SOON, "a grant that was late leaves its lease, no more")
