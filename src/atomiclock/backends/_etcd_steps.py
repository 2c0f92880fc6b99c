"""The steps that etcd's verbs are made of: each talks to the store, and returns what it found.

What an adapter noted of a token (`notes`): `own`, the lease that names our key; `lease`, the one that it is bound to if
it is another (after an extension to another ttl); `seconds`, what that was asked for, and `since`, when its ttl last
began; `revision`, our place in the queue; `before`, whom we watch, and `turn`, that nobody is left there; `leases`,
all others that were granted for it; `open`, the verbs that have begun and not ended. Few words: ten thousand have them.
"""

from __future__ import annotations

from typing import Any

from .. import _process
from ..errors import BackendRefused
from . import Add, Busy, Granted, Holder, Notes, Steps, T, Unknown
from ._etcd_recipe import (
    EXISTS,
    NOT_FOUND,
    Attempt,
    Before,
    Entry,
    Fault,
    KeepAlive,
    Place,
    entries_of,
    grant,
    keep_alive,
    label,
    look,
    op,
    ranges_of,
    revision_of,
    revoke,
    said_by,
    seconds_for,
    succeeded,
    txn,
)
from ._etcd_spares import FACTS, new_lease
from ._etcd_wire import Message, number
from ._grpc import Call


def checked(reply: Any) -> Message:
    """`reply`, unless it is a fault that nobody expected here."""
    if isinstance(reply, Fault):
        raise Unknown(f"etcd answered: {reply.text}")
    message: Message = reply
    return message


class Gone(Unknown):
    """A lease had ended before it was used: the machine slept, or the attempt was given up elsewhere."""


def begin(place: Place, notes: Notes, ask: Add) -> Steps[Granted | Busy | None]:
    """Grant the lease. If there is one already, an earlier request of this token did it: the answer to that."""
    seconds, sent = seconds_for(ask.ttl), _process.clock()
    reply = yield grant(place.lease, seconds)
    if not (isinstance(reply, Fault) and reply.means(EXISTS)):
        checked(reply)
        notes.pop("lease", None)
        notes.update(seconds=seconds, since=sent)
        return None
    return (yield from after_grant(place, _resume(place, notes, ask)))


def _resume(place: Place, notes: Notes, ask: Add) -> Steps[Granted | Busy | None]:
    known = yield from ask_again(place, notes, ask.ttl)
    if known is None:  # the lease is there, and no key
        sent = _process.clock()
        left, _ = yield KeepAlive(place.lease, look(place.mine()))
        if not left:
            raise Unknown("its lease ended at that moment")
        notes.pop("lease", None)
        notes.update(seconds=seconds_for(ask.ttl), since=sent)
    return known


def after_grant(place: Place, steps: Steps[T], spare: bool = False) -> Steps[T]:
    """What `steps` return. If they fail: the lease is there, if nothing else, and must not be forgotten.

    But for a `spare`, if the first request did not leave: that changed nothing.
    """
    value: Any = None
    while True:
        try:
            request = steps.send(value)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # the steps' own T
        value = yield Attempt(request)
        if isinstance(value, Unknown):
            value.sent = value.sent or not spare
            raise value
        spare = False
        if isinstance(value, BackendRefused):  # which is believed to leave nothing
            yield revoke(place.lease)
            raise value


def end(lease: int) -> Steps[None]:
    """Revoke `lease`, unless it is gone. That this failed is no sign that nothing of its token is there."""
    done = yield Attempt(revoke(lease))
    if isinstance(done, Unknown):
        done.sent = True
    if isinstance(done, Exception):
        raise done
    if not (isinstance(done, Fault) and done.means(NOT_FOUND)):
        checked(done)


def fresh(notes: Notes, ttl: float) -> bool:
    """Whether our lease lives `ttl` seconds from now, as it is."""
    return bool(notes["since"] + notes["seconds"] >= _process.clock() + ttl)


def _put(place: Place, notes: Notes, ttl: float, call: Call) -> Steps[Message]:
    """The reply to `call`, which puts our key on a lease that lives `ttl` seconds from now."""
    if not fresh(notes, ttl):
        sent = _process.clock()
        if not number(checked((yield keep_alive(place.lease))), 3):
            raise Gone("its lease ended before it was used")
        notes["since"] = sent
    return _used((yield call))


def _used(reply: Any) -> Message:
    """The reply to a put, whose lease may be gone."""
    if isinstance(reply, Fault) and reply.means(NOT_FOUND):
        raise Gone("its lease ended before it was used")
    return checked(reply)


def take(place: Place, notes: Notes, ask: Add) -> Steps[Granted | Busy]:
    """Put our key if nobody has one; if somebody has, there is none of ours, unless `notes` have a revision."""
    reply = yield from _put(place, notes, ask.ttl, place.to_take(label(ask.token, ask.owner)))
    if succeeded(reply):
        return _granted(notes, revision_of(reply))
    holder = next((entry for entry in ranges_of(reply)[0] if place.counts(entry.key)), None)
    if holder is None or holder.key == place.own:  # keys that do not count, or a put whose answer was lost
        return (yield from enter(place, notes, ask))
    return busy(holder)


def enter(place: Place, notes: Notes, ask: Add) -> Steps[Granted | Busy]:
    """Put our key at the end of the queue; if there is one, look who is before it, in the same transaction."""
    reply = yield from _put(place, notes, ask.ttl, place.to_enter(label(ask.token, ask.owner)))
    now = revision_of(reply)
    if succeeded(reply):
        return _granted(notes, now)
    first, last = ranges_of(reply)
    if not any(entry.key == place.own and entry.revision == now for entry in last):
        # It was there, put by a request whose answer was lost: its place is that of the first put.
        known = yield from ask_again(place, notes, ask.ttl)
        if known is None:
            raise Unknown("its key vanished at that moment")
        return known
    notes["revision"] = now
    return (yield from _standing(place, notes, [*first, *last], now))


def ask_again(place: Place, notes: Notes, ttl: float) -> Steps[Granted | Busy | None]:
    """How a key that we put earlier stands now, with `ttl` seconds to live. `None` if there is none any more."""
    answered = "revision" in notes
    if not answered:
        entry = yield from _own(place)
        if entry is None:
            return None
        _found(place, notes, entry)
    around = [op(look=place.mine()), op(look=place.first()), op(look=place.last_two(notes["revision"]))]
    reply = yield from renew(place, notes, ttl, txn([], [*around], []), as_it_is=True)
    if reply is None:
        for fact in FACTS:
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
    last, first = max(before, key=_revision), min(before, key=_revision)
    notes["before"] = Before(last.key, seen, last == first)
    return busy(first)


def _revision(entry: Entry) -> int:
    return entry.revision


def _granted(notes: Notes, revision: int) -> Granted:
    notes["revision"] = revision
    notes.pop("before", None)
    return Granted(revision)


def busy(holder: Entry) -> Busy:
    return Busy(None, said_by(holder)[1])


def renew(place: Place, notes: Notes, ttl: float, beside: Call, as_it_is: bool = False) -> Steps[Message | None]:
    """Let our key live `ttl` seconds from now. The reply to `beside`, which finds our key first; `None` if it is gone.

    `as_it_is`: nothing is sent for that if it lives so long anyway.
    """
    seconds = seconds_for(ttl)
    for _ in range(3):
        lease = notes.get("lease") or (place.lease if "since" in notes else 0)
        if not lease:
            entry = yield from _own(place)
            if entry is None:
                return None
            _found(place, notes, entry)
            lease = notes.get("lease", place.lease)
        sent, left = _process.clock(), seconds
        if as_it_is and notes.get("seconds") == seconds and "since" in notes and fresh(notes, ttl):
            reply = yield beside
            sent = notes["since"]
        else:
            left, reply = yield KeepAlive(lease, beside)
        found = (ranges_of(checked(reply)) or [entries_of(reply)])[0]
        if not found or found[0].revision != notes.setdefault("revision", found[0].revision):
            return None
        ours = is_ours(place, notes, found[0])
        if ours and found[0].lease != lease:  # an extension to another ttl, whose answer was lost
            _forget_lease(notes)
            continue
        if ours and not left:
            return None
        # Which may be less than the least that the cluster grants; the lease of somebody else may be shorter.
        if ours and notes.get("seconds", left) == seconds <= left:
            notes.update(seconds=seconds, since=sent)
            return checked(reply)
        if not (yield from _change_ttl(place, notes, found[0], seconds)):
            return None
    raise Unknown("its lease changed again and again")


def _change_ttl(place: Place, notes: Notes, entry: Entry, seconds: int) -> Steps[bool]:
    """Move our key to a new lease: the ttl of one never changes, and one that somebody else has put the key on may end
    at any time. False if the key is gone."""
    lease, sent = new_lease(), _process.clock()
    notes.setdefault("leases", []).append(lease)  # noted first: it is revoked with the others, whatever happens here
    checked((yield grant(lease, seconds)))
    reply = _used((yield txn(place.mine_is_still(entry), [place.put(entry.value, lease)], [])))
    if not succeeded(reply):
        yield revoke(lease)
        _forget_lease(notes)
        return True  # somebody else changed the lease: look again
    ours = is_ours(place, notes, entry)
    notes.update(lease=lease, seconds=seconds, since=sent)
    if ours:
        done = yield revoke(entry.lease)
        if entry.lease in notes["leases"] and not isinstance(done, Fault):  # else a release would end it once more
            notes["leases"].remove(entry.lease)
    return True


def is_ours(place: Place, notes: Notes, entry: Entry) -> bool:
    """Whether our key is on a lease of ours. Anybody can put it on another one or on none, and it is our place still:
    the create revision, by which the recipe goes, stays. What else is on that lease is not ours to prolong or to end.

    Who did not note what he was granted goes by the token in its value.
    """
    if "own" in notes and "seconds" in notes:
        return entry.lease in (place.lease, *notes.get("leases", ()))
    return entry.lease == place.lease or (entry.lease != 0 and said_by(entry)[0] == place.token)


def _found(place: Place, notes: Notes, entry: Entry) -> None:
    """Note that our key is there."""
    notes["revision"] = entry.revision
    if is_ours(place, notes, entry):
        notes["lease"] = entry.lease


def _forget_lease(notes: Notes) -> None:
    notes.pop("lease", None)
    notes.pop("since", None)


def _own(place: Place) -> Steps[Entry | None]:
    found = entries_of(checked((yield look(place.mine()))))
    return found[0] if found else None


def holder_of(place: Place) -> Steps[Entry | None]:
    """The first of the queue."""
    found = entries_of(checked((yield look(place.first()))))
    if found and not place.counts(found[0].key):
        found = [entry for entry in entries_of(checked((yield look(place.all())))) if place.counts(entry.key)]
    return found[0] if found else None


def found_by_token(place: Place) -> Steps[Entry | None]:
    """The entry of a token of which nothing is noted: it is said in its value, or names the lease."""
    queue = entries_of(checked((yield look(place.all()))))
    return next((one for one in queue if place.counts(one.key) and shown(one, None).token == place.token), None)


def find_before(place: Place, notes: Notes) -> Steps[None]:
    """Note which key is just before ours, if any."""
    reply = checked((yield look(place.all())))
    queue = [entry for entry in entries_of(reply) if place.counts(entry.key)]
    mine = next((entry for entry in queue if entry.key == place.own), None)
    before = [entry for entry in queue if mine is not None and entry.revision < mine.revision]
    if before:
        notes["before"] = Before(before[-1].key, revision_of(reply), len(before) == 1)


def shown(entry: Entry, remaining: float | None) -> Holder:
    token, owner = said_by(entry)
    return Holder(owner, token or entry.key.rpartition(b"/")[2].decode(), entry.revision, remaining)
