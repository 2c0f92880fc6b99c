"""What people ask of etcd: its locks and their queues, and how the cluster is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import BackendRefused
from . import Steps, Unknown
from ._admin import Finding, Seen, Waiting, text_of
from ._etcd_recipe import Attempt, Entry, Fault, Place, entries_of, look, said_by, time_to_live
from ._etcd_steps import checked, shown
from ._etcd_wire import Message, encode, messages, number, text
from ._grpc import Call

if TYPE_CHECKING:
    from .etcd import EtcdBackend

_STATUS, _ALARM = "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Alarm"
_MEMBERS = "/etcdserverpb.Cluster/MemberList"
_ALARMS = {1: "NOSPACE", 2: "CORRUPT"}
_NEARLY_FULL = 0.8


def held(backend: EtcdBackend, prefix: str) -> Steps[list[Seen]]:  # noqa: ARG001  # the cluster is the channel's
    start = prefix.encode("utf-8", "surrogatepass") or b"\0"
    queues: dict[bytes, list[Entry]] = {}
    for entry in entries_of(checked((yield look(encode({1: start, 2: _end(start), 5: 1, 6: 2}))))):
        lock = entry.key.rpartition(b"/")[0]
        name = text_of(lock)
        if name and Place(name).counts(entry.key):
            queues.setdefault(lock, []).append(entry)
    found = []
    for lock in sorted(queues):
        found.append((yield from _seen(lock, queues[lock])))
    return found


def seen(backend: EtcdBackend, key: str) -> Steps[Seen | None]:  # noqa: ARG001
    place = Place(key)
    queue = [entry for entry in entries_of(checked((yield look(place.all())))) if place.counts(entry.key)]
    return (yield from _seen(place.prefix[:-1], queue)) if queue else None


def _end(start: bytes) -> bytes:
    """The end of the range of keys that begin with `start`; "\\0" is the end of all."""
    stem = start.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem.strip(b"\0") else b"\0"


def _seen(lock: bytes, queue: list[Entry]) -> Steps[Seen]:
    first, *rest = queue
    left = None
    if first.lease:
        reply = checked((yield time_to_live(first.lease)))
        seconds = number(reply, 3)
        left = float(min(seconds + 1, number(reply, 4))) if seconds < 1 << 63 else 0.0
    waiting = tuple(Waiting(said_by(entry)[1], None) for entry in rest)
    return Seen(text_of(lock) or "", shown(first, left), None, waiting, bool(waiting))


def diagnose(backend: EtcdBackend) -> Steps[list[Finding]]:
    status = yield Attempt(Call(_STATUS, b""))
    alarms = yield Attempt(Call(_ALARM, b""))
    members = yield Attempt(Call(_MEMBERS, b""))
    found = [*_state(status), *_members(members, len(backend._target.endpoints)), *_raised(alarms)]
    # A read that the cluster has to agree on: without a majority there is no answer.
    quorum = yield Attempt(look(encode({1: b"atomiclock:doctor", 9: 1})))
    if isinstance(quorum, (Exception, Fault)):
        found.append(Finding("bad", f"no majority answers: {_why(quorum)}", "start the missing members"))
    else:
        found.append(Finding("ok", "a majority of the members answers"))
    return found


def _why(reply: Any) -> str:
    return reply.text if isinstance(reply, Fault) else str(reply)


def _state(reply: Any) -> list[Finding]:
    if isinstance(reply, (Unknown, BackendRefused, Fault)):
        return [Finding("note", f"its status cannot be asked for: {_why(reply)}")]
    message: Message = reply
    size, quota = number(message, 3), number(message, 12)
    found = [Finding("ok", f"etcd {text(message, 2).decode()}, {size / 2**20:.1f} MiB of data")]
    if not number(message, 4):
        found.append(Finding("bad", "there is no leader: no lock can be acquired or renewed", "start a majority"))
    if quota and size > _NEARLY_FULL * quota:
        advice = "compact and defragment it, or raise --quota-backend-bytes"
        found.append(Finding("warn", f"{size / quota:.0%} of its quota of {quota / 2**20:.0f} MiB are used", advice))
    elif quota:
        found.append(Finding("ok", f"{size / quota:.0%} of its quota of {quota / 2**20:.0f} MiB are used"))
    else:
        found.append(Finding("note", "this version does not tell its quota, which is 2 GiB unless it was changed"))
    return found


def _members(reply: Any, given: int) -> list[Finding]:
    if isinstance(reply, (Unknown, BackendRefused, Fault)):
        return [Finding("note", f"its members cannot be asked for: {_why(reply)}")]
    number_of = len([member for member in messages(reply, 2) if not number(member, 5)])
    if number_of == 1:
        return [
            Finding("note", "one member: when it is down, no lock can be had", "three members survive one that fails")
        ]
    found = [Finding("ok", f"{number_of} members: {(number_of - 1) // 2} may fail")]
    if number_of % 2 == 0:
        found.append(Finding("note", "an even number of members survives no more failures than one less"))
    if given < number_of:
        advice = "name all in the URL: etcd://h1:2379,h2:2379,h3:2379"
        found.append(Finding("note", f"the URL names {given} of {number_of} members", advice))
    return found


def _raised(reply: Any) -> list[Finding]:
    if isinstance(reply, (Unknown, BackendRefused, Fault)):
        return []
    names = sorted({_ALARMS.get(number(alarm, 2), "unknown") for alarm in messages(reply, 2)})
    if not names:
        return [Finding("ok", "no alarm")]
    return [Finding("bad", f"alarm {', '.join(names)}: it refuses writes", "make room, then: etcdctl alarm disarm")]
