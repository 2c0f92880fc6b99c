"""A prefork worker's main process looks after the leases of its children.

It renews in the place of a child that cannot, and it frees what a child that died has held, once the process is
certainly dead. It talks to the store for nothing else: as long as the children are well it costs a look at a page of
memory a few times in a ttl.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from dataclasses import dataclass
from typing import Any

from .._api import manager_for
from .._hold import NEVER, margin
from .._process import clock
from ..backends import Unknown
from ..errors import LockError
from ._board import Board
from ._keeping import drop
from ._names import within
from ._report import log, reporter
from ._waiting import is_revoked, place

LATE = 0.55
"""The part of a ttl that a lease may have left before the main process renews it. A child that is well renews with two
thirds left."""
TICK = 0.5
"""Seconds between looks at processes for which the kernel gives no descriptor."""


@dataclass
class Told:
    """What a child said of one lease."""

    pid: int
    seat: int | None
    token: str
    url: str
    namespace: str | None
    name: str
    task: str
    id: str | None
    ttl: float
    until: float | None
    hold: Any = None
    freeing_until: float | None = None
    """Until when to go on removing it: the child is dead, or could not make sure of it."""
    dead: bool = False


@dataclass
class Waiting:
    """What a child said of a call that comes again: it has the place of the one which waits, or keeps its lock."""

    id: str
    url: str
    namespace: str | None
    name: str
    until: float
    kept: str | None


class Supervisor:
    """A thread of the main process. `board` is what its children were forked with."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.leases: dict[str, Told] = {}
        self.waiting: dict[str, Waiting] = {}  # by the call's id
        self._children: dict[int, int | None] = {}  # pid: the descriptor that becomes readable when it has ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atomiclock-supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it, after a last look for what dead children left."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._step(0.0)
        for pid in list(self._children):
            self._forget(pid)

    def held(self) -> list[dict[str, Any]]:
        """What the children hold, as far as they have said."""
        found = []
        for told in list(self.leases.values()):
            seat = self.board.seat(told.seat)
            if told.freeing_until is None and (seat is None or (seat.own(told.token) or 0.0) > clock()):
                found.append({"name": told.name, "task": told.task, "id": told.id, "pid": told.pid})
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._step(self._patience())
            except Exception:  # a mistake here must not end the renewal of everybody's leases
                log.exception("the supervisor of locks goes on after an error")
                self._stop.wait(TICK)

    def _patience(self) -> float:
        """Seconds until a look is due although nobody says anything."""
        if not self.leases:
            return TICK
        return min(TICK, *(told.ttl / 10 for told in self.leases.values()))

    def _step(self, patience: float) -> None:
        descriptors = [fd for fd in self._children.values() if fd is not None]
        with contextlib.suppress(InterruptedError):
            poll = select.poll()
            for fd in (self.board.reader, *descriptors):
                poll.register(fd, select.POLLIN)
            poll.poll(patience * 1000)
        dead = [pid for pid, fd in self._children.items() if _has_ended(pid, fd)]
        for facts in self.board.told():  # after the look: what the dead said last is all here
            self._hear(facts)
        for pid in dead:
            self._bury(pid)
        for told in list(self.leases.values()):
            if told.freeing_until is not None:
                self._free(told)
            else:
                self._renew_if_late(told)
        for task_id, waiting in list(self.waiting.items()):
            if clock() >= waiting.until or is_revoked(task_id):
                self._end_wait(waiting)

    def _hear(self, facts: dict[str, Any]) -> None:
        say, pid = facts.pop("say"), facts["pid"]
        if say == "waits":
            del facts["pid"]
            self.waiting[facts["id"]] = Waiting(**facts)
        if say == "event":
            reporter.emit(facts["kind"], facts["event"])
        elif say == "try":
            self.leases[facts["token"]] = Told(**facts)
            if pid not in self._children:
                self._children[pid] = _descriptor(pid)
        elif say == "got" and facts["token"] in self.leases:
            self.leases[facts["token"]].until = facts["until"]
        elif say == "gone":
            self.leases.pop(facts["token"], None)
        elif say == "left" and facts["token"] in self.leases:
            told = self.leases[facts["token"]]
            told.freeing_until = clock() + 2 * told.ttl

    def _bury(self, pid: int) -> None:
        for told in self.leases.values():
            if told.pid == pid:
                told.dead = True
                told.freeing_until = clock() + 2 * told.ttl
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        self.board.forget(pid)
        descriptor = self._children.pop(pid, None)
        if descriptor is not None:
            os.close(descriptor)

    def _renew_if_late(self, told: Told) -> None:
        seat, now = self.board.seat(told.seat), clock()
        if seat is None or (told.until is not None and now >= told.until):
            return
        end = seat.own(told.token)
        if end is None or end == NEVER:  # it has not got it yet, or no more
            return
        end = max(end, seat.parents(told.token) or end)
        if not now < end < now + LATE * told.ttl:
            return
        with contextlib.suppress(Unknown, LockError):  # it is asked again at the next look
            manager = manager_for(told.url)
            if manager._extend_token(self._hold(told), now + max(0.05, min(1.0, (end - now) / 2))):
                seat.put_parents(told.token, now + told.ttl - margin(told.ttl))

    def _free(self, told: Told) -> None:
        """Remove what it may have left, until the store says that nothing of it is there."""
        if told.freeing_until is None or clock() >= told.freeing_until:
            self.leases.pop(told.token, None)
            return
        with contextlib.suppress(Unknown, LockError):  # it is asked again at the next look
            removed = manager_for(told.url)._remove_token(self._hold(told), clock() + 1.0, in_flight=1)
            self.leases.pop(told.token, None)
            if removed and told.dead:
                log.warning("freed the lock %r: its task's process %s is dead", told.name, told.pid)
                reporter.tell("lock_freed", told.task, told.id, told.name, reason="its process is dead", pid=told.pid)

    def _end_wait(self, call: Waiting) -> None:
        """Forget it when its time is over; if it was revoked, give back what it has, so that others may have that."""
        with contextlib.suppress(Unknown, LockError):  # it is asked again at the next look
            if clock() < call.until and call.kept is not None:
                drop(call.url, call.namespace, call.name, call.id, call.kept)
            elif clock() < call.until:
                place(manager_for(call.url), call.name, call.namespace, call.id).remove_by(clock() + 1.0)
            del self.waiting[call.id]

    def _hold(self, told: Told) -> Any:
        if told.hold is None:
            given: dict[str, Any] = {"ttl": told.ttl, "on_lost": None, **within(told.namespace)}
            told.hold = manager_for(told.url)._adopt(told.name, told.token, given)
        return told.hold


def _descriptor(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # an older kernel, or it is dead already
        return None


def _has_ended(pid: int, descriptor: int | None) -> bool:
    """Whether the process is dead, buried or not."""
    if descriptor is not None:
        return bool(select.select([descriptor], [], [], 0)[0])
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
