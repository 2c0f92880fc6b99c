"""etcd://, etcds://: locks on the leases of an etcd cluster, 3.4 or newer.

The recipe is that of etcd's Go client (`_etcd_recipe`), so `etcdctl lock NAME` and a lock here with namespace=""
exclude each other, first come first served. Each grant has a lease to itself, whose id is noted before it is sent: to
ask again after an answer was lost finds what the first request did. The fence is the create revision of our key.
A lease that was given back without doubt serves the next lock (`_etcd_spares`).

A request that lands after its lease was revoked is refused by the store. What can stay of an attempt nobody heard
the answers to is therefore a lease without a key, until its ttl is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _process
from .._url import URL
from . import Add, Busy, Extend, Granted, Holder, Notes, Peek, Remove, Steps, Traits, Unknown, Wait
from ._etcd_channel import ThreadChannel
from ._etcd_recipe import (
    Place,
    Watch,
    deleted_of,
    lease_in,
    lease_of,
    look,
    seconds_for,
    succeeded,
    time_to_live,
    txn,
)
from ._etcd_spares import Spare, Spares, closed, forget, kept, new_lease, opened
from ._etcd_steps import (
    Gone,
    after_grant,
    ask_again,
    begin,
    busy,
    checked,
    end,
    enter,
    find_before,
    found_by_token,
    fresh,
    holder_of,
    is_ours,
    renew,
    shown,
    take,
)
from ._etcd_target import Target, target_of_client, target_of_url
from ._etcd_wire import number

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

RECENTLY = 5.0
"""Seconds for which a lock that was found taken is looked at first by a try: a look costs the cluster no proposal,
while a put for nothing costs one."""


class EtcdBackend:
    """Locks in one etcd cluster."""

    exact_fence = True  # the create revision, which other software knows too
    pipelines = True

    traits = Traits(
        scope="network",
        fence="durable",
        waits="wake",
        survives_restart="yes",
        ttl_step=1.0,
        longest_ttl=1e9,
        loses="a restore from a backup; a deletion of its key by others",
    )

    def __init__(self, target: Target) -> None:
        self._target = target
        self.place = target.place
        self.request_bound = target.bound
        self._spares = Spares()
        self._taken: dict[str, float] = {}  # when a try last found it so

    @classmethod
    def from_url(cls, url: URL) -> EtcdBackend:
        return cls(target_of_url(url))

    @classmethod
    def from_client(cls, client: Any, colour: str) -> EtcdBackend:
        """For the cluster of a python-etcd3 client (or, for tasks, an aetcd client), on connections of our own."""
        return cls(target_of_client(client, colour))

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        # Who notes nothing gets a lease that follows from the token, so that the next ask finds it; it is never kept.
        notes: Notes = {"own": lease_of(ask.token), "open": (None,)} if ask.notes is None else ask.notes
        mark = opened(notes)
        if not ask.waiting and self._taken.get(ask.key, 0.0) > _process.clock() - RECENTLY:
            place = Place(ask.key, ask.token, notes.get("own"))
            holder = yield from holder_of(place)
            if holder is not None and holder.key != place.own:
                closed(notes, mark)
                return busy(holder)
        answer = yield from self._add(ask, notes, mark)
        if not ask.waiting:
            self._note(ask.key, isinstance(answer, Busy))
            if isinstance(answer, Busy) and ("revision" in notes or not kept(self._spares, notes, mark)):
                yield from end(notes["own"])
                forget(notes)
        closed(notes, mark)
        return answer

    def _add(self, ask: Add, notes: Notes, mark: object) -> Steps[Granted | Busy]:
        if notes.pop("turn", False) and fresh(notes, ask.ttl):
            return Granted(notes["revision"])
        if "revision" in notes:
            known = yield from ask_again(Place(ask.key, ask.token, notes["own"]), notes, ask.ttl)
            if known is not None:
                return known
        elif "own" not in notes and (spare := self._spares.take(seconds_for(ask.ttl))) is not None:
            try:
                return (yield from self._add_on(spare, ask, notes))
            except Gone:
                forget(notes)
            except Unknown as error:
                if not error.sent:
                    kept(self._spares, notes, mark)
                    forget(notes)
                    closed(notes, mark)
                raise
        place = Place(ask.key, ask.token, notes.setdefault("own", new_lease()))
        begun = yield from begin(place, notes, ask)
        if begun is not None:
            return begun
        return (yield from after_grant(place, (enter if ask.waiting else take)(place, notes, ask)))

    def _add_on(self, spare: Spare, ask: Add, notes: Notes) -> Steps[Granted | Busy]:
        notes.update(own=spare.lease, seconds=seconds_for(ask.ttl), since=spare.since)
        place = Place(ask.key, ask.token, spare.lease)
        return (yield from after_grant(place, (enter if ask.waiting else take)(place, notes, ask), spare=True))

    def _note(self, key: str, taken: bool) -> None:
        if not taken:
            self._taken.pop(key, None)
            return
        if len(self._taken) > 1000:
            self._taken = {}
        self._taken[key] = _process.clock()

    def remove(self, ask: Remove) -> Steps[bool]:
        """Whether our key was there, a waiter's too.

        First the key, which says whether it was ours until now and wakes who comes next; then the lease, unless it is
        kept, so that nothing stays and what is still on its way is refused. Both at once could end the lease before
        the look.
        """
        notes = {} if ask.notes is None else ask.notes
        nothing_known, mark = not notes, opened(notes)
        place, revision = yield from self._find(ask, notes)
        mine = place.mine_is_there() if revision is None else place.mine_is_of(revision)
        known = "since" in notes and "leases" not in notes  # else an extension may have moved it to another lease
        reply = checked((yield txn([mine], [place.delete(tell=not known)], [])))
        removed = succeeded(reply)
        if nothing_known and not removed and not ask.in_flight:
            return False  # the lease may be that of somebody with the same token, who is about to put the key
        if not (removed and kept(self._spares, notes, mark)):
            named = {notes.get("own", lease_of(ask.token)), *notes.get("leases", ())}
            for lease in {*named, *[entry.lease for entry in deleted_of(reply) if is_ours(place, notes, entry)]}:
                try:
                    yield from end(lease)
                except Unknown:
                    if not (nothing_known and removed and not ask.in_flight):
                        raise
                    # Whoever asks again would hear that it was not there, and what is left ends by itself.
        closed(notes, mark)
        return removed

    def _find(self, ask: Remove | Extend, notes: Notes) -> Steps[tuple[Place, int | None]]:
        """The place of a token, and the revision of its key if that is known."""
        own = notes.get("own")
        if own is not None:
            return Place(ask.key, ask.token, own), notes.get("revision")
        place = Place(ask.key, ask.token)
        entry = yield from found_by_token(place)
        if entry is None:
            return place, None
        return Place(ask.key, ask.token, lease_in(entry.key)), entry.revision

    def extend(self, ask: Extend) -> Steps[bool]:
        notes = {} if ask.notes is None else ask.notes
        mark = opened(notes)
        place, _ = yield from self._find(ask, notes)
        answer = yield from renew(place, notes, ask.ttl, look(place.mine()))
        closed(notes, mark)
        return answer is not None

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        for _ in range(2):
            entry = yield from holder_of(Place(ask.key))
            if entry is None:
                return None
            if not entry.lease:  # somebody put it there by hand
                return shown(entry, None)
            reply = checked((yield time_to_live(entry.lease)))
            left = number(reply, 3)
            if left < 1 << 63:  # else it is -1: the lease ended between the two
                return shown(entry, float(min(left + 1, number(reply, 4))))  # etcd rounds down
        return None

    def wait(self, ask: Wait) -> Steps[None]:
        notes = {} if ask.notes is None else ask.notes
        if "before" not in notes:
            yield from find_before(Place(ask.key, ask.token, notes.get("own")), notes)
        before = notes.pop("before", None)
        if before is not None:
            # Our own lease must not end meanwhile: its ttl starts again with the next add.
            until = min(ask.until, _process.clock() + notes.get("seconds", 15) / 3)
            last = yield Watch(before.key, before.seen, until, Place(ask.key, ask.token, notes.get("own")).own)
            if last is True and before.alone and "since" in notes:
                notes["turn"] = True

    def channel(self) -> Channel:
        return ThreadChannel(self._target, self._spares)

    def async_channel(self) -> AsyncChannel:
        from ._etcd_tasks import TaskChannel  # this loads asyncio, which threads need not

        return TaskChannel(self._target, self._spares)
