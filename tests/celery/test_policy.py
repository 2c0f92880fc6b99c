"""What follows from a conflict, what a page of shared memory says, and what names look like: no worker, no store."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from atomiclock import ConfigurationError
from atomiclock._options import Options
from atomiclock.celery import LockBusy, LockedTask, canonical_url, exclusive, unique
from atomiclock.celery._board import LONGEST_LINE, Board, SeatedHold
from atomiclock.celery._conflicts import Again, Conflict, Fail, Queue, Skip, Stand, Where, answer, pause
from atomiclock.celery._install import doubts, refuse, useless
from atomiclock.celery._names import is_own, label, task_of
from atomiclock.celery._rules import Rules, of_header

WORKER, EAGER, DIRECT = Where.WORKER, Where.EAGER, Where.DIRECT


def conflict(own: bool = False, since: float = 0.0, tries: int = 0) -> Conflict:
    return Conflict("task:key", "celery:x:host:1", "y", own, tries, since)


@pytest.mark.parametrize("where", list(Where))
@pytest.mark.parametrize("word", ["skip", "retry", "coalesce", "wait", "raise"])
def test_only_a_message_is_ever_put_back(word: str, where: Where) -> None:
    given = answer(Rules(on_conflict=word, wait=3.0), where, conflict(), 0.5)
    assert isinstance(given, (Again, Queue)) is (word in ("retry", "coalesce") and where is WORKER)
    assert isinstance(given, Skip) is (word == "skip")
    assert isinstance(given, Fail) is (word == "raise")


@pytest.mark.parametrize("word", ["skip", "retry", "coalesce", "wait", "raise"])
def test_a_second_delivery_is_no_duplicate_whatever_the_rules_say(word: str) -> None:
    patience = Rules(on_conflict=word, wait=1.0, give_up=0.0)
    assert isinstance(answer(patience, WORKER, conflict(own=True, since=1e9), 0.0), Again)


def test_retry_gives_up_when_its_time_is_over_and_then_does_what_it_was_told() -> None:
    rules = Rules(on_conflict="retry", give_up=60.0)
    assert isinstance(answer(rules, WORKER, conflict(since=59.9), 0.0), Again)
    assert isinstance(answer(rules, WORKER, conflict(since=60.0), 0.0), Fail)
    assert isinstance(
        answer(Rules(on_conflict="retry", give_up=60.0, then="skip"), WORKER, conflict(since=60), 0.0), Skip
    )
    assert isinstance(answer(Rules(on_conflict="coalesce"), WORKER, conflict(since=1e9), 0.0), Queue), "it stands in"


def test_pauses_double_up_to_the_longest_and_never_go_to_zero() -> None:
    rules = Rules(delay=(1.0, 30.0))
    assert [pause(rules, tries, 0.0) for tries in (0, 1, 2, 5, 1000)] == [1, 2, 4, 30, 30]
    assert all(0.5 < pause(rules, 0, random.random()) <= 1 for _ in range(100))


@pytest.mark.parametrize("where", list(Where))
@pytest.mark.parametrize("wait", [0.0, 2.0])
def test_then_says_what_follows_on_wait_and_what_is_put_back_never_skips(where: Where, wait: float) -> None:
    for word, last in {"wait": Skip(), "retry": Fail(), "coalesce": Fail()}.items():
        if word != "wait" and where is WORKER:
            continue
        given = answer(Rules(on_conflict=word, then="skip", wait=wait), where, conflict(), 0.0)
        assert type(given.last if isinstance(given, Stand) else given) is type(last), word
        assert isinstance(given, Stand) is (wait > 0)


def test_a_callable_decides_and_is_held_to_the_words() -> None:
    assert isinstance(answer(Rules(on_conflict=lambda _: "raise"), WORKER, conflict(), 0.0), Fail)
    assert isinstance(answer(Rules(on_conflict=lambda c: "wait", wait=2.0), DIRECT, conflict(), 0.0), Stand)
    with pytest.raises(ConfigurationError, match="on_conflict returns one of"):
        answer(Rules(on_conflict=lambda _: "explode"), EAGER, conflict(), 0.0)


def test_a_label_tells_its_own_task_from_all_others() -> None:
    for task_id in ("1b0d", "with:colon %", "ü" * 200, "x" * 300):
        said = label(task_id, "w@host")
        assert is_own(said, task_id)
        assert len(said.split(":w@host")[0]) < 200, "memcached keeps no more"
    assert not is_own(label("1b0d1", None), "1b0d")
    assert not is_own(None, "1b0d")
    assert not is_own("host:1:MainThread", None)
    assert task_of(label("with:colon %", "w")) == "with:colon %"
    assert task_of("host:1:MainThread") is None


def test_a_seat_answers_for_one_token_alone_and_never_for_half_a_record() -> None:
    board = Board()
    seat, token = board.seat(3), "a" * 32
    assert seat is not None
    assert board.seat(1 << 20) is None
    assert seat.parents(token) is None
    seat.put_parents(token, 12.5)
    assert seat.parents(token) == 12.5
    assert seat.own(token) is None, "each side writes its own half"
    assert seat.parents("b" * 32) is None
    board._page[seat._parents + 16] ^= 1  # half of another record
    assert seat.parents(token) is None
    board.close()


def test_a_lease_counts_on_the_later_of_two_renewals_but_not_beyond_the_shared_ttl() -> None:
    board = Board()
    seat, token = board.seat(0), "a" * 32
    assert seat is not None
    hold = SeatedHold("n", "k", "o", token, Options(ttl=10.0))
    hold.seat = seat
    hold.granted(sent=100.0, now=100.0, fence=1, repeated=False)
    own = hold.valid_until
    seat.put_parents(token, own + 5)
    assert hold.valid_until == own + 5
    assert not hold.over(own + 4)
    hold.extending(110.0, 60.0)
    hold.extended(110.0, 60.0)
    assert hold.valid_until < 120.0, "the main process renews by 10 s, and may be obeyed last"
    hold.extending(111.0, 2.0)
    hold.extended(111.0, 2.0)
    assert hold.valid_until < 113.0, "it wanted less, so the other's word is void"
    board.close()


def test_what_is_too_long_for_one_piece_is_said_in_several_that_others_may_come_between() -> None:
    board = Board()
    names = ["ü" * LONGEST_LINE, "x" * 2 * LONGEST_LINE]
    pieces = [list(board._in_pieces(json.dumps({"pid": 1, "name": name}).encode())) for name in names]
    for both in itertools.zip_longest(*pieces):
        assert all(board._write(piece, 0.0) for piece in both if piece is not None)
    assert board.tell(say="try", token="a")
    assert [facts.get("name") for facts in board.told()] == [names[1], names[0], None]
    assert board._write(pieces[0][0], 0.0)
    assert board.told() == []
    board.forget(os.getpid())
    assert not board._pieces, "it died in the middle"
    board.close()


def test_what_nobody_reads_is_not_said() -> None:
    board = Board()
    while board.tell(say="try", token="b" * 1000):  # until the pipe is full
        pass
    assert len(board.told()) > 10
    longest = {"say": "try", "name": "x" * (1 << 20)}
    assert not board.tell(**longest), "more than the pipe holds"
    board.told()
    heard: list[dict[str, Any]] = []
    speaker = threading.Thread(target=board.tell, kwargs=longest)
    speaker.start()
    while speaker.is_alive() or not heard:
        heard += board.told()
    assert [facts["name"] for facts in heard] == [longest["name"]]
    board.close()


def test_default_keys_are_the_same_under_every_hash_seed(tmp_path: Path) -> None:
    code = (
        "from celery import Celery; from atomiclock.celery import _exclusive, _names, exclusive\n"
        "key = _exclusive.key_for(lambda x, y={}, *rest, **more: None, None)\n"
        "print(_names.name_of(key, 't', False, (1, {'b': [1, 2.5], 'a': None}, b'x'), {'z': 'ü'}, frozenset()))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for seed in ("0", "1", "12345")
    }  # fmt: skip
    assert len(said) == 1


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("HTTP://Example.ORG:80", "http://example.org/"),
        ("https://example.org:443/a?b=2&a=1#top", "https://example.org/a?b=2&a=1"),
        ("https://me@example.org.:8443/a", "https://me@example.org:8443/a"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        (" http://example.org/A%2Fb ", "http://example.org/A%2Fb"),
    ],
)
def test_canonical_url(written: str, same: str) -> None:
    assert canonical_url(written) == same
    assert canonical_url(same) == same


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"on_conflict": "wait"}, "needs wait=SECONDS"),
        ({"delay": (5, 1)}, "the first and the longest"),
        ({"then": "shrug"}, "then is one of"),
        ({"on_lost": "cry"}, "on_lost is one of"),
        ({"on_backend_error": "skip"}, "on_backend_error is one of"),
        ({"give_up": math.nan}, "finite number"),
        ({"url": 5}, "url is a URL"),
    ],
)
def test_rules_out_of_range_are_refused_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        exclusive("{x}", **given)


def test_headers_and_settings_are_checked_by_the_same_rules() -> None:
    with pytest.raises(ConfigurationError, match="a call cannot change 'url'"):
        of_header({"url": "redis://elsewhere"})
    with pytest.raises(ConfigurationError, match="is a mapping"):
        of_header("raise")
    app = Celery("settings", set_as_current=False)
    app.conf.update(atomiclock_url="sqlite://", atomiclock_on_lost="cry")
    with pytest.raises(ConfigurationError, match="Celery's setting atomiclock_on_lost is one of"):
        refuse(app.conf, prefork=False)
    app.conf.update(atomiclock_on_lost="warn", atomiclock_ttl=0.2, broker_transport_options={"visibility_timeout": 9})
    assert len(doubts(app)) == 2
    with pytest.raises(ConfigurationError, match="on_duplicate is"):
        unique("{x}", ttl=1, on_duplicate="shrug")
    app.close()


def test_settings_are_read_with_djangos_namespace() -> None:
    app = Celery("spaced", set_as_current=False)
    app.config_from_object({"CELERY_ATOMICLOCK_URL": "sqlite:///x.db", "CELERY_ATOMICLOCK_ON_CONFLICT": "raise",
                            "CELERY_BROKER_URL": "memory://"}, namespace="CELERY")  # fmt: skip
    lock = exclusive("{x}", ttl=7)
    rules = lock.rules(app.conf, None)
    assert (rules.url, rules.on_conflict, rules.ttl) == ("sqlite:///x.db", "raise", 7)
    assert exclusive("{x}", on_conflict="skip").rules(app.conf, None).on_conflict == "skip"
    app.close()


def test_settings_that_do_not_exist_are_named_at_the_start_of_a_worker() -> None:
    spaced, plain = Celery("spaced2", set_as_current=False), Celery("plain2", set_as_current=False)
    spaced.config_from_object({"CELERY_ATOMICLOCK_URL": "sqlite://", "CELERY_ATOMICLOCK_TTTL": 3}, namespace="CELERY")
    plain.conf.update(atomiclock_prefix="x", atomiclock_done_ttl=60)
    assert [doubt.split(":")[0] for doubt in doubts(spaced)] == ["there is no setting atomiclock_tttl"]
    assert [doubt.split(":")[0] for doubt in doubts(plain)] == ["there is no setting atomiclock_prefix"]
    spaced.close()
    plain.close()


def test_the_rules_of_each_task_are_looked_at_when_a_worker_starts() -> None:
    app = Celery("looked", set_as_current=False)
    app.conf.update(atomiclock_url="sqlite://", broker_transport_options={"visibility_timeout": 60})

    @app.task(name="looked.slow")
    @exclusive("{x}", delay=(1, 90), on_conflict="retry")
    def slow(x: int) -> None: ...

    @app.task(name="looked.quick", base=LockedTask, lock=exclusive("{x}", ttl=0.5, url="memory://"))
    def quick(x: int) -> None: ...

    assert [doubt.split(" ")[:2] for doubt in doubts(app)] == [["looked.quick's", "ttl"], ["looked.slow's", "delay"]]
    assert [doubt.split(":")[0] for doubt in useless(app, prefork=True)] == ["the task looked.quick will fail"]
    assert not useless(app, prefork=False)
    app.close()


def test_lock_busy_survives_the_way_through_a_result_backend() -> None:
    error = LockBusy("held", name="task:key", owner="celery:x:h:1")
    error.remaining = 2.5
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.name, again.owner, again.remaining) == ("held", "task:key", "celery:x:h:1", 2.5)
    assert not isinstance(error, TimeoutError)
