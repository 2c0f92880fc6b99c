"""The verbs step by step, where a part of one was done and the rest was not."""

from __future__ import annotations

from typing import Any

import pytest
from servers import EtcdServer

from atomiclock import BackendRefused, LockManager
from atomiclock._registry import backend_for
from atomiclock._url import parse
from atomiclock.backends import Add, Extend, Granted, Remove, Unknown, Wait, clock
from atomiclock.backends._etcd_recipe import (
    GRANT,
    KEEP_ALIVE,
    RANGE,
    REVOKE,
    TXN,
    Attempt,
    Before,
    Fault,
    KeepAlive,
    lease_of,
    look,
)
from atomiclock.backends._etcd_session import Session
from atomiclock.backends._etcd_spares import Spares
from atomiclock.backends._etcd_target import target_of_url
from atomiclock.backends._etcd_wire import encode
from atomiclock.backends._grpc import PERMISSION_DENIED, UNAVAILABLE, Answer
from atomiclock.backends._wire_pool import WireChannel

TOKEN = "ab" * 16
OWN = {"own": 5, "lease": 5, "revision": 3, "seconds": 11}
HEADER = {1: [encode({3: 7})]}


def steps_of(verb: str, ask: Any) -> Any:
    backend, _ = backend_for("etcd://localhost")
    return getattr(backend, verb)(ask)


def asked(request: Any) -> str:
    return asked(request.request) if isinstance(request, Attempt) else request.method


def add(waiting: bool = True) -> Add:
    return Add("k", TOKEN, 10, "owner", waiting, clock() + 5, {})


def test_a_release_that_stops_after_the_key_is_gone_is_not_a_release_that_was_not_sent() -> None:
    steps = steps_of("remove", Remove("k", TOKEN, 0, clock() + 5, dict(OWN)))
    assert asked(next(steps)) == TXN
    assert asked(steps.send({**HEADER, 2: [1]})) == REVOKE
    with pytest.raises(Unknown) as caught:
        steps.send(Unknown("the connection was closed", sent=False))
    assert caught.value.sent


@pytest.mark.parametrize("waiting", [True, False])
def test_an_acquire_that_stops_after_the_lease_is_there_is_not_one_that_was_not_sent(waiting: bool) -> None:
    steps = steps_of("add", add(waiting))
    assert asked(next(steps)) == GRANT
    assert asked(steps.send(HEADER)) == TXN
    with pytest.raises(Unknown) as caught:
        steps.send(Unknown("the connection was closed", sent=False))
    assert caught.value.sent


@pytest.mark.parametrize("waiting", [True, False])
def test_a_refusal_after_the_lease_is_there_takes_it_back(waiting: bool) -> None:
    steps = steps_of("add", add(waiting))
    next(steps)
    steps.send(HEADER)
    assert asked(steps.send(BackendRefused("permission denied"))) == REVOKE
    with pytest.raises(BackendRefused):
        steps.send(HEADER)


def test_a_lease_that_ended_before_its_use_is_no_grant() -> None:
    steps = steps_of("add", add())
    next(steps)
    steps.send(HEADER)
    with pytest.raises(Unknown, match="ended"):
        steps.send(Fault("etcdserver: requested lease not found"))


def test_an_extension_whose_lease_is_dead_is_none_though_the_key_was_still_seen() -> None:
    steps = steps_of("extend", Extend("k", TOKEN, 10, clock() + 5, dict(OWN)))
    request = next(steps)
    assert isinstance(request, KeepAlive)
    kv = encode({1: b"k/5", 2: 3, 5: b"{}", 6: 5})
    with pytest.raises(StopIteration) as ended:
        steps.send((0, {**HEADER, 2: [kv]}))
    assert ended.value.value is False


def test_a_key_that_was_made_anew_is_not_the_one_we_had() -> None:
    steps = steps_of("extend", Extend("k", TOKEN, 10, clock() + 5, dict(OWN)))
    next(steps)
    with pytest.raises(StopIteration) as ended:
        steps.send((10, {**HEADER, 2: [encode({1: b"k/5", 2: 4, 5: b"{}", 6: 5})]}))
    assert ended.value.value is False


def test_a_wait_ends_while_the_waiters_own_lease_is_alive() -> None:
    notes = {"before": Before(b"k/1", 5, alone=True), "seconds": 3}
    now = clock()
    request = next(steps_of("wait", Wait("k", TOKEN, now, now + 5, True, now + 8, notes)))
    assert request.until <= now + 1.1


def perform(locks: LockManager, ask: Any) -> Any:
    return locks._store.perform(ask)


def test_an_extension_whose_answers_were_lost_is_found_and_leaves_nothing(etcd_server: EtcdServer) -> None:
    """Without notes, as after a crash of the one who kept them: by what is in the store."""
    with LockManager(etcd_server.url) as locks:
        perform(locks, add())
        notes = {"lease": lease_of(TOKEN), "seconds": 11}
        assert perform(locks, Extend("k", TOKEN, 30, clock() + 5, notes)) is True
        assert perform(locks, Extend("k", TOKEN, 30, clock() + 5, {"lease": lease_of(TOKEN), "seconds": 11})) is True
        assert perform(locks, Extend("k", TOKEN, 40, clock() + 5)) is True
        assert perform(locks, Remove("k", TOKEN, 1, clock() + 5)) is True
        assert perform(locks, Remove("k", TOKEN, 1, clock() + 5)) is False
    assert etcd_server.leases() == []
    assert etcd_server.keys() == []


@pytest.mark.parametrize("waiting", [True, False])
def test_a_lease_without_a_key_is_used_by_the_next_add(etcd_server: EtcdServer, waiting: bool) -> None:
    """The first attempt's grant was obeyed, and its transaction never sent."""
    with LockManager(etcd_server.url) as locks:
        from atomiclock.backends._etcd_recipe import grant

        channel = locks._core.backend.channel()
        channel.call(grant(77, 10), clock() + 5)
        notes = {"own": 77}
        granted = perform(locks, add(waiting)._replace(notes=notes))
        assert isinstance(granted, Granted)
        assert etcd_server.keys() == ["k/4d"]
        assert len(etcd_server.leases()) == 1
        perform(locks, Remove("k", TOKEN, 0, clock() + 5, notes))
        channel.close()
    assert etcd_server.leases() == []


def test_a_late_put_is_refused_once_its_attempt_was_taken_back(etcd_server: EtcdServer) -> None:
    from atomiclock.backends._etcd_recipe import Place, grant, txn

    place = Place("k", TOKEN)
    with LockManager(etcd_server.url) as locks:
        channel = locks._core.backend.channel()
        channel.call(grant(place.lease, 10), clock() + 5)
        assert perform(locks, Remove("k", TOKEN, 1, clock() + 5)) is False
        late = channel.call(txn([], [place.put(b"late", place.lease)], []), clock() + 5)
        assert isinstance(late, Fault)
        channel.close()
    assert etcd_server.keys() == []


def test_of_many_at_once_each_has_its_own_answer() -> None:
    """What etcd refuses one of them is no reason to give up the others."""
    target = target_of_url(parse("etcd://h"))
    session = Session(
        target, Spares(), lambda *_: WireChannel(lambda _: pytest.fail("not to be used"), bool, ""), object
    )
    asks = [KeepAlive(number, look(b"mine")) for number in range(3)]
    alive = [Answer(encode({2: number, 3: 30})) for number in range(3)]
    found, refused = Answer(encode({4: 1})), Answer(b"", PERMISSION_DENIED, "permission denied")
    steps = session.exchange_all(list(asks), clock() + 1)
    sent = next(steps)
    assert [call.method for call in sent.ask.calls] == [KEEP_ALIVE, RANGE] * 3
    with pytest.raises(StopIteration) as done:
        steps.send([alive[0], found, alive[1], refused, Answer(b"", UNAVAILABLE, "no leader"), found])
    first, second, third = done.value.value
    assert first == (30, {4: [1]})
    assert second[0] == 30
    assert isinstance(second[1], Fault)
    assert "permission denied" in second[1].text
    assert third[0] == 0
    assert isinstance(third[1], Fault)
    assert "no leader" in third[1].text
