"""The reader of Redis's protocol: the same replies, however they are cut; and no belief in anything else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomiclock.backends._resp import LONGEST, Reader, ServerError, Woken, bulk, pack
from atomiclock.backends._wire import MORE

SIMPLE = st.binary(max_size=20).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))
LEAVES = st.one_of(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=50), st.none())
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


def encode(value: Any) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n" % len(value) + b"".join(encode(one) for one in value)


def depth(value: Any) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def read(reader: Reader, data: bytes) -> list[Any]:
    replies = []
    while (reply := reader.take(data)) is not MORE:
        replies.append(reply)
        data = b""
    return replies


@given(st.lists(VALUES.filter(lambda value: depth(value) <= 3), max_size=4), st.data())
def test_replies_are_the_same_however_they_are_cut(values: list[Any], data: st.DataObject) -> None:
    wire = b"".join(encode(value) for value in values)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    reader, found = Reader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += read(reader, wire[begin:end])
    assert found == values
    assert not reader.rest


def test_byte_by_byte() -> None:
    wire, reader, found = b"*2\r\n$4\r\na\r\nb\r\n*1\r\n:-7\r\n+OK\r\n-ERR no\r\n$0\r\n\r\n*-1\r\n", Reader(), []
    for index in range(len(wire)):
        found += read(reader, wire[index : index + 1])
    assert found[:2] == [[b"a\r\nb", [-7]], b"OK"]
    assert isinstance(found[2], ServerError)
    assert found[2].code == "ERR"
    assert found[3:] == [b"", None]
    assert not reader.rest


def test_a_reply_that_is_none_is_told_from_no_reply() -> None:
    reader = Reader()
    assert reader.take(b"$-1\r\n") is None
    assert reader.take(b"") is MORE


def test_what_is_left_over_is_noticed() -> None:
    reader = Reader()
    assert reader.take(b":1\r\n:2") == 1
    assert reader.rest


@pytest.mark.parametrize(
    "wire",
    [b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"%1\r\n:1\r\n", b":x\r\n", b"$x\r\n", b"*x\r\n", b"_\r\n", b"#t\r\n",
     b"*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n"],
)  # fmt: skip
def test_what_is_no_resp2_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Reader().take(wire)


def test_a_reply_without_end_is_refused() -> None:
    reader = Reader()
    assert reader.take(b"x" * LONGEST) is MORE
    with pytest.raises(ValueError, match="too long"):
        reader.take(b"x")


WOKEN = Woken.of_key(bulk(b"{key}:wake"), 1.0, b"")
"""What a waiter asks, and what it is told when it was woken and has the lock."""
TOLD = b"*2\r\n$10\r\n{key}:wake\r\n$0\r\n\r\n$16\r\n1764480000123456\r\n"


def test_a_waiter_that_was_woken_is_told_however_the_reply_is_cut() -> None:
    for cut in range(len(TOLD) + 1):
        reader = Reader()
        reply = reader.take(TOLD[:cut], WOKEN)
        reply = reader.take(TOLD[cut:], WOKEN) if reply is MORE else reply
        assert reply[1] == b"1764480000123456"
        assert reply[0] in (True, [b"{key}:wake", b""])
        assert not reader.rest


@given(st.binary(max_size=200).map(lambda more: b"*4\r\n:0\r\n:5\r\n$1\r\nt\r\n" + bulk(more + TOLD)))
def test_no_label_of_a_holder_is_taken_for_a_yes(refused: bytes) -> None:
    for first in (b"*-1\r\n", TOLD[: TOLD.index(b"$16")]):
        _, reply = Reader().take(first + refused, WOKEN)
        assert reply[:2] == [0, 5]


@given(st.binary(max_size=200))
def test_no_bytes_confuse_it(wire: bytes) -> None:
    with suppress(ValueError):
        read(Reader(), wire)


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_a_command_cannot_be_read_as_two(parts: list[bytes]) -> None:
    assert read(Reader(), pack(*parts)) == [parts]
