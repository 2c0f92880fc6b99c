"""A lease serves the next lock only if nothing that names it can still be on its way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from etcd3 import etcdrpc
from servers import EtcdServer, wait_until

from atomiclock import LockLost, LockManager, _process
from atomiclock.backends import Add, Extend, Remove, Unknown, clock
from atomiclock.backends._etcd_recipe import (
    GRANT,
    KEEP_ALIVE,
    RANGE,
    REVOKE,
    TXN,
    Attempt,
    KeepAlive,
    Watch,
    label,
    lease_of,
)
from atomiclock.backends._etcd_spares import Spares
from atomiclock.backends._etcd_target import Target
from atomiclock.backends._etcd_wire import encode
from atomiclock.backends.etcd import EtcdBackend

HEADER = {1: [encode({3: 7})]}
DONE = {**HEADER, 2: [1]}


class Script:
    """Performs verbs with replies that were thought out, and notes what was asked."""

    def __init__(self) -> None:
        self.backend = EtcdBackend(Target(("localhost:1",), "nowhere"))
        self.notes: dict[str, Any] = {}
        self.asked: list[str] = []

    def start(self, ask: Any) -> Any:
        return {Add: self.backend.add, Remove: self.backend.remove, Extend: self.backend.extend}[type(ask)](ask)

    def run(self, ask: Any, *replies: Any) -> None:
        """Give `replies`, and then yes to everything."""
        steps, self.asked, left = self.start(ask), [], list(replies)
        request = next(steps)
        with suppress(StopIteration):
            while True:
                request = request.request if isinstance(request, Attempt) else request
                self.asked.append("KeepAlive" if isinstance(request, KeepAlive) else request.method)
                request = steps.send(left.pop(0) if left else DONE)

    def add(self, *replies: Any, token: str = "ab" * 16, waiting: bool = True) -> None:
        self.run(Add("k", token, 10, "owner", waiting, clock() + 5, self.notes), *replies)

    def remove(self, *replies: Any) -> None:
        self.run(Remove("k", "ab" * 16, 0, clock() + 5, self.notes), *replies)


@pytest.fixture
def script() -> Script:
    return Script()


def test_what_was_given_back_cleanly_serves_the_next(script: Script) -> None:
    script.add()
    assert script.asked == [GRANT, TXN]
    lease = script.notes["own"]
    script.remove()
    assert script.asked == [TXN]
    assert "own" not in script.notes, "it belongs to nobody"
    script.notes = {}
    script.add()
    assert script.asked == [TXN]
    assert script.notes["own"] == lease
    other = dict(script.notes)
    script.notes = {}
    script.add(token="cd" * 16)
    assert script.asked == [GRANT, TXN], "nobody shares it"
    assert other["own"] != script.notes["own"]


def test_a_remove_in_vain_ends_no_lease_of_another_process_with_the_same_token(script: Script) -> None:
    """Such tokens follow from a task's id: one delivery looks for a mark that another is about to put."""
    nothing, none_there = {**HEADER}, {**HEADER}
    script.run(Remove("k", "ab" * 16, 0, clock() + 5, None), nothing, none_there)
    assert script.asked == [RANGE, TXN]
    script.run(Remove("k", "ab" * 16, 1, clock() + 5, None), nothing, none_there)
    assert script.asked == [RANGE, TXN, REVOKE], "an add of its own may be on its way"


def test_that_a_key_was_there_is_said_although_the_end_of_its_lease_is_not_confirmed(script: Script) -> None:
    """Who asks again hears that it is gone: of two deliveries that want one ticket, none would have it then."""
    token = "ab" * 16
    found = {**HEADER, 2: [encode({1: b"k/%x" % lease_of(token), 2: 7, 5: label(token, "owner")})]}

    def remove(in_flight: int) -> Any:
        steps = script.start(Remove("k", token, in_flight, clock() + 5, None))
        assert next(steps).method == RANGE
        assert steps.send(found).method == TXN
        assert steps.send(DONE).request.method == REVOKE
        return steps

    with pytest.raises(StopIteration) as done:
        remove(0).send(Unknown("no answer"))
    assert done.value.value is True
    with pytest.raises(Unknown):
        remove(1).send(Unknown("no answer"))


@pytest.mark.parametrize("reply", [Unknown("no answer"), Unknown("not sent", sent=False)])
@pytest.mark.parametrize("verb", ["add", "remove", "extend"])
def test_a_lease_with_a_request_unanswered_is_never_kept(script: Script, verb: str, reply: Unknown) -> None:
    if verb == "add":
        with pytest.raises(Unknown):
            script.add(DONE, reply)
        script.add()
    else:
        script.add()
        with pytest.raises(Unknown):
            _throw(script, verb, reply)
    script.remove()
    assert script.asked == [TXN, REVOKE]


def _throw(script: Script, verb: str, error: Unknown) -> None:
    """As a channel does: the verb ends with it."""
    deadline = clock() + 5
    ask = Remove("k", "ab" * 16, 0, deadline, script.notes)
    steps = script.start(ask if verb == "remove" else Extend("k", "ab" * 16, 10, deadline, script.notes))
    next(steps)
    steps.throw(error)


@pytest.mark.parametrize("verb", ["add", "remove", "extend"])
def test_a_verb_that_was_interrupted_or_is_under_way_keeps_the_lease_from_being_kept(script: Script, verb: str) -> None:
    script.add()
    ask = {
        "add": Add("k", "ab" * 16, 10, "owner", True, clock() + 5, script.notes),
        "remove": Remove("k", "ab" * 16, 0, clock() + 5, script.notes),
        "extend": Extend("k", "ab" * 16, 10, clock() + 5, script.notes),
    }[verb]
    steps = script.start(ask)
    next(steps)
    script.remove()
    assert script.asked == [TXN, REVOKE]
    steps.close()
    script.remove()
    assert script.asked == [TXN, REVOKE]


def test_a_lease_whose_key_was_not_there_any_more_is_revoked(script: Script) -> None:
    script.add()
    script.remove({**HEADER, 2: [0]})
    assert script.asked == [TXN, REVOKE]


def test_a_spare_whose_first_request_did_not_leave_is_a_spare_again(script: Script) -> None:
    script.add()
    script.remove()
    script.notes = {}
    with pytest.raises(Unknown) as caught:
        script.add(Unknown("no connection", sent=False))
    assert not caught.value.sent, "nothing is there that must be taken back"
    script.notes = {}
    script.add()
    assert script.asked == [TXN]


def test_a_spare_that_is_older_is_asked_to_live_the_whole_ttl(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script.add()
    script.remove()
    later = _process.clock() + 1.5
    monkeypatch.setattr(_process, "clock", lambda: later)
    script.notes = {}
    script.add({3: [11]})
    assert script.asked == [KEEP_ALIVE, TXN]
    assert script.notes["since"] == later
    script.remove()
    later += 1.5
    script.notes = {}
    script.add({3: [0]})
    assert script.asked == [KEEP_ALIVE, GRANT, TXN], "it was dead"


def test_a_try_of_a_lock_that_is_taken_gives_its_lease_back(script: Script) -> None:
    holder = encode({2: encode({1: b"k/5", 2: 3, 5: b"", 6: 5})})
    script.add(DONE, {**HEADER, 3: [encode({1: holder})]}, waiting=False)
    assert script.asked == [GRANT, TXN]
    script.notes, script.backend._taken = {}, {}
    script.add()
    assert script.asked == [TXN]


def test_a_forked_child_has_none_of_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    from atomiclock.backends._etcd_spares import Spare

    spares = Spares()
    assert spares.keep(11, Spare(5, _process.clock()))
    monkeypatch.setattr(_process, "generation", _process.generation + 1)
    assert spares.take(11) is None
    assert spares.take_all() == []


def test_to_break_an_old_token_harms_nobody_who_has_its_lease_now(etcd_server: EtcdServer) -> None:
    with LockManager(etcd_server.url) as locks:
        old = locks.acquire("a")
        old.release()
        lease = locks.acquire("a")
        assert locks._store.perform(Remove("atomiclock:a", old.token, 1, clock() + 5)) is False
        lease.extend()
        assert locks._store.perform(Remove("atomiclock:a", lease.token, 1, clock() + 5)) is True
        with locks.acquire("a", timeout=0), pytest.raises(LockLost):
            lease.release()


@pytest.fixture
def call(etcd_server: EtcdServer) -> Any:
    channel = EtcdBackend.from_url(_url(etcd_server)).channel()
    yield lambda request: channel.call(request, clock() + 10)
    channel.close()


def _url(server: EtcdServer) -> Any:
    from atomiclock._url import parse

    return parse(server.url)


def revision(server: EtcdServer) -> int:
    import json

    return int(json.loads(server.ctl("get", "x", "--write-out=json"))["header"]["revision"])


def test_a_watch_that_begins_after_the_deletion_says_look_again(
    etcd_server: EtcdServer, call: Callable[..., Any]
) -> None:
    etcd_server.ctl("put", "k/1", "")
    seen = revision(etcd_server)
    etcd_server.ctl("del", "k/1")
    assert call(Watch(b"k/1", seen, clock() + 8, b"k/2")) is False
    assert call(Watch(b"k/1", revision(etcd_server), clock() + 0.2, b"k/2")) is None, "it looked, and it is as it was"


def test_a_deletion_is_certain_only_if_our_own_key_is_there(etcd_server: EtcdServer, call: Callable[..., Any]) -> None:
    from threading import Timer

    for deleted, certain in (("k/1",), True), (("k/2", "k/1"), False):
        etcd_server.ctl("put", "k/1", "")
        etcd_server.ctl("put", "k/2", "")
        seen = revision(etcd_server)
        timers = [Timer(0.3 + 0.5 * number, etcd_server.ctl, ("del", key)) for number, key in enumerate(deleted)]
        for timer in timers:
            timer.start()
        assert call(Watch(b"k/1", seen, clock() + 8, b"k/2")) is certain
        for timer in timers:
            timer.join()
    # The watches are open still: what they heard while nobody waited counts.
    assert call(Watch(b"k/1", seen, clock() + 8, b"k/2")) is False


def test_a_waiter_whose_key_is_deleted_by_hand_queues_again_at_once(etcd_server: EtcdServer) -> None:
    from threading import Thread

    with LockManager(etcd_server.url) as locks, LockManager(etcd_server.url) as others:
        lease, got = locks.acquire("a"), []
        held = etcd_server.keys()
        waiter = Thread(target=lambda: got.append(others.acquire("a", timeout=30)), daemon=True)
        waiter.start()
        wait_until(lambda: len(etcd_server.keys()) == 2, what="it waits")
        wait_until(lambda: etcd_server.watchers() >= 2, what="it watches")
        etcd_server.ctl("del", next(iter(set(etcd_server.keys()) - set(held))))
        wait_until(lambda: len(etcd_server.keys()) == 2, 4, what="it waits again; it would look after 5 s")
        lease.release()
        waiter.join(10)
        got[0].extend()
        got[0].release()


def test_who_waits_behind_one_that_gives_up_does_not_take_that_for_its_turn(etcd_server: EtcdServer) -> None:
    from threading import Thread

    managers = [LockManager(etcd_server.url) for _ in range(3)]
    lease, got, gave_up = managers[0].acquire("a"), [], []

    def give_up() -> None:
        try:
            managers[1].acquire("a", timeout=0.8)  # while a lease is good as it is
        except TimeoutError as error:
            gave_up.append(error)

    waiters = [Thread(target=give_up), Thread(target=lambda: got.append(managers[2].acquire("a", timeout=20)))]
    for number, waiter in enumerate(waiters):
        waiter.start()
        wait_until(lambda number=number: len(etcd_server.keys()) == number + 2, what="it waits")
    waiters[0].join(10)
    assert gave_up
    wait_until(lambda: len(etcd_server.keys()) == 2, what="its key is gone")
    waiters[1].join(0.5)
    assert got == []
    lease.check()
    lease.release()
    waiters[1].join(10)
    assert got[0].fence > lease.fence
    got[0].release()
    for manager in managers:
        manager.close()


@pytest.mark.parametrize("noted", [True, False])
def test_what_is_deleted_is_the_key_that_was_put_and_not_a_later_one(script: Script, noted: bool) -> None:
    """With the lease, the name of the key is used again."""
    notes = {"own": 5, "revision": 3, "seconds": 11, "since": clock()} if noted else None
    steps = script.start(Remove("k", "ab" * 16, 0, clock() + 5, notes))
    request = next(steps)
    if not noted:
        value = b'{"token": "%s", "owner": "x"}' % (b"ab" * 16)
        request = steps.send({**HEADER, 2: [encode({1: b"k/5", 2: 3, 5: value, 6: 5})]})
    compare = etcdrpc.TxnRequest.FromString(request.payload).compare[0]
    assert (compare.key, compare.create_revision, compare.result) == (b"k/5", 3, etcdrpc.Compare.EQUAL)


def test_the_id_of_a_kept_lease_never_follows_from_a_token(script: Script) -> None:
    """Anybody may revoke what follows from one."""
    script.add()
    assert script.notes["own"] != lease_of("ab" * 16)
