"""`atomiclock doctor`: whether a store is fit for locks, and whether it keeps the contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

from .. import _process
from .._manager import LockManager
from .._sync_lease import Lease
from ..backends._admin import Finding
from ..errors import LockError, LockTimeout, NotHeld
from ._store import Store, timed

ROUNDS = 20
"""Requests whose time is taken."""
SELF_TEST_TTL = 1.0
"""Seconds: short, and what every store can keep."""
LATE = 6.0
"""Seconds after its ttl within which an abandoned lock has to be free; etcd and memcached round up."""

_SCOPES = {"process": "threads of one process", "machine": "processes of one machine", "network": "all its clients"}
_FENCES = {
    "none": "none",
    "process": "grows until the process ends",
    "clock": "grows while the server's clock does not go back",
    "durable": "grows for ever",
}


def examine(store: Store) -> Iterator[Finding]:
    """What is found, as it is found."""
    yield from latency(store)
    yield from store.diagnose()
    yield from promises(store)
    yield from self_test(store)


def latency(store: Store) -> Iterator[Finding]:
    """The time of a request against the ttl: a renewal has a third of it, and one may be lost."""
    name = _scratch()
    store.seen(name)  # connects
    times = sorted(timed(lambda: store.seen(name)) for _ in range(ROUNDS))
    ttl = store.core.options().ttl
    text = (
        f"a request takes {1000 * times[len(times) // 2]:.2f} ms, the slowest {1000 * times[-1]:.2f} ms, ttl {ttl:g} s"
    )
    if times[-1] > ttl / 3:
        yield Finding("bad", text, "a renewal would come too late: take a longer ttl")
    elif times[-1] > ttl / 30:
        yield Finding("warn", text, "a ttl of at least 30 requests lets renewals fail once or twice")
    else:
        yield Finding("ok", text)


def promises(store: Store) -> Iterator[Finding]:
    traits = store.backend.traits
    yield Finding("ok", f"it excludes {_SCOPES[traits.scope]}; the fence: {_FENCES[traits.fence]}")
    yield Finding("note", f"a lock is lost by {traits.loses}")
    if traits.ttl_step:
        yield Finding("note", f"it rounds a ttl up to a multiple of {traits.ttl_step:g} s")


def self_test(store: Store) -> Iterator[Finding]:
    """The laws of a lock, on a name that nobody else has."""
    name = _scratch()
    manager = store.manager
    for law, test in (
        ("a lock that is held is refused to others", _excludes),
        ("it is renewed, and released by its holder only once", _releases),
        ("the fence grows from grant to grant", _fences),
        ("a lock whose holder vanished is free after its ttl", _expires),
    ):
        proved = _proved(law, partial(test, manager, name))
        yield proved
        if proved.level == "bad":  # the others would only take their time
            return


def _proved(law: str, test: Callable[[], bool]) -> Finding:
    try:
        kept = test()
    except LockError as error:
        return Finding("bad", f"self-test: {law}: {type(error).__name__}: {error}")
    return Finding("ok", f"self-test: {law}") if kept else Finding("bad", f"self-test: NOT true: {law}")


def _excludes(manager: LockManager, name: str) -> bool:
    with manager.acquire(name, timeout=LATE) as lease:
        holder = manager.holder(name)
        return manager.try_acquire(name) is None and holder is not None and holder.token == lease.token


def _releases(manager: LockManager, name: str) -> bool:
    lease = manager.acquire(name, timeout=LATE)
    lease.extend()
    lease.release()
    return _not_again(lease) and manager.holder(name) is None


def _not_again(lease: Lease) -> bool:
    try:
        lease.release()
    except NotHeld:
        return True
    return False


def _fences(manager: LockManager, name: str) -> bool:
    fences = []
    for _ in range(3):
        with manager.acquire(name, timeout=LATE) as lease:
            fences.append(lease.fence)
    known = [fence for fence in fences if fence is not None]
    return not known or known == sorted(set(known))


def _expires(manager: LockManager, name: str) -> bool:
    lease = manager.acquire(name, ttl=SELF_TEST_TTL, renew=False, timeout=LATE)
    begun = _process.clock()
    try:
        with manager.acquire(name, timeout=SELF_TEST_TTL + LATE):
            return not lease and _process.clock() - begun > 0.8 * SELF_TEST_TTL
    except LockTimeout:
        return False


def _scratch() -> str:
    return f"doctor:{os.urandom(8).hex()}"
