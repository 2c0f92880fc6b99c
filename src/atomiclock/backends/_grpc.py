"""gRPC calls as bytes on an HTTP/2 connection, as far as short messages need it. No I/O.

Frames are those of RFC 9113, header blocks those of RFC 7541, and what they carry is gRPC's PROTOCOL-HTTP2.md. Our own
header blocks use no compression table, and the server is told to use none: so a block means the same each time, and is
taken apart once. The windows for what we receive are as wide as they can be.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from hpack import Decoder, HPACKError

from ._wire import MORE

DATA, HEADERS, RESET = 0, 1, 3
_SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 4, 6, 7, 8, 9
_OF_STREAMS = (DATA, HEADERS, RESET, _CONTINUATION)
LAST = 1
"""The flag of the last frame of a stream."""
_ACK, _WHOLE, _PADDED, _PRIORITY = 1, 4, 8, 32
_TABLE_SIZE, _PUSH, _FIRST_WINDOW, _FRAME_SIZE = 1, 2, 4, 5  # settings
_LONGEST_FRAME = 16384
_WIDEST = (1 << 31) - 1
_NARROW = 65535
"""The window of a connection, and of each stream until a setting says another, in bytes."""
_REFILL = 1 << 30
"""Bytes received after which the windows are opened again."""

OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 0, 1, 2, 4, 7, 8
ABORTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 10, 12, 13, 14, 16
_BY_HTTP_STATUS = {"401": UNAUTHENTICATED, "403": PERMISSION_DENIED, "404": UNIMPLEMENTED}
NO_GRPC = "its words are not those of HTTP/2"


class Call(NamedTuple):
    """A request with one reply. `method` is its path, such as "/etcdserverpb.KV/Txn"."""

    method: str
    payload: bytes


class Ask(NamedTuple):
    """Calls to be made at the same time, each on a stream of its own. The reply is the list of their `Answer`s."""

    calls: tuple[Call, ...]
    token: bytes = b""


class Answer(NamedTuple):
    """What came of a call: a message, or a status and its text."""

    data: bytes
    code: int = OK
    text: str = ""


REFUSED = Answer(b"", UNAVAILABLE, "it takes fewer calls at the same time")
"""... of which the server has done nothing (RFC 9113, 8.7)."""
_REFUSED_STREAM = b"\0\0\0\7"  # an error code

HELLO: Any = object()
"""The request to begin a connection. The reply comes when the server has begun it too."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return b"%b%c%c%b%b" % (len(payload).to_bytes(3, "big"), kind, flags, stream.to_bytes(4, "big"), payload)


def _settings(*pairs: tuple[int, int]) -> bytes:
    return b"".join(number.to_bytes(2, "big") + value.to_bytes(4, "big") for number, value in pairs)


def _window(stream: int, more: int) -> bytes:
    return _frame(_WINDOW, 0, stream, more.to_bytes(4, "big"))


_BEGIN = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(_SETTINGS, 0, 0, _settings((_TABLE_SIZE, 0), (_PUSH, 0), (_FIRST_WINDOW, _WIDEST)))
    + _window(0, _WIDEST - _NARROW)
)


def _number(value: int, bits: int, first: int = 0) -> bytes:
    """An integer in the low `bits` of a first byte, and in more bytes if need be (RFC 7541, 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    out, value = [first | most], value - most
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _text(text: bytes) -> bytes:
    return _number(len(text), 7) + text


@lru_cache(maxsize=64)
def _request_block(method: str, authority: str, secure: bool, token: bytes) -> bytes:
    """The header block of a request: literals, of which nothing is to be remembered (RFC 7541, 6.2.2 and its table)."""
    fields = [
        b"\x83",  # :method POST
        b"\x87" if secure else b"\x86",  # :scheme
        b"\x04" + _text(method.encode()),  # :path
        b"\x01" + _text(authority.encode()),  # :authority
        b"\x0f\x10" + _text(b"application/grpc"),  # content-type
        b"\x00" + _text(b"te") + _text(b"trailers"),
    ]
    if token:
        fields.append(b"\x10" + _text(b"token") + _text(token))  # 0x10: a secret, which no proxy may remember either
    return b"".join(fields)


class _Said(NamedTuple):
    """What a header block says that matters."""

    http: str
    code: int | None
    text: str


@lru_cache(maxsize=256)
def _said(block: bytes) -> _Said:
    decoder = Decoder()
    decoder.max_allowed_table_size = decoder.header_table_size = 0
    try:
        fields: dict[Any, Any] = dict(decoder.decode(block))
        code = fields.get("grpc-status")
        text = unquote_to_bytes(fields.get("grpc-message", "")).decode("utf-8", "replace")
        return _Said(fields.get(":status", "200"), None if code is None else int(code), text)
    except HPACKError as error:
        raise ValueError(f"{NO_GRPC}: {error}") from error


class Frames:
    """One end of a connection: makes the frames of requests, and takes apart what comes."""

    def __init__(self, authority: str, secure: bool) -> None:
        self.rest = b""
        self.greeted = False
        self.ending = False  # the server takes no new calls
        self.owed = b""  # to be sent with what is sent next
        self._authority = authority
        self._secure = secure
        self._stream = -1
        self._room = self._stream_room = self._first_window = _NARROW
        self._longest_frame = _LONGEST_FRAME
        self._received = 0
        self._block = b""  # the begin of a header block that goes on

    def begin(self) -> bytes:
        return _BEGIN

    def call(self, method: str, token: bytes) -> tuple[int, bytes]:
        """A new stream, and the frame that opens it."""
        self._stream += 2
        if self._stream > _WIDEST:
            raise ValueError("the connection has no more streams")
        return self._stream, _frame(
            HEADERS, _WHOLE, self._stream, _request_block(method, self._authority, self._secure, token)
        )

    def message(self, stream: int, payload: bytes, flags: int = 0) -> bytes:
        """The frames that carry one message."""
        size = len(payload)
        body = b"\0" + size.to_bytes(4, "big") + payload
        size += 5
        if size > self._room or size > self._stream_room:
            raise ValueError(f"there is no room for {size} bytes")
        self._room -= size
        if size <= self._longest_frame:
            return _frame(DATA, flags, stream, body)
        pieces = [body[at : at + self._longest_frame] for at in range(0, size, self._longest_frame)]
        last = pieces.pop()
        return b"".join(_frame(DATA, 0, stream, piece) for piece in pieces) + _frame(DATA, flags, stream, last)

    def frames(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """What `data` brings for streams: kinds, flags, streams and payloads. `ValueError` for what is no HTTP/2."""
        if self.rest:
            data = self.rest + data
        found = []
        at, end = 0, len(data)
        while end - at >= 9:
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind, flags = data[at + 3], data[at + 4]
            if size > _LONGEST_FRAME or not (self.greeted or kind == _SETTINGS):
                raise ValueError(NO_GRPC)
            body, stop = at + 9, at + 9 + size
            if stop > end:
                break
            stream = (data[at + 5] & 127) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
            payload, at = data[body:stop], stop
            if kind == DATA:
                self._received += size
                if self._received > _REFILL:
                    self.owed += _window(0, self._received) + _window(stream, self._received)
                    self._received = 0
            elif kind not in _OF_STREAMS:
                self._control(kind, flags, stream, payload)
                continue
            if flags & (_PADDED | _PRIORITY):
                payload = _unpadded(kind, flags, payload)
            found.append((kind, flags, stream, payload))
        self.rest = data[at:] if at < end else b""
        return found

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """What concerns the connection."""
        if kind == _WINDOW:
            more = int.from_bytes(payload, "big") & _WIDEST
            if stream:
                self.widened(more)
            else:
                self._room += more
        elif kind == _PING and not flags & _ACK:
            self.owed += _frame(_PING, _ACK, 0, payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self.greeted = True
            for at in range(0, len(payload) - 5, 6):
                self._set(int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big"))
            self.owed += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _GOAWAY:
            self.ending = True

    def _set(self, setting: int, value: int) -> None:
        if setting == _FIRST_WINDOW:
            self._stream_room += value - self._first_window
            self._first_window = value
        elif setting == _FRAME_SIZE:
            self._longest_frame = value

    def widened(self, more: int) -> None:
        """The server takes so many bytes more on one of our streams. Short calls need no more than there is anyway."""


def _unpadded(kind: int, flags: int, payload: bytes) -> bytes:
    padding = 0
    if flags & _PADDED and kind in (DATA, HEADERS):
        if not payload:
            raise ValueError(NO_GRPC)
        padding, payload = payload[0], payload[1:]
    if kind == HEADERS and flags & _PRIORITY:
        payload = payload[5:]
    return payload[: len(payload) - padding]


class _Stream:
    """One call under way."""

    __slots__ = ("answer", "block", "data", "last")

    def __init__(self) -> None:
        self.data = b""
        self.block = b""
        self.last = False  # the block is the last of the stream, in however many frames it comes
        self.answer: Answer | None = None

    def take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == DATA:
            self.data = self.data + payload if self.data else payload
        elif kind == RESET:
            why = f"it gave up the call (error {int.from_bytes(payload, 'big')})"
            self.answer = REFUSED if payload == _REFUSED_STREAM else Answer(b"", UNAVAILABLE, why)
            return
        else:
            self.block += payload
            self.last = self.last or (kind == HEADERS and bool(flags & LAST))
            if flags & _WHOLE:
                self._head(_said(self.block), self.last)
                self.block = b""
            return
        if flags & LAST:
            self.answer = Answer(b"", UNKNOWN, "it ended the call without a status")

    def _head(self, said: _Said, last: bool) -> None:
        http, code, text = said
        if http != "200":
            self.answer = Answer(b"", _BY_HTTP_STATUS.get(http, UNAVAILABLE), f"it answered with HTTP status {http}")
        elif code:
            self.answer = Answer(b"", code, text)
        elif code == OK:
            self.answer = Answer(_message_in(self.data))
        elif last:
            self.answer = Answer(b"", UNKNOWN, "it ended the call without a status")


def _message_in(data: bytes) -> bytes:
    """The message that a unary call brought."""
    if len(data) < 5 or data[0] or int.from_bytes(data[1:5], "big") > len(data) - 5:
        raise ValueError("the message is cut off, or compressed")
    return data[5 : 5 + int.from_bytes(data[1:5], "big")]


class Reader(Frames):
    """The replies of one connection, to one `Ask` after another (see `_wire.Reader`)."""

    def __init__(self, authority: str, secure: bool) -> None:
        super().__init__(authority, secure)
        self._streams: dict[int, _Stream] = {}

    def prepare(self, request: Any) -> tuple[bytes, Any]:
        if request is HELLO:
            return self.begin(), MORE
        calls, token = request
        out, self.owed = [self.owed], b""
        self._streams = streams = {}
        for method, payload in calls:
            stream, head = self.call(method, token)
            out += (head, self.message(stream, payload, LAST))
            streams[stream] = _Stream()
        return b"".join(out), MORE

    def take(self, data: bytes, request: Any) -> Any:
        streams = self._streams
        for kind, flags, number, payload in self.frames(data):
            stream = streams.get(number)
            if stream is not None and stream.answer is None:
                stream.take(kind, flags, payload)
        if request is HELLO:
            return True if self.greeted else MORE
        answers = []
        for stream in streams.values():
            if stream.answer is None:
                if self.ending:
                    raise ConnectionError("the server is going away")
                return MORE
            answers.append(stream.answer)
        if self.ending:
            self.rest = b"the end"  # no connection for others
        return answers

    def hear(self, data: bytes) -> bool:
        """Whether the connection is fit for use after `data` came, which nobody asked for."""
        self._streams = {}
        self.frames(data)
        return not self.rest and not self.ending
