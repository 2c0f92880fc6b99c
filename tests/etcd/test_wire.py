"""The codec, against itself and against the classes that protobuf generated for python-etcd3."""

from __future__ import annotations

from contextlib import suppress

import pytest
from etcd3 import etcdrpc
from hypothesis import given
from hypothesis import strategies as st

from atomiclock.backends import _etcd_recipe as recipe
from atomiclock.backends._etcd_recipe import Place, op
from atomiclock.backends._etcd_wire import decode, encode, messages, number, text, varint

VALUES = st.one_of(st.integers(1, 2**64 - 1), st.binary())
MESSAGES = st.dictionaries(st.integers(1, 2**29 - 1), st.lists(VALUES, min_size=1, max_size=3), max_size=5)
TOKEN = "ab" * 16


@given(MESSAGES)
def test_what_was_encoded_is_decoded(message: dict[int, list[int | bytes]]) -> None:
    assert decode(encode(message)) == message


@given(st.integers(0, 2**64 - 1))
def test_numbers_of_any_size(value: int) -> None:
    assert decode(b"\x08" + varint(value)) == {1: [value]}


@given(st.binary(max_size=40))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        decode(data)


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x0a\x05abc", b"\x0b", b"\x00\x01", b"\x08" + b"\xff" * 10 + b"\x01", b"\x09abc", b"\x0d1"]
)
def test_garbage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_number_that_has_no_place_is_refused(value: int) -> None:
    with pytest.raises(ValueError):
        encode({1: value})


def test_fields_that_nobody_asked_for_are_ignored() -> None:
    message = decode(encode({1: 5, 99: b"later version"}) + b"\x49" + b"\0" * 8 + b"\x55" + b"\0" * 4)
    assert (number(message, 1), number(message, 2), text(message, 3), messages(message, 4)) == (5, 0, b"", [])


def test_a_field_of_the_wrong_kind_is_a_value_error() -> None:
    message = decode(encode({1: 5, 2: b"x"}))
    for wrong in (lambda: number(message, 2), lambda: text(message, 1), lambda: messages(message, 1)):
        with pytest.raises(ValueError):
            wrong()


@given(st.integers(1, 2**63 - 1), st.integers(1, 10**9))
def test_a_grant_is_what_protobuf_writes(lease: int, seconds: int) -> None:
    assert recipe.grant(lease, seconds).payload == etcdrpc.LeaseGrantRequest(TTL=seconds, ID=lease).SerializeToString()
    assert recipe.revoke(lease).payload == etcdrpc.LeaseRevokeRequest(ID=lease).SerializeToString()
    assert recipe.time_to_live(lease).payload == etcdrpc.LeaseTimeToLiveRequest(ID=lease).SerializeToString()


@given(st.text(min_size=1), st.integers(1, 2**62))
def test_ranges_are_what_protobuf_writes(key: str, revision: int) -> None:
    place, request = Place(key, TOKEN), etcdrpc.RangeRequest
    prefix = {"key": b"%s/" % key.encode(), "range_end": b"%s0" % key.encode()}
    create = {"sort_target": request.CREATE}
    for ours, theirs in (
        (place.first(), request(**prefix, **create, limit=1, sort_order=request.ASCEND)),
        (place.last_two(), request(**prefix, **create, limit=2, sort_order=request.DESCEND)),
        (
            place.last_two(revision),
            request(**prefix, **create, limit=2, sort_order=request.DESCEND, max_create_revision=revision),
        ),
        (place.mine(), request(key=place.own)),
    ):
        assert request.FromString(ours) == theirs


def test_a_transaction_is_what_protobuf_reads() -> None:
    place = Place("name", TOKEN)
    call = recipe.txn([place.mine_is_there()], [place.delete(), place.put(b"value", 7)], [op(look=place.first())])
    read = etcdrpc.TxnRequest.FromString(call.payload)
    assert (read.compare[0].result, read.compare[0].target) == (etcdrpc.Compare.NOT_EQUAL, etcdrpc.Compare.CREATE)
    assert read.compare[0].key == place.own
    assert read.success[0].request_delete_range.key == place.own
    assert read.success[0].request_delete_range.prev_kv is True
    put = read.success[1].request_put
    assert (put.key, put.value, put.lease) == (place.own, b"value", 7)
    assert read.failure[0].request_range.key == place.prefix


def test_replies_are_read() -> None:
    kv = {"key": b"k/1", "create_revision": 3, "value": b"v", "lease": 2**63 - 1}
    response = etcdrpc.TxnResponse(succeeded=True)
    response.header.revision = 2**40
    response.responses.add().response_range.kvs.add(**kv)
    response.responses.add().response_delete_range.prev_kvs.add(**kv)
    read = decode(response.SerializeToString())
    entry = recipe.Entry(b"k/1", 3, b"v", 2**63 - 1)
    assert recipe.succeeded(read)
    assert recipe.revision_of(read) == 2**40
    assert recipe.ranges_of(read) == [[entry]]
    assert recipe.deleted_of(read) == [entry]


def test_the_lease_of_a_token_is_fixed_and_never_none() -> None:
    leases = {recipe.lease_of(f"{number:032x}") for number in range(1000)}
    assert len(leases) == 1000
    assert all(0 < lease < 2**63 for lease in leases)
    assert recipe.lease_of("694d81f0c9a5c207") == 0x694D81F0C9A5C207


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("feed/694d81f0c9a5c207", True), ("feed/1", True), ("feed/", False), ("feed/1/2", False), ("feed/x", False),
        ("feed/694d81f0c9a5c2071", False), ("feed/1\n", False),
    ],
)  # fmt: skip
def test_which_keys_count(key: str, counts: bool) -> None:
    assert Place("feed").counts(key.encode()) is counts


@pytest.mark.parametrize("value", [b"", b"x", b"{}", b"[1]", b'{"token": 5, "owner": "x"}', b"\xff", b'{"token": "a"}'])
def test_a_value_that_is_not_ours_names_nobody(value: bytes) -> None:
    assert recipe.said_by(recipe.Entry(b"feed/1", 1, value, 1)) == (None, None)


@pytest.mark.parametrize(("ttl", "seconds"), [(0.001, 1), (1, 1), (1.01, 2), (29.999, 30), (1e9, 10**9)])
def test_a_lease_is_never_shorter_than_its_lock(ttl: float, seconds: int) -> None:
    assert recipe.seconds_for(ttl) == seconds + recipe.ROOM
