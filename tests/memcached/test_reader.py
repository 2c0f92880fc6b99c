"""What is said to memcached and what is read from it: the same however it is cut, and no belief in anything else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomiclock._process import clock
from atomiclock.backends import _meta
from atomiclock.backends._memcached_reader import LONGEST, Reader
from atomiclock.backends._meta import (
    Authenticate,
    Done,
    Drop,
    Facts,
    Failure,
    Found,
    Gone,
    Look,
    Other,
    OtherLife,
    Probe,
    Put,
    Stats,
    Stored,
    TooFar,
    ready_for,
)  # fmt: skip
from atomiclock.backends._wire import MORE

LIFE = 1_700_000_000
PUT = Put(b"key", b"token", 0, b"ann", 10.0)
EXTEND = Put(b"key", b"token", 77, b"ann", 10.0, cas=5, life=LIFE)
VALUES = st.binary(max_size=60)


def reader(meta: bool = True) -> Reader:
    made = Reader()
    made.facts = Facts(LIFE, LIFE - clock(), clock(), meta)
    return made


def ask(made: Reader, request: Any, reply: bytes) -> Any:
    made.prepare(request)
    found = made.take(reply.replace(b"OPAQUE", b"O" + made.opaque), request)
    assert found is not MORE
    return found


META: list[tuple[Any, bytes, Any]] = [
    (PUT, b"HD c12 OPAQUE\r\n", Stored(LIFE, 12)),
    (PUT, b"NS c0 OPAQUE\r\n", Other()),
    (EXTEND, b"EX c0 OPAQUE\r\n", Other()),
    (EXTEND, b"NF c0 OPAQUE\r\n", Gone()),
    (Drop(b"key", 5, LIFE), b"HD OPAQUE\r\n", Done()),
    (Drop(b"key", 5, LIFE), b"EX OPAQUE\r\n", Other()),
    (Drop(b"key", 5, LIFE), b"NF OPAQUE\r\n", Gone()),
    (Look(b"key"), b"EN OPAQUE\r\n", None),
    (Look(b"key"), b"VA 5 t30 c12 OPAQUE\r\na\r\nbc\r\n", Found(LIFE, 12, b"a\r\nbc", 29.0)),
    (Look(b"key"), b"VA 0 t1 c12 OPAQUE\r\n\r\n", Found(LIFE, 12, b"", 1.0)),
    (Look(b"key"), b"VA 1 t-1 c12 OPAQUE\r\nx\r\n", Found(LIFE, 12, b"x", None)),
    (Stats(), b"STAT a 1\r\nSTAT b two words\r\nSTAT c \r\nEND\r\n", {"a": "1", "b": "two words", "c": ""}),
    (Probe(), b"EN OPAQUE\r\n", True),
    (Probe(), b"EN\r\n", False),
    (Authenticate("ann", "x"), b"STORED\r\n", Done()),
    (PUT, b"SERVER_ERROR out of memory storing object\r\n", Failure("SERVER_ERROR out of memory storing object")),
    (Stats(), b"CLIENT_ERROR unauthenticated\r\n", Failure("CLIENT_ERROR unauthenticated")),
    (Look(b"key"), b"ERROR\r\n", Failure("ERROR")),
]
CLASSIC: list[tuple[Any, bytes, Any]] = [
    (PUT, b"STORED\r\nVALUE key 0 15 12\r\ntoken 0 0 ann..\r\nEND\r\n", Stored(LIFE, 12)),
    (PUT, b"STORED\r\nEND\r\n", Gone()),
    (PUT, b"STORED\r\nVALUE key 0 15 12\r\ntokex 0 0 ann..\r\nEND\r\n", Gone()),
    (PUT, b"NOT_STORED\r\nVALUE key 0 1 12\r\nx\r\nEND\r\n", Other(Found(LIFE, 12, b"x", None))),
    (PUT, b"NOT_STORED\r\nEND\r\n", Other()),
    (EXTEND, b"EXISTS\r\nVALUE key 0 1 12\r\nx\r\nEND\r\n", Other(Found(LIFE, 12, b"x", None))),
    (EXTEND, b"NOT_FOUND\r\nEND\r\n", Gone()),
    (Drop(b"key", 5, LIFE), b"STORED\r\n", Done()),
    (Drop(b"key", 5, LIFE), b"EXISTS\r\n", Other()),
    (Look(b"key"), b"END\r\n", None),
    (Look(b"key"), b"VALUE key 0 1 12\r\nx\r\nEND\r\n", Found(LIFE, 12, b"x", None)),
]


@pytest.mark.parametrize(("request_", "reply", "value"), META, ids=lambda one: repr(one)[:40])
def test_meta_replies(request_: Any, reply: bytes, value: Any) -> None:
    made = reader()
    assert ask(made, request_, reply) == value
    assert not made.rest


@pytest.mark.parametrize(("request_", "reply", "value"), CLASSIC, ids=lambda one: repr(one)[:40])
def test_classic_replies(request_: Any, reply: bytes, value: Any) -> None:
    made = reader(meta=False)
    assert ask(made, request_, reply) == value
    assert not made.rest


@settings(deadline=None)
@given(st.sampled_from([*((True, *one) for one in META), *((False, *one) for one in CLASSIC)]), st.data())
def test_replies_are_the_same_however_they_are_cut(case: tuple[bool, Any, bytes, Any], data: st.DataObject) -> None:
    meta, request, reply, value = case
    made = reader(meta)
    made.prepare(request)
    wire = reply.replace(b"OPAQUE", b"O" + made.opaque)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire) - 1), max_size=6)))
    for begin, end in zip([0, *cuts], cuts, strict=False):
        assert made.take(wire[begin:end], request) is MORE
    found = made.take(wire[cuts[-1] if cuts else 0 :], request)
    assert found == value
    assert not made.rest


@pytest.mark.parametrize("request_", [PUT, EXTEND, Drop(b"key", 5, LIFE), Look(b"key")], ids=lambda one: repr(one)[:30])
@pytest.mark.parametrize("word", [b"HD c1", b"NS c0", b"EX", b"NF", b"EN", b"VA 1 t3 c1"])
@pytest.mark.parametrize("opaque", [b"", b" O1", b" O", b" OPAQUEx", b" O\xff"])
def test_a_reply_to_another_request_is_not_believed(request_: Any, word: bytes, opaque: bytes) -> None:
    with pytest.raises(ValueError, match="another request"):
        ask(reader(), request_, word + opaque + b"\r\nx\r\n")


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 400 Bad Request\r\n", b"-ERR unknown command\r\n", b"\r\n", b"\n", b"HD\n", b"VA 9 OPAQUE\r\n",
     b"VA 1 t3 c1 OPAQUE\r\nxyz\r\n", b"VA -1 t3 c1 OPAQUE\r\n\r\n", b"VA x t3 c1 OPAQUE\r\n", b"HD c1 OPAQUE x\r\n",
     b"HD c1 Off\r\nHD c2 OPAQUE\r\n", b"HD Off\r\nHD OPAQUE\r\n", b"HDOPAQUE\r\n",
     b"VA 99999999 t3 c1 OPAQUE\r\n", b"OK OPAQUE\r\n", b"VALUE other 0 1 12\r\nx\r\nEND\r\n"],
)  # fmt: skip
@pytest.mark.parametrize("request_", [PUT, Look(b"key"), Drop(b"key", 5, LIFE)], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("meta", [True, False])
def test_what_memcached_does_not_say_is_refused(request_: Any, reply: bytes, meta: bool) -> None:
    with pytest.raises(ValueError, match=r"."):
        ask(reader(meta), request_, reply)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([PUT, EXTEND, Look(b"key"), Drop(b"key", 5, LIFE), Stats(), Probe()]))
def test_no_bytes_confuse_it(wire: bytes, request: Any) -> None:
    for meta in (True, False):
        made = reader(meta)
        made.prepare(request)
        with suppress(ValueError):
            made.take(wire, request)


def test_a_reply_without_end_is_refused() -> None:
    made = reader()
    made.prepare(PUT)
    assert made.take(b"x" * LONGEST, PUT) is MORE
    with pytest.raises(ValueError, match="too long"):
        made.take(b"x", PUT)


def test_every_request_has_an_opaque_of_its_own() -> None:
    first, second = reader(), reader()
    seen = []
    for _ in range(100):
        for made in (first, second):
            made.prepare(PUT)
            seen.append(made.opaque)
    assert len(set(seen)) == 200
    assert max(map(len, seen)) <= 32, "memcached takes no longer one"


def test_a_version_of_another_life_is_not_sent() -> None:
    made = reader()
    for request in (EXTEND._replace(life=LIFE + 1), Drop(b"key", 5, LIFE - 1)):
        assert made.prepare(request) == (b"", OtherLife())
    assert made.prepare(EXTEND)[0] != b""


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("ttl", [0.001, 0.5, 1.0, 1.001, 30.0, 2_591_998.0])
def test_a_ttl_is_rounded_up_and_has_room_for_the_servers_late_clock(ttl: float, meta: bool) -> None:
    seconds = seconds_in(reader(meta).prepare(PUT._replace(ttl=ttl))[0])
    assert ttl + 2 <= seconds < ttl + 3
    assert seconds <= 2_592_000, "more would be a date"


@pytest.mark.parametrize("ttl", [2_591_998.001, 2_591_999.0, 2_592_000.0, 2_592_001.0, 31_536_000.0])
def test_a_ttl_of_more_than_a_month_is_sent_as_a_date(ttl: float) -> None:
    date = seconds_in(reader().prepare(PUT._replace(ttl=ttl))[0])
    assert LIFE + ttl <= date <= LIFE + ttl + 2


def test_a_date_allows_for_clocks_that_drift_apart() -> None:
    made = reader()
    made.facts = made.facts._replace(ahead=LIFE - (clock() - 86400), asked=clock() - 86400)  # learned a day ago
    date = seconds_in(made.prepare(PUT._replace(ttl=31_536_000.0))[0])
    assert date >= LIFE + 86400 + 31_536_000 + 86


def test_a_date_that_memcached_does_not_know_is_not_sent() -> None:
    made = reader()
    request = PUT._replace(ttl=2**31 - LIFE + 10.0)
    said, why = made.prepare(request)
    assert said == b""
    assert isinstance(why, TooFar)


def seconds_in(said: bytes) -> int:
    words = said.split(b"\r\n")[0].split(b" ")
    return int(words[3]) if words[0] in (b"add", b"cas") else int(next(word for word in words if word[:1] == b"T")[1:])


@settings(deadline=None)
@given(VALUES, VALUES, st.floats(0.001, 31_536_000.0))
def test_what_is_ready_is_what_would_be_said(token: bytes, owner: bytes, ttl: float) -> None:
    for meta in (True, False):
        put = Put(b"key", token, 0, owner, ttl)
        ready = put._replace(ready=ready_for(b"key", len(token), owner, ttl))
        said, made = [], reader(meta)
        with mock.patch.object(_meta, "clock", return_value=clock()):  # no date changes between the two
            for request in (put, ready):
                packed, more = made.prepare(request)
                assert more is MORE
                said.append(packed.replace(b" O" + made.opaque + b"\r\n", b" OPAQUE\r\n", 1))
        assert said[0] == said[1]


@settings(deadline=None)
@given(VALUES, st.integers(0, 2**53), VALUES)
def test_a_value_of_ours_is_read_as_it_was_written(token: bytes, fence: int, owner: bytes) -> None:
    token = b"t" + b"".join(token.split())
    said, _ = reader().prepare(Put(b"key", token, fence, owner, 5.0))
    value = said.split(b"\r\n", 1)[1][:-2]
    assert int(said.split(b" ", 3)[2]) == len(value)
    assert Found(LIFE, 1, value, None).parts == (token, fence, 0, owner)


@pytest.mark.parametrize("value", [b"", b"worker-1", b"a b", b"a 1 2", b"a x 0 c", b"1700000000.5"])
def test_other_softwares_values_are_not_taken_for_ours(value: bytes) -> None:
    assert Found(LIFE, 1, value, None).parts is None


def test_a_password_is_not_shown() -> None:
    assert _meta.Authenticate("ann", "hunter2").password == "hunter2"
    assert "hunter2" not in repr(_meta.Authenticate("ann", "hunter2"))
