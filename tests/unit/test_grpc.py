"""gRPC over HTTP/2 as bytes: what servers may say, in pieces of any size, and what is nonsense."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from atomiclock.backends._grpc import (
    DEADLINE_EXCEEDED,
    HELLO,
    PERMISSION_DENIED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    Answer,
    Ask,
    Call,
    Reader,
)
from atomiclock.backends._wire import MORE

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
LAST, WHOLE, PADDED, PRIORITIZED = 1, 4, 8, 32
SETTINGS_ACK = b"\0\0\0\4\1\0\0\0\0"
ASK = Ask((Call("/a/B", b"payload"),))
GREETING = b"\0\0\0\4\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def block(*fields: tuple[str, str], huffman: bool = True) -> bytes:
    encoder = Encoder()
    encoder.header_table_size = 0  # as we tell servers
    return encoder.encode(fields, huffman=huffman)


def head(stream: int, status: str = "200") -> bytes:
    return frame(HEADERS, WHOLE, stream, block((":status", status), ("content-type", "application/grpc")))


def body(stream: int, message: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, b"\0" + len(message).to_bytes(4, "big") + message)


def tail(stream: int, code: int = 0, text: str = "") -> bytes:
    return frame(HEADERS, WHOLE | LAST, stream, block(("grpc-status", str(code)), ("grpc-message", text)))


def reply(stream: int, message: bytes = b"done") -> bytes:
    return head(stream) + body(stream, message) + tail(stream)


@pytest.fixture
def reader() -> Reader:
    return greeted()


def greeted() -> Reader:
    reader = Reader("host:1", secure=False)
    said, answer = reader.prepare(HELLO)
    assert said.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert answer is MORE
    assert reader.take(GREETING, HELLO) is True
    return reader


def taken(reader: Reader, data: bytes, ask: Ask = ASK) -> Any:
    reader.prepare(ask)
    return reader.take(data, ask)


def frames_of(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def test_a_call_is_a_header_block_and_a_message(reader: Reader) -> None:
    said, answer = reader.prepare(Ask((Call("/etcd/Put", b"xyz"),), b"s" * 300))
    assert answer is MORE
    ack, (kind, flags, stream, fields), data = frames_of(said)
    assert ack == (SETTINGS, 1, 0, b"")
    assert (kind, flags, stream) == (HEADERS, WHOLE, 1)
    assert dict(Decoder().decode(fields)) == {
        ":method": "POST", ":scheme": "http", ":path": "/etcd/Put", ":authority": "host:1",
        "content-type": "application/grpc", "te": "trailers", "token": "s" * 300,
    }  # fmt: skip
    assert data == (DATA, LAST, 1, b"\0\0\0\0\3xyz")
    assert frames_of(reader.prepare(ASK)[0])[0][2] == 3, "each call has a stream of its own"


def test_a_long_message_takes_several_frames(reader: Reader) -> None:
    said, _ = reader.prepare(Ask((Call("/a/B", b"x" * 40000),)))
    data = [one for one in frames_of(said) if one[0] == DATA]
    assert [flags for _, flags, _, _ in data] == [0, 0, LAST]
    assert b"".join(payload for *_, payload in data) == b"\0" + (40000).to_bytes(4, "big") + b"x" * 40000


def test_what_the_server_has_no_room_for_is_not_sent(reader: Reader) -> None:
    long = Ask((Call("/a/B", b"x" * 40000),))
    assert taken(reader, reply(1), long) == [Answer(b"done")]
    with pytest.raises(ValueError, match="no room"):
        reader.prepare(long)
    assert reader.hear(frame(WINDOW, 0, 0, (40000).to_bytes(4, "big")))
    assert reader.prepare(long)[1] is MORE


@given(st.lists(st.integers(1, 60), max_size=30))
def test_replies_come_in_pieces_of_any_size(sizes: list[int]) -> None:
    reader, ask = greeted(), Ask((Call("/a/B", b""), Call("/a/C", b"")))
    data = head(3) + head(1) + body(1, b"first") + frame(PING, 0, 0, b"12345678") + tail(1) + body(3, b"") + tail(3)
    reader.prepare(ask)
    at = 0
    for size in sizes:
        if at + size < len(data):
            assert reader.take(data[at : at + size], ask) is MORE
            at += size
    assert reader.take(data[at:], ask) == [Answer(b"first"), Answer(b"")]
    assert reader.rest == b""
    assert frames_of(reader.prepare(ask)[0])[0] == (PING, 1, 0, b"12345678"), "it is owed, and sent with the next"


@pytest.mark.parametrize("huffman", [True, False])
def test_header_blocks_may_be_padded_and_continued(reader: Reader, huffman: bool) -> None:
    whole = block((":status", "200"), ("content-type", "application/grpc"), huffman=huffman)
    end = block(("grpc-status", "0"), huffman=huffman)
    data = (
        frame(HEADERS, PADDED | PRIORITIZED, 1, b"\2" + b"prior" + whole[:3] + b"\0\0")
        + frame(CONTINUATION, 0, 1, whole[3:9])
        + frame(CONTINUATION, WHOLE, 1, whole[9:])
        + frame(DATA, PADDED, 1, b"\3\0\0\0\0\2ok\0\0\0")
        + frame(PRIORITY, 0, 1, b"prior")
        + frame(99, 0, 1, b"of a kind to come")
        + frame(HEADERS, WHOLE | LAST, 1, end)
    )
    assert taken(reader, data) == [Answer(b"ok")]


def test_a_message_may_take_several_frames(reader: Reader) -> None:
    whole = b"\0" + (20000).to_bytes(4, "big") + b"x" * 20000
    data = head(1) + frame(DATA, 0, 1, whole[:16384]) + frame(DATA, 0, 1, whole[16384:]) + tail(1)
    assert taken(reader, data) == [Answer(b"x" * 20000)]


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (head(1) + tail(1, 7, "no%20way%21 caf%C3%A9"), PERMISSION_DENIED, "no way! café"),
        (tail(1, 4, "too late"), DEADLINE_EXCEEDED, "too late"),
        (head(1) + body(1, b"half") + tail(1, 14, "the leader is gone"), UNAVAILABLE, "the leader is gone"),
        (head(1, "404") + frame(DATA, LAST, 1, b"<html>"), UNIMPLEMENTED, "it answered with HTTP status 404"),
        (head(1, "502"), UNAVAILABLE, "it answered with HTTP status 502"),
        (head(1) + frame(RESET, 0, 1, b"\0\0\0\2"), UNAVAILABLE, "it gave up the call (error 2)"),
        (frame(RESET, 0, 1, b"\0\0\0\7"), UNAVAILABLE, "it takes fewer calls at the same time"),
        (head(1) + body(1, b"x", LAST), UNKNOWN, "it ended the call without a status"),
        (frame(HEADERS, WHOLE | LAST, 1, block((":status", "200"))), UNKNOWN, "it ended the call without a status"),
    ],
)
def test_a_call_that_fails_has_a_status(reader: Reader, data: bytes, code: int, text: str) -> None:
    assert taken(reader, data) == [Answer(b"", code, text)]
    assert taken(reader, reply(3)) == [Answer(b"done")], "the connection is fit for the next"


@pytest.mark.parametrize(
    ("code", "text", "answer"),
    [(0, "", Answer(b"ok")), (7, "no way", Answer(b"", PERMISSION_DENIED, "no way"))],
)
def test_the_end_of_a_call_may_take_several_frames(reader: Reader, code: int, text: str, answer: Answer) -> None:
    """The first of them says that it is the last block, and another one brings the status."""
    whole = block(("grpc-status", str(code)), ("grpc-message", text))
    end = frame(HEADERS, LAST, 1, whole[:2]) + frame(CONTINUATION, 0, 1, whole[2:5])
    assert taken(reader, head(1) + body(1, b"ok") + end) is MORE
    assert reader.take(frame(CONTINUATION, WHOLE, 1, whole[5:]), ASK) == [answer]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-ERR unknown command 'PRI'\r\n",
        b"\x15\x03\x01\0\2\2\x46\0\0",
        frame(DATA, 0, 1, b"before its settings"),
    ],
)
def test_a_server_that_speaks_something_else_is_told_at_once(data: bytes) -> None:
    reader = Reader("host:1", secure=False)
    reader.prepare(HELLO)
    with pytest.raises(ValueError, match="HTTP/2"):
        reader.take(data, HELLO)


@pytest.mark.parametrize(
    "data",
    [
        head(1) + frame(DATA, 0, 1, b"\1\0\0\0\1x") + tail(1),  # compressed, which nobody asked for
        head(1) + frame(DATA, 0, 1, b"\0\0\0\0\5x") + tail(1),
        head(1) + tail(1),  # success without a message
        frame(HEADERS, WHOLE, 1, b"\xbe"),  # a field of the table that we do not have
        frame(HEADERS, WHOLE | LAST, 1, block(("grpc-status", "none"))),
        b"\xff" * 9,
        frame(DATA, PADDED, 1),  # it does not say by how much
        frame(HEADERS, PADDED | WHOLE, 1),
    ],
)
def test_nonsense_is_told_from_an_answer(reader: Reader, data: bytes) -> None:
    with pytest.raises(ValueError):
        taken(reader, data)


def test_a_server_that_is_going_away_answers_what_it_took_and_gets_no_more(reader: Reader) -> None:
    gone = frame(GOAWAY, 0, 0, bytes(8))
    assert taken(reader, gone + reply(1)) == [Answer(b"done")]
    assert reader.rest, "the connection is not kept"
    another = greeted()
    with pytest.raises(ConnectionError):
        taken(another, gone)
    assert not greeted().hear(gone)


def test_what_comes_in_between_is_heard(reader: Reader) -> None:
    taken(reader, reply(1))
    late = frame(WINDOW, 0, 0, b"\0\0\0\7") + frame(PING, 0, 0, b"12345678") + frame(RESET, 0, 1, b"\0\0\0\0")
    assert reader.hear(late)
    assert not reader.hear(late[:10]), "half a frame is not the end of one"


def test_an_answer_to_an_earlier_call_is_not_that_to_a_later_one(reader: Reader) -> None:
    taken(reader, reply(1))
    reader.prepare(ASK)
    assert reader.take(reply(1, b"old"), ASK) is MORE
    assert reader.take(reply(3, b"new"), ASK) == [Answer(b"new")]


def test_the_windows_are_opened_again_before_they_are_full(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomiclock.backends._grpc._REFILL", 10)
    taken(reader, reply(1, b"more than ten bytes"))
    owed = [one for one in frames_of(reader.prepare(ASK)[0]) if one[0] == WINDOW]
    assert [(stream, int.from_bytes(payload, "big")) for _, _, stream, payload in owed] == [(0, 24), (1, 24)]
