"""etcd://, etcds://: locks on the leases of an etcd cluster, 3.4 or newer.

The recipe is that of etcd's Go client (`_etcd_recipe`), so `etcdctl lock NAME` and a lock here with namespace=""
exclude each other, first come first served. Each grant has a lease of its own, whose id follows from the token: to
ask again after an answer was lost finds what the first request did. The fence is the create revision of our key.

A request that lands after its lease was revoked is refused by the store. What can stay of an attempt nobody heard
the answers to is therefore a lease without a key, until its ttl is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _process
from .._url import URL
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Unknown, Wait
from ._etcd_recipe import (
    NOT_FOUND,
    Attempt,
    Fault,
    Place,
    Watch,
    deleted_of,
    look,
    revoke,
    succeeded,
    time_to_live,
    txn,
    whole_seconds,
)
from ._etcd_steps import after_grant, ask_again, begin, busy, checked, enter, find_before, holder_of, renew, shown, take
from ._etcd_target import Target, target_of_client, target_of_url
from ._etcd_wire import number

if TYPE_CHECKING:
    from . import AsyncChannel, Channel

RECENTLY = 5.0
"""Seconds for which a lock that was found taken is looked at first by a try: a look costs the cluster no proposal,
while a lease for nothing costs three."""


class EtcdBackend:
    """Locks in one etcd cluster."""

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
        self._taken: dict[str, float] = {}  # when a try last found it so

    @classmethod
    def from_url(cls, url: URL) -> EtcdBackend:
        return cls(target_of_url(url))

    @classmethod
    def from_client(cls, client: Any, colour: str) -> EtcdBackend:
        """For the cluster of a python-etcd3 client (or, for tasks, an aetcd client), on connections of our own."""
        return cls(target_of_client(client, colour))

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        place, notes = Place(ask.key, ask.token), {} if ask.notes is None else ask.notes
        if not ask.waiting and self._taken.get(ask.key, 0.0) > _process.clock() - RECENTLY:
            holder = yield from holder_of(place)
            if holder is not None and holder.key != place.own:
                return busy(holder)
        if "revision" in notes:
            known = yield from ask_again(place, notes, whole_seconds(ask.ttl))
            if known is not None:
                return known
        begun = yield from begin(place, notes, whole_seconds(ask.ttl))
        if begun is not None:
            return begun
        answer = yield from after_grant(place, (enter if ask.waiting else take)(place, notes, ask))
        if not ask.waiting:
            self._note(ask.key, isinstance(answer, Busy))
        return answer

    def _note(self, key: str, taken: bool) -> None:
        if not taken:
            self._taken.pop(key, None)
            return
        if len(self._taken) > 1000:
            self._taken = {}
        self._taken[key] = _process.clock()

    def remove(self, ask: Remove) -> Steps[bool]:
        """Whether our key was there, a waiter's too.

        First the key, which says whether it was ours until now and wakes who comes next; then the lease, so that
        nothing stays and what is still on its way is refused. Both at once could end the lease before the look.
        """
        place, notes = Place(ask.key, ask.token), ask.notes or {}
        reply = checked((yield txn([place.mine_is_there()], [place.delete()], [])))
        leases = {place.lease, *notes.get("leases", ()), *[entry.lease for entry in deleted_of(reply)]} - {0}
        for lease in leases:
            done = yield Attempt(revoke(lease))
            if isinstance(done, Unknown):
                done.sent = True  # the key is gone: who finds so next time must know that it was us
            if isinstance(done, Exception):
                raise done
            if not (isinstance(done, Fault) and done.means(NOT_FOUND)):
                checked(done)
        return succeeded(reply)

    def extend(self, ask: Extend) -> Steps[bool]:
        place, notes = Place(ask.key, ask.token), {} if ask.notes is None else ask.notes
        return (yield from renew(place, notes, whole_seconds(ask.ttl), look(place.mine()))) is not None

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
        place, notes = Place(ask.key, ask.token), {} if ask.notes is None else ask.notes
        if "before" not in notes:
            yield from find_before(place, notes)
        before = notes.pop("before", None)
        if before is not None:
            # Our own lease must not end meanwhile: its ttl starts again with the next add.
            key, since = before
            yield Watch(key, since, min(ask.until, _process.clock() + notes.get("seconds", 15) / 3))

    def channel(self) -> Channel:
        from ._etcd_channel import ThreadChannel

        return ThreadChannel(self._target)

    def async_channel(self) -> AsyncChannel:
        from ._etcd_channel import TaskChannel

        return TaskChannel(self._target)
