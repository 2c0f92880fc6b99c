"""etcd's messages as bytes: the part of Protocol Buffers that they use, so that no protobuf package is needed.

Whatever version of it the application has beside us, and whoever else registered etcd's messages with it (two
clients in one process cannot), is no concern of ours.

A message is a dict from field numbers to values here: an `int` (varint), `bytes` (text, bytes or a message), or a
list of these for a field that is repeated. The numbers are those of etcd's rpc.proto, kv.proto and auth.proto, 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping

Value = int | bytes
Message = dict[int, list[Value]]

_SHORT = [bytes((number,)) for number in range(128)]
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """`number`, at least 0 and below 2**64, seven bits to a byte and the lowest first."""
    if 0 <= number < 128:
        return _SHORT[number]
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} has no place in 64 bits")
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(fields: Mapping[int, Value | list[Value]]) -> bytes:
    """The bytes of a message. A number 0 is left out, as proto3 has it: it is what an absent one means."""
    out: list[bytes] = []
    for field, value in fields.items():
        if isinstance(value, bytes):  # most are, and short
            tag, size = field << 3 | _BYTES, len(value)
            out += (_SHORT[tag] if tag < 128 else varint(tag), _SHORT[size] if size < 128 else varint(size), value)
        elif isinstance(value, int):
            if value:
                out += (varint(field << 3 | _VARINT), varint(value))
        else:
            out += [encode({field: one}) for one in value]
    return b"".join(out)


def decode(data: bytes) -> Message:
    """The fields of a message, each with all its values. `ValueError` for what is no message."""
    fields: Message = {}
    at, end = 0, len(data)
    while at < end:
        tag, at = data[at], at + 1
        if tag > 127:  # most are short: spare the call
            tag, at = _read_varint(data, at - 1)
        field, kind = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise ValueError(f"no field has the number {field}")
        value: Value
        if kind == _VARINT:
            value, at = _read_varint(data, at)
        else:
            length, at = _read_length(kind, data, at)
            value, at = data[at : at + length], at + length
            if at > end:
                raise ValueError("the message ends early")
        if field in fields:
            fields[field].append(value)
        else:
            fields[field] = [value]
    return fields


def _read_length(kind: int, data: bytes, at: int) -> tuple[int, int]:
    if kind == _BYTES:
        return (data[at], at + 1) if at < len(data) and data[at] < 128 else _read_varint(data, at)
    if kind == _FIXED64:
        return 8, at
    if kind == _FIXED32:
        return 4, at
    raise ValueError(f"no field has the kind {kind}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    for byte in data[at : at + 10]:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number & (1 << 64) - 1, at + shift // 7
    raise ValueError("the message ends early" if shift < 70 else "a number of more than 64 bits")


def number(message: Message, field: int) -> int:
    """A field with a number; 0 if it is absent. Of several the last counts, as the format has it."""
    value = message.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")
    return value


def text(message: Message, field: int) -> bytes:
    """A field with bytes; none if it is absent."""
    value = message.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError(f"field {field} is a number")
    return value


def messages(message: Message, field: int) -> list[Message]:
    """All the messages in a field."""
    found = []
    for value in message.get(field, []):
        if not isinstance(value, bytes):
            raise ValueError(f"field {field} is a number")
        found.append(decode(value))
    return found
