"""The official recipe of etcd's Go client (`concurrency.Mutex`, which `etcdctl lock` runs), in etcd's own requests.

Whoever wants the lock NAME puts a key NAME/LEASE, bound to a lease of its own, LEASE being that lease in hex. The
one with the lowest create revision holds the lock; each of the others watches the one just before its own.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from ._etcd_wire import Message, encode, messages, number, text
from ._grpc import Call  # its reply is a `Message`, or a `Fault`

GRANT, REVOKE = "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke"
TIME_TO_LIVE, KEEP_ALIVE = "/etcdserverpb.Lease/LeaseTimeToLive", "/etcdserverpb.Lease/LeaseKeepAlive"
RANGE, TXN = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
WATCH, AUTHENTICATE = "/etcdserverpb.Watch/Watch", "/etcdserverpb.Auth/Authenticate"

_EQUAL, _NOT_EQUAL = 0, 3
_CREATE, _LEASE = 1, 4  # what a compare looks at
_ASCEND, _DESCEND, _BY_CREATE = 1, 2, 2
_LEASE_ID = re.compile(rb"[0-9a-f]{1,16}")


class KeepAlive(NamedTuple):
    """Start the ttl of `lease` again, and make the call `beside` it at the same time.

    The reply is a pair: the seconds that the lease lives from then, 0 if it is dead, and the reply to the call.
    """

    lease: int
    beside: Call


class Watch(NamedTuple):
    """Return when `key` was deleted after the revision `seen`, or may have been, or at `until`.

    The reply is true if it is certain that it was, and that the key `own` was not.
    """

    key: bytes
    seen: int
    until: float
    own: bytes


class Before(NamedTuple):
    """The key just before ours."""

    key: bytes
    seen: int
    """The revision at which it was there."""
    alone: bool
    """Whether it is the only one before ours: then it is our turn when it is gone."""


class Attempt(NamedTuple):
    """Make `request`; an `Unknown` or a refusal is the reply, and is not raised."""

    request: Any


class Fault(NamedTuple):
    """What etcd says instead of doing it, where that is a fact to go on with. Nothing was changed."""

    text: str

    def means(self, words: str) -> bool:
        return words in self.text


ROOM = 1
"""Seconds that a lease lives beyond its ttl: for so long it serves its next lock, or its waiter, as it is."""
NOT_FOUND, EXISTS = "requested lease not found", "lease already exists"


class Entry(NamedTuple):
    """A key of the recipe."""

    key: bytes
    revision: int
    """The revision at which it was created: its place in the queue, and the fence."""
    value: bytes
    lease: int


def lease_of(token: str) -> int:
    """The id of the lease for `token` where nobody noted another: 63 bits of its digest.

    A token of at most 16 digits is what `peek` tells of other software: the id itself.
    """
    if len(token) <= 16 and _LEASE_ID.fullmatch(token.encode("utf-8", "replace")):
        return int(token, 16)
    digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 or 1


def lease_in(key: bytes) -> int:
    """The lease that a key of the recipe is named for."""
    return int(key.rpartition(b"/")[2], 16)


class _Name:
    """What all requests for one lock have in common, as bytes: half the work of making them."""

    def __init__(self, key: str) -> None:
        lock = key.encode("utf-8", "surrogatepass")
        self.prefix = lock + b"/"
        self.end = lock + b"0"  # "0" comes after "/"
        self.first = encode({1: self.prefix, 2: self.end, 3: 1, 5: _ASCEND, 6: _BY_CREATE})
        last_two = encode({1: self.prefix, 2: self.end, 3: 2, 5: _DESCEND, 6: _BY_CREATE})
        # There is no key under the prefix: a range of which each has create revision 0 is empty.
        nobody = encode({1: _EQUAL, 2: _CREATE, 3: self.prefix, 5: 0, 64: self.end})
        # Parts of a transaction: etcd reads its fields in any order, and repeated ones as often as they come.
        self.if_nobody = encode({1: nobody})
        self.else_first = encode({3: op(look=self.first)})
        self.else_around = encode({3: [op(look=self.first), op(look=last_two)]})


name_of = lru_cache(maxsize=64)(_Name)


class Place:
    """The keys of the lock `key`, and the one of them that is `token`'s: of the lease `own`, if that is known."""

    def __init__(self, key: str, token: str = "", own: int | None = None) -> None:
        self.name = name = name_of(key)
        self.prefix = name.prefix
        self.token = token
        self.lease = lease_of(token) if own is None else own
        self.own = name.prefix + b"%x" % self.lease

    def counts(self, key: bytes) -> bool:
        """Whether `key` stands for a holder or waiter of this lock.

        The keys of a lock NAME/MORE are under NAME/ too, and so may be other data. (`etcdctl lock` takes those for
        holders of NAME as well.)
        """
        return _LEASE_ID.fullmatch(key, len(self.prefix)) is not None

    def first(self) -> bytes:
        """The payload of a Range for the entry with the lowest create revision."""
        return self.name.first

    def last_two(self, revision: int = 0) -> bytes:
        """... for the two with the highest create revision, or the highest up to `revision`."""
        return encode({1: self.prefix, 2: self.name.end, 3: 2, 5: _DESCEND, 6: _BY_CREATE, 13: revision})

    def all(self) -> bytes:
        """... for all of them, first come first."""
        return encode({1: self.prefix, 2: self.name.end, 5: _ASCEND, 6: _BY_CREATE})

    def mine(self) -> bytes:
        """... for our own."""
        return encode({1: self.own})

    def mine_is_there(self) -> bytes:
        return encode({1: _NOT_EQUAL, 2: _CREATE, 3: self.own})

    def mine_is_of(self, revision: int) -> bytes:
        """... our key was put at `revision`, and is not one that was put after that was deleted."""
        return encode({1: _EQUAL, 2: _CREATE, 3: self.own, 5: revision})

    def mine_is_still(self, entry: Entry) -> list[int | bytes]:
        """Compares: our key is the same as `entry`, with the same lease."""
        return [self.mine_is_of(entry.revision), encode({1: _EQUAL, 2: _LEASE, 3: self.own, 8: entry.lease})]

    def put(self, value: bytes, lease: int) -> bytes:
        return op(put=encode({1: self.own, 2: value, 3: lease}))

    def delete(self, tell: bool = True) -> bytes:
        """`tell`: the reply says what was deleted."""
        return op(delete=encode({1: self.own, 3: tell}))

    def to_take(self, value: bytes) -> Call:
        """Put our key if nobody has any, else look who is first."""
        put = self.put(value, self.lease)
        return Call(TXN, self.name.if_nobody + encode({2: put}) + self.name.else_first)

    def to_enter(self, value: bytes) -> Call:
        """Put our key, and if there are others, look who is first, and the last two."""
        put = self.put(value, self.lease)
        return Call(TXN, self.name.if_nobody + encode({2: put, 3: put}) + self.name.else_around)


def op(*, look: bytes = b"", put: bytes = b"", delete: bytes = b"") -> bytes:
    """One operation of a transaction."""
    return encode({1: look} if look else {2: put} if put else {3: delete})


def txn(compares: list[int | bytes], then: list[int | bytes], otherwise: list[int | bytes]) -> Call:
    return Call(TXN, encode({1: compares, 2: then, 3: otherwise}))


def look(payload: bytes) -> Call:
    return Call(RANGE, payload)


def grant(lease: int, seconds: int) -> Call:
    return Call(GRANT, encode({1: seconds, 2: lease}))


def revoke(lease: int) -> Call:
    return Call(REVOKE, encode({1: lease}))


def keep_alive(lease: int) -> Call:
    """Start the ttl of `lease` again. It is a stream with one request.

    Field 3 of the reply is the seconds that it lives from then, 0 if it is dead.
    """
    return Call(KEEP_ALIVE, encode({1: lease}))


def time_to_live(lease: int) -> Call:
    return Call(TIME_TO_LIVE, encode({1: lease}))


def revision_of(reply: Message) -> int:
    """The store's revision when it answered."""
    return number(messages(reply, 1)[0], 3)


def entries_of(reply: Message) -> list[Entry]:
    """What a Range found."""
    return [Entry(text(kv, 1), number(kv, 2), text(kv, 5), number(kv, 6)) for kv in messages(reply, 2)]


def ranges_of(reply: Message) -> list[list[Entry]]:
    """What the Ranges of a transaction found, in their order."""
    return [entries_of(found) for answer in messages(reply, 3) for found in messages(answer, 1)]


def deleted_of(reply: Message) -> list[Entry]:
    """What the deletion of a transaction deleted."""
    return [
        Entry(text(kv, 1), number(kv, 2), text(kv, 5), number(kv, 6))
        for answer in messages(reply, 3)
        for deletion in messages(answer, 3)
        for kv in messages(deletion, 3)
    ]


def succeeded(reply: Message) -> bool:
    return number(reply, 2) == 1


def label(token: str, owner: str) -> bytes:
    """The value of our keys, for people: who it is. Other software leaves it empty."""
    return b'{"token": %b, "owner": %b}' % (json.dumps(token).encode(), json.dumps(owner).encode())


def said_by(entry: Entry) -> tuple[str | None, str | None]:
    """The token and owner that the value of `entry` names; `None` if it is not one of ours."""
    try:
        said: Any = json.loads(entry.value)
        token, owner = said["token"], said["owner"]
    except (ValueError, TypeError, LookupError, RecursionError):  # whatever somebody has put there
        return None, None
    if not isinstance(token, str) or not isinstance(owner, str):
        return None, None
    return token, owner


def seconds_for(ttl: float) -> int:
    """What to ask of a lease: whole seconds, rounded up, since it must not end before its lock does; and `ROOM`."""
    return max(1, -int(-ttl // 1)) + ROOM
