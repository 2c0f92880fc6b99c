"""The steps that etcd's verbs are made of: each talks to the store, and returns what it found.

What an adapter noted of a token (`notes`): `lease` and `seconds`, the lease of our key and the ttl it was asked
for; `revision`, our place in the queue; `before`, whom we watch; `leases`, all others that were granted for it.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import BackendRefused
from . import Add, Busy, Granted, Holder, Notes, Steps, T, Unknown
from ._etcd_recipe import (
    EXISTS,
    NOT_FOUND,
    Attempt,
    Call,
    Entry,
    Fault,
    KeepAlive,
    Place,
    entries_of,
    grant,
    label,
    look,
    op,
    ranges_of,
    revision_of,
    revoke,
    said_by,
    succeeded,
    txn,
    whole_seconds,
)
from ._etcd_wire import Message


def checked(reply: Any) -> Message:
    """`reply`, unless it is a fault that nobody expected here."""
    if isinstance(reply, Fault):
        raise Unknown(f"etcd answered: {reply.text}")
    message: Message = reply
    return message


def begin(place: Place, notes: Notes, seconds: int) -> Steps[Granted | Busy | None]:
    """Grant the lease. If there is one already, an earlier request of this token did it: the answer to that."""
    reply = yield grant(place.lease, seconds)
    if not (isinstance(reply, Fault) and reply.means(EXISTS)):
        checked(reply)
        notes.update(lease=place.lease, seconds=seconds)
        return None
    return (yield from after_grant(place, _resume(place, notes, seconds)))


def _resume(place: Place, notes: Notes, seconds: int) -> Steps[Granted | Busy | None]:
    known = yield from ask_again(place, notes, seconds)
    if known is None:  # the lease is there, and no key
        left, _ = yield KeepAlive(place.lease, look(place.mine()))
        if not left:
            raise Unknown("its lease ended at that moment")
        notes.update(lease=place.lease, seconds=seconds)
    return known


def after_grant(place: Place, steps: Steps[T]) -> Steps[T]:
    """What `steps` return. If they fail: the lease is there, if nothing else, and must not be forgotten."""
    value: Any = None
    while True:
        try:
            request = steps.send(value)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # the steps' own T
        value = yield Attempt(request)
        if isinstance(value, Unknown):
            value.sent = True
            raise value
        if isinstance(value, BackendRefused):  # which is believed to leave nothing
            yield revoke(place.lease)
            raise value


def take(place: Place, notes: Notes, ask: Add) -> Steps[Granted | Busy]:
    """Put our key if nobody has one; else leave nothing."""
    put = place.put(label(ask.token, ask.owner), place.lease)
    reply = _usable((yield txn([place.nobody_has_any()], [put], [op(look=place.first())])))
    if succeeded(reply):
        return _granted(notes, revision_of(reply))
    holder = next((entry for entry in ranges_of(reply)[0] if place.counts(entry.key)), None)
    answer: Granted | Busy
    if holder is None or holder.key == place.own:  # keys that do not count, or a put whose answer was lost
        answer = yield from enter(place, notes, ask)
        if isinstance(answer, Granted):
            return answer
    else:
        answer = busy(holder)
    done = yield revoke(place.lease)
    if not (isinstance(done, Fault) and done.means(NOT_FOUND)):
        checked(done)
    return answer


def enter(place: Place, notes: Notes, ask: Add) -> Steps[Granted | Busy]:
    """Put our key at the end of the queue; if there is one, look who is before it, in the same transaction."""
    put = place.put(label(ask.token, ask.owner), place.lease)
    queued = [put, op(look=place.first()), op(look=place.last_two())]
    reply = _usable((yield txn([place.nobody_has_any()], [put], [*queued])))
    now = revision_of(reply)
    if succeeded(reply):
        return _granted(notes, now)
    first, last = ranges_of(reply)
    if not any(entry.key == place.own and entry.revision == now for entry in last):
        # It was there, put by a request whose answer was lost: its place is that of the first put.
        known = yield from ask_again(place, notes, whole_seconds(ask.ttl))
        if known is None:
            raise Unknown("its key vanished at that moment")
        return known
    notes["revision"] = now
    return (yield from _standing(place, notes, [*first, *last], now))


def _usable(reply: Any) -> Message:
    """The reply to a put, whose lease may be gone: the machine slept, or the attempt was given up elsewhere."""
    if isinstance(reply, Fault) and reply.means(NOT_FOUND):
        raise Unknown("its lease ended before it was used")
    return checked(reply)


def ask_again(place: Place, notes: Notes, seconds: int) -> Steps[Granted | Busy | None]:
    """How a key that we put earlier stands now, its lease counting from now. `None` if there is none any more."""
    answered = "revision" in notes
    if not answered:
        entry = yield from _own(place)
        if entry is None:
            return None
        notes.update(lease=entry.lease, revision=entry.revision)
    around = [op(look=place.mine()), op(look=place.first()), op(look=place.last_two(notes["revision"]))]
    reply = yield from renew(place, notes, seconds, txn([], [*around], []))
    if reply is None:
        for fact in ("lease", "revision", "seconds"):
            notes.pop(fact, None)
        return None
    _, first, last = ranges_of(reply)
    standing = yield from _standing(place, notes, [*first, *last], revision_of(reply))
    if isinstance(standing, Granted) and not answered:
        return standing._replace(repeated=True)
    return standing


def _standing(place: Place, notes: Notes, around: list[Entry], seen: int) -> Steps[Granted | Busy]:
    """What it means that our key is among `around`: the first of the queue, our own, and the one before it."""
    if not all(place.counts(entry.key) for entry in around):  # those may hide one that counts
        reply = checked((yield look(place.all())))
        around = [entry for entry in entries_of(reply) if place.counts(entry.key)]
        seen = revision_of(reply)
    before = [entry for entry in around if entry.revision < notes["revision"]]
    if not before:
        return _granted(notes, notes["revision"])
    notes["before"] = (max(before, key=_revision).key, seen + 1)
    return busy(min(before, key=_revision))


def _revision(entry: Entry) -> int:
    return entry.revision


def _granted(notes: Notes, revision: int) -> Granted:
    notes["revision"] = revision
    notes.pop("before", None)
    return Granted(revision)


def busy(holder: Entry) -> Busy:
    return Busy(None, said_by(holder)[1])


def renew(place: Place, notes: Notes, seconds: int, beside: Call) -> Steps[Message | None]:
    """Let our key live `seconds` from now. The reply to `beside`, which finds our key first; `None` if it is gone."""
    for _ in range(3):
        if "lease" not in notes:
            entry = yield from _own(place)
            if entry is None:
                return None
            notes.update(lease=entry.lease, revision=entry.revision)
        left, reply = yield KeepAlive(notes["lease"], beside)
        found = (ranges_of(checked(reply)) or [entries_of(reply)])[0]
        if not found or found[0].revision != notes.setdefault("revision", found[0].revision):
            return None
        if found[0].lease != notes["lease"]:  # an extension to another ttl, whose answer was lost
            del notes["lease"]
        elif not left:
            return None
        elif notes.get("seconds", left) == seconds:  # which may be less than the least that the cluster grants
            notes["seconds"] = seconds
            return checked(reply)
        elif not (yield from _change_ttl(place, notes, found[0], seconds)):
            return None
    raise Unknown("its lease changed again and again")


def _change_ttl(place: Place, notes: Notes, entry: Entry, seconds: int) -> Steps[bool]:
    """Move our key to a new lease, since the ttl of one never changes. False if the key is gone."""
    lease = int.from_bytes(os.urandom(8), "big") >> 1 or 1
    notes.setdefault("leases", []).append(lease)  # noted first: it is revoked with the others, whatever happens here
    checked((yield grant(lease, seconds)))
    reply = _usable((yield txn(place.mine_is_still(entry), [place.put(entry.value, lease)], [])))
    if not succeeded(reply):
        yield revoke(lease)
        del notes["lease"]
        return True  # somebody else changed the lease: look again
    notes.update(lease=lease, seconds=seconds)
    yield revoke(entry.lease)
    return True


def _own(place: Place) -> Steps[Entry | None]:
    found = entries_of(checked((yield look(place.mine()))))
    return found[0] if found else None


def holder_of(place: Place) -> Steps[Entry | None]:
    """The first of the queue."""
    found = entries_of(checked((yield look(place.first()))))
    if found and not place.counts(found[0].key):
        found = [entry for entry in entries_of(checked((yield look(place.all())))) if place.counts(entry.key)]
    return found[0] if found else None


def find_before(place: Place, notes: Notes) -> Steps[None]:
    """Note which key is just before ours, if any."""
    reply = checked((yield look(place.all())))
    queue = [entry for entry in entries_of(reply) if place.counts(entry.key)]
    mine = next((entry for entry in queue if entry.key == place.own), None)
    before = [entry for entry in queue if mine is not None and entry.revision < mine.revision]
    if before:
        notes["before"] = (before[-1].key, revision_of(reply) + 1)


def shown(entry: Entry, remaining: float | None) -> Holder:
    token, owner = said_by(entry)
    return Holder(owner, token or entry.key.rpartition(b"/")[2].decode(), entry.revision, remaining)
