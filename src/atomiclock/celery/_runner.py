"""One call of a protected task, from the question for its lock to the release of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from celery.exceptions import Ignore
from celery.utils.log import get_task_logger

from .._api import manager_for
from .._hold import Hold
from .._process import clock
from .._sync_lease import Lease
from ..errors import BackendRefused, BackendUnavailable, LockError, LockLost, LockTimeout, NotHeld
from . import _done, _supply
from ._abort import strike
from ._body import Run
from ._conflicts import Again, Answer, Conflict, Fail, Queue, Skip, Stand, Where, answer, pause
from ._keeping import ticket, token_in, written
from ._marks import Mark
from ._names import is_own, label, within
from ._report import reporter
from ._rules import STATE, Rules
from ._waiting import place, taken


class LockBusy(LockError):
    """A task's lock is held by somebody else, and its rules say to fail then. Nothing was run.

    `owner` is the holder's label, if the store knows it, and `remaining` the seconds until the lock ends unless it is
    renewed. No `TimeoutError`, as `LockTimeout` is: whoever waits for the result of a chord would be told that his own
    waiting had timed out, since Celery (5.7) takes each one that it meets there for the socket's.
    """

    owner: str | None = None
    remaining: float | None = None


class Call(NamedTuple):
    """A call of a protected function: whose, how it came about, and the name of its lock."""

    task: Any
    """The Celery task; `None` if there is none."""
    task_name: str
    name: str
    where: Where
    request: Any
    body: Callable[[], Any]
    inside: bool = False
    """Whether Celery's autoretry lies around the lock, and not the other way round."""

    @property
    def task_id(self) -> str | None:
        return getattr(self.request, "id", None)

    @property
    def late(self) -> bool:
        """Whether its message is acknowledged when it has ended: then it may come twice."""
        return self.where is Where.WORKER and bool(self.task.acks_late)


class Result(NamedTuple):
    """What a call returns that does not run."""

    value: Any


def run(call: Call, rules: Rules) -> Any:
    """What the call returns: the body's result, or what its rules say for a call that does not run."""
    if not rules.enabled:
        return call.body()
    attempt = Attempt(call, rules)
    try:
        got = attempt.lease()
    except Ignore:  # the same message goes on, in its place if it had that
        raise
    except Exception:
        attempt.leave_the_place()
        raise
    if not isinstance(got, Lease):
        attempt.leave_the_place()
    if isinstance(got, Result):
        return got.value
    attempt.hand_on(got)
    if got is None:
        return call.body()
    return Run(attempt, got).result()


class Attempt:
    """One delivery's try for its lock."""

    def __init__(self, call: Call, rules: Rules) -> None:
        self.call = call
        self.rules = rules
        self.manager = manager_for(rules.url)
        if call.where is Where.WORKER:
            _supply.refuse_scope(self.manager._core.backend, _supply.seat_number() is not None)
        headers = getattr(call.request, "headers", None) or {}
        self.state: dict[str, Any] = dict(headers.get(STATE) or {})
        given = {name: getattr(rules, name) for name in ("ttl", "namespace") if getattr(rules, name) is not None}
        self.given = {**given, "max_hold": rules.max_hold, "renew": True}
        if call.task_id is not None:
            self.given["owner"] = label(call.task_id, getattr(call.request, "hostname", None))
        self.ttl: float = self.manager._core.options_for(call.name, given).ttl
        self.manager._core.options_for(call.name, {**given, "ttl": max(self.ttl, rules.min_hold)})  # can it be kept?
        self.line = _supply.Line(call, rules, self.ttl)
        self._comes_again = False

    def lease(self) -> Lease | Result | None:
        """The lease; or what the call returns instead; or `None`: it shall run without.

        Raises `Ignore` if the same message goes on in this one's place, `LockBusy`, or what the store's failure is.
        """
        try:
            self._comes_again = self.call.late and self._may_have_come_before()
            self._look_for_an_earlier_end()
            try:
                return self._taken_over() or self.acquire(0)
            except LockTimeout as busy:
                return self._held_by(busy.owner)
        except BackendRefused as error:
            self.tell("backend_error", error=str(error), outcome="raised")
            raise
        except BackendUnavailable as error:
            return self._unreachable(error)

    def acquire(self, timeout: float) -> Lease:
        return self._got(None, lambda hold: self.manager._acquire(hold, timeout))

    def _taken_over(self) -> Lease | None:
        """What the attempt before this one left standing, unless that has ended or another delivery has it.

        That one may not even have ended yet, after a `retry()` without a countdown: then this one comes again.
        """
        kept: str | None = self.state.get("kept")
        if kept is None or self.call.task_id is None or not self.ticket(kept).remove():
            return None
        del self.state["kept"]
        try:
            return self._got(token_in(kept), self.manager._take_over)
        except NotHeld:
            return None

    def _got(self, token: str | None, get: Callable[[Hold], Lease]) -> Lease:
        hold = self.manager._adopt(self.call.name, token, self.given, self.line.make)
        hold.entered = True
        hold.on_lost = self._lost
        hold.outlives = self.rules.hold_on_retry or self.rules.min_hold > 0
        begun = clock()
        with self.line.announced(hold):
            lease = get(hold)
        try:
            self._look_for_an_earlier_end()  # which left its mark before it released what we have got now
        except BaseException:
            self._give_back(lease)
            raise
        self.tell("lock_acquired", fence=lease.fence, waited=clock() - begun)
        return lease

    def _give_back(self, lease: Lease) -> None:
        released = True
        try:
            lease.release()
        except BackendUnavailable as error:
            released = False
            self.tell("backend_error", error=str(error), outcome="kept")
        except LockLost:
            pass  # nobody has used it
        finally:
            self.line.done(released)

    # It is held

    def _held_by(self, owner: str | None) -> Lease | Result:
        self._look_for_an_earlier_end()  # whose lock somebody else may have got by now
        conflict = self._conflict(owner)
        todo = answer(self.rules, self.call.where, conflict, random.random())
        if isinstance(todo, Stand):
            try:
                return self.acquire(todo.seconds)
            except LockTimeout as busy:
                owner, todo = busy.owner, todo.last
                self._look_for_an_earlier_end()
        if isinstance(todo, Queue):
            todo = self._wait_behind(todo.countdown)
        return self._do(todo, conflict)

    def _wait_behind(self, countdown: float) -> Again | Skip:
        try:
            mine, ttl = self.waiting(), countdown + self.ttl
            free = not taken(mine, ttl, self.manager, self.call.name, self.rules.namespace)
        except BackendUnavailable as error:
            if isinstance(error, BackendRefused) or self.rules.on_backend_error == "raise":
                raise
            self.tell("backend_error", error=str(error), outcome="requeued")
            return Again(countdown)  # one run too many loses nothing, and the lock is known to be held
        self.state["waits"] = free
        if not free:
            return Skip()
        self.line.waits(ttl)
        return Again(countdown)

    def _do(self, todo: Answer, conflict: Conflict) -> Result:
        if isinstance(todo, Again):
            outcome = "redelivered" if conflict.own else "queued" if self.state.get("waits") else "requeued"
            self.tell("lock_busy", holder=conflict.holder, outcome=outcome)
            busy = self._busy(conflict.holder)
            self.put_back(todo.countdown, busy)
        if isinstance(todo, Fail):
            self.tell("lock_busy", holder=conflict.holder, outcome="raised")
            busy = self._busy(conflict.holder)
            with suppress(BackendUnavailable):
                held = self.manager.holder(self.call.name, **within(self.rules.namespace))
                busy.remaining = None if held is None else held.remaining
            raise busy
        self.tell("lock_busy", holder=conflict.holder, outcome="skipped")
        who = conflict.holder or "it has just ended, or does not say who it is"
        get_task_logger(self.call.task_name).info("%s: %s (%s)", self.call.name, self.rules.busy, who)
        return Result(self.rules.skip_result)

    def _conflict(self, owner: str | None) -> Conflict:
        call, since = self.call, max(0.0, time.time() - self.state.get("since", time.time()))
        own = call.where is Where.WORKER and is_own(owner, call.task_id)
        return Conflict(call.name, owner, call.task_id, own, int(self.state.get("tries", 0)), since)

    def _busy(self, owner: str | None) -> LockBusy:
        who = f"held by {owner}" if owner else "held by other software"
        return LockBusy(f"the lock {self.call.name!r} is {who}", name=self.call.name, owner=owner)

    def put_back(self, countdown: float, otherwise: Exception) -> None:
        """Publish the same message once more and raise `Ignore`; if that fails, raise `otherwise`.

        Its id, group, chord, chain, links and retries stay, so whoever waits for its result goes on waiting for it.
        """
        call = self.call
        since = self.state.get("since", time.time())  # on the wall clock: another machine may read it
        state = {**self.state, "since": since, "tries": int(self.state.get("tries", 0)) + 1}
        headers = {**(call.request.headers or {}), STATE: state}
        try:
            message = call.task.signature_from_request(call.request, countdown=countdown, headers=headers)
            message.apply_async()
        except Exception as error:  # whatever the broker raises: the message must not be acknowledged as done
            raise otherwise from error
        raise Ignore(f"{call.name}: put back for {countdown:.3g} s")

    def hand_on(self, lease: Lease | None) -> None:
        """The body's `retry()` publishes the request's headers: its patience begins anew, and it may have the lock."""
        request, rules = self.call.request, self.rules
        if request is None:
            return
        headers = getattr(request, "headers", None) or {}
        rest = {name: value for name, value in headers.items() if name != STATE}
        if lease is not None and (rules.hold_on_retry or rules.min_hold):
            request.headers = {**rest, STATE: {"kept": written(lease.token, request.retries + 1)}}
        elif STATE in headers:
            request.headers = rest

    def ticket(self, kept: str) -> Mark:
        """What lets an attempt go on with the lock that is kept for it."""
        call = self.call
        return ticket(self.manager, self.rules.namespace, str(call.task_id), kept, call.request.hostname)

    def waiting(self) -> Mark:
        """The place of the one call that waits for the holder's end."""
        call = self.call
        return place(self.manager, call.name, self.rules.namespace, str(call.task_id), call.request.hostname)

    def leave_the_place(self) -> None:
        """Before the body reads anything, or if it never will: who comes from now on waits for the next run, and is not
        covered by this one."""
        if self.state.get("waits"):
            try:
                self.waiting().remove()
            except BackendUnavailable as error:  # then it ends with its ttl, and until then somebody may skip in vain
                self.tell("backend_error", error=str(error), outcome="kept")

    # It was delivered before

    def earlier(self) -> _done.Done:
        """The mark of this message's end."""
        call = self.call
        name, host = f"{call.task_name}:{call.task_id}:{call.request.retries}", call.request.hostname
        mark = Mark(self.manager, "done", name, self.rules.namespace, str(call.task_id), host)
        return _done.Done(mark, self.ttl, call.task.app.conf)

    def _may_have_come_before(self) -> bool:
        """Not what the broker delivers for the first time: its id may be that of an earlier call, if it was chosen."""
        request = self.call.request
        if (request.delivery_info or {}).get("redelivered"):
            self.state["redelivered"] = True  # what is put back from here on is a new message for the broker
        return bool(self.state.get("redelivered")) or not _done.says_redelivered(self.call.task.app.conf)

    def _look_for_an_earlier_end(self) -> None:
        if not self._comes_again:
            return
        state = self.earlier().state()
        if state == "none":
            return
        self.tell("lock_busy", holder=None, outcome="redelivered")
        if state == "done":
            raise Ignore(f"{self.call.name}: an earlier delivery of this message has done it")
        conflict = self._conflict(None)
        self.put_back(pause(self.rules, conflict.tries, random.random()), self._busy(None))

    # The store does not answer

    def _unreachable(self, error: BackendUnavailable) -> Lease | Result | None:
        rules, conflict = self.rules, self._conflict(None)
        if rules.on_backend_error == "run":
            self.tell("backend_error", error=str(error), outcome="run")
            get_task_logger(self.call.task_name).warning("%s: runs without its lock: %s", self.call.name, error)
            return None
        again = rules.on_backend_error == "retry" and self.call.where is Where.WORKER
        if again and conflict.since < rules.give_up:
            self.tell("backend_error", error=str(error), outcome="requeued")
            self.put_back(pause(rules, conflict.tries, random.random()), error)
        self.tell("backend_error", error=str(error), outcome="raised")
        raise error

    # News

    def _lost(self, lease: Lease) -> None:
        self.tell("lock_lost", reason=lease.lost_reason)
        if self.rules.on_lost == "abort":
            strike(lease)

    def tell(self, kind: str, **facts: Any) -> None:
        call = self.call
        reporter.tell(kind, call.task_name, call.task_id, call.name, **facts)
