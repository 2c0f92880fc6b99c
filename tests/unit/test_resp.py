"""The reader of Redis's protocol: the same replies, however they are cut; and no belief in anything else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomiclock.backends._resp import LONGEST, Reader, ServerError, pack
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


def read(reader: Reader) -> list[Any]:
    replies = []
    while (reply := reader.get()) is not MORE:
        replies.append(reply)
    return replies


@given(st.lists(VALUES.filter(lambda value: depth(value) <= 3), max_size=4), st.data())
def test_replies_are_the_same_however_they_are_cut(values: list[Any], data: st.DataObject) -> None:
    wire = b"".join(encode(value) for value in values)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    reader, found = Reader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        reader.feed(wire[begin:end])
        found += read(reader)
    assert found == values
    assert reader.empty


def test_byte_by_byte() -> None:
    wire, reader, found = b"*2\r\n$4\r\na\r\nb\r\n*1\r\n:-7\r\n+OK\r\n-ERR no\r\n$0\r\n\r\n*-1\r\n", Reader(), []
    for index in range(len(wire)):
        reader.feed(wire[index : index + 1])
        found += read(reader)
    assert found[:2] == [[b"a\r\nb", [-7]], b"OK"]
    assert isinstance(found[2], ServerError)
    assert found[2].code == "ERR"
    assert found[3:] == [b"", None]
    assert reader.empty


def test_a_reply_that_is_none_is_told_from_no_reply() -> None:
    reader = Reader()
    reader.feed(b"$-1\r\n")
    assert reader.get() is None
    assert reader.get() is MORE


def test_what_is_left_over_is_noticed() -> None:
    reader = Reader()
    reader.feed(b":1\r\n:2")
    assert reader.get() == 1
    assert not reader.empty


@pytest.mark.parametrize(
    "wire",
    [b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"%1\r\n:1\r\n", b":x\r\n", b"$x\r\n", b"*x\r\n", b"_\r\n", b"#t\r\n",
     b"*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n"],
)  # fmt: skip
def test_what_is_no_resp2_is_refused(wire: bytes) -> None:
    reader = Reader()
    reader.feed(wire)
    with pytest.raises(ValueError, match=r"."):
        reader.get()


def test_a_reply_without_end_is_refused() -> None:
    reader = Reader()
    reader.feed(b"x" * LONGEST)
    with pytest.raises(ValueError, match="too long"):
        reader.feed(b"x")


@given(st.binary(max_size=200))
def test_no_bytes_confuse_it(wire: bytes) -> None:
    reader = Reader()
    reader.feed(wire)
    with suppress(ValueError):
        read(reader)


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_a_command_cannot_be_read_as_two(parts: list[bytes]) -> None:
    reader = Reader()
    reader.feed(pack(*parts))
    assert read(reader) == [parts]
