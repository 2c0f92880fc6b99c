"""The body of a protected task under its lease, and what becomes of that when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery.exceptions import Retry
from celery.utils.log import get_task_logger

from .._lease import must_release, note_on
from .._process import clock
from .._sync_lease import Lease
from ..errors import BackendUnavailable, LockError, LockLost
from ._abort import abortable
from ._conflicts import Where
from ._keeping import decide_later, final, may_come_again, stays, written

if TYPE_CHECKING:
    from ._runner import Attempt

_running: ContextVar[tuple[tuple[Any, Lease], ...]] = ContextVar("atomiclock_running", default=())


def current_lease() -> Lease | None:
    """The lease of the task that runs here, innermost if they nest; `None` outside, or without its lock.

    Its `check()` raises `LockLost` if the lock is lost, and its `fence` is for whatever the task writes to.
    """
    running = _running.get()
    return running[-1][1] if running else None


def runs(request: Any) -> bool:
    """Whether a call of this request already runs here with its lock: what it calls itself is another call."""
    return any(mine is request for mine, _ in _running.get())


class Run:
    """The body under its lease."""

    def __init__(self, attempt: Attempt, lease: Lease) -> None:
        self.attempt = attempt
        self.call = attempt.call
        self.lease = lease
        self.begun = clock()

    def result(self) -> Any:
        """What the body returns. The lock is released before that is stored, so who waits for it finds it free."""
        error: BaseException | None = None
        try:
            self.attempt.leave_the_place()
            with self._current(), self._abortable():
                return self.call.body()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._end(error)

    @contextmanager
    def _current(self) -> Iterator[None]:
        before = _running.set((*_running.get(), (self.call.request, self.lease)))
        try:
            yield
        finally:
            _running.reset(before)

    @contextmanager
    def _abortable(self) -> Iterator[None]:
        if self.call.where is Where.WORKER and self.attempt.rules.on_lost == "abort":
            with abortable(self.lease):
                yield
        else:
            yield

    def _end(self, error: BaseException | None) -> None:
        try:
            if self.call.late and final(error):
                self._mark_as_done()
        finally:
            if error is not None and self._comes_again_perhaps(error):
                decide_later(str(self.call.task_id), self._release, error)
            else:
                self._release(error)

    def _comes_again_perhaps(self, error: BaseException) -> bool:
        """Whether Celery has to say so, or has to store it, before the next attempt may have the lock.

        What Celery (5.5) stores of this attempt would else replace the result of a next one that is quick.
        """
        call, rules = self.call, self.attempt.rules
        if call.where is Where.DIRECT or not (rules.hold_on_retry or rules.min_hold):
            return False
        return isinstance(error, Retry) or (call.inside and may_come_again(call.task, error))

    def _release(self, error: BaseException | None) -> None:
        held_for = clock() - self.begun
        direct = self.call.where is Where.DIRECT
        seconds = stays(self.attempt.rules, error, held_for, self.lease.ttl, direct)
        seconds = min(seconds, self.attempt.manager._core.backend.traits.longest_ttl)
        seconds = seconds if must_release(self.lease._hold) else 0.0
        released = seconds > 0  # then the main process has nothing to make sure of, whatever the store says
        try:
            if seconds:
                self._leave_standing(seconds, isinstance(error, Retry))
            elif must_release(self.lease._hold):
                self.lease.release()
            released = True
            self.attempt.tell("lock_released", held_for=held_for, stays_for=seconds)
        except LockLost as lost:
            released = True
            self._lost(lost, error)
        except BackendUnavailable as trouble:  # the work is done, and the ttl ends what could not be taken back
            self.attempt.tell("backend_error", error=str(trouble), outcome="kept")
            get_task_logger(self.call.task_name).warning("%s", trouble)
        finally:
            self.attempt.line.done(released)

    def _leave_standing(self, seconds: float, comes_again: bool) -> None:
        self.attempt.manager._leave_standing(self.lease._hold, seconds)
        # Before the ticket: who has that may say at once that the lock is his, and the main process shall not take our
        # word, or our death, for his. Without it the next attempt waits until the lock ends by itself.
        if self.attempt.line.done(True) and comes_again and self.call.where is not Where.DIRECT:
            kept = written(self.lease.token, self.call.request.retries + 1)
            self.attempt.ticket(kept).put(seconds)  # last: from here on the next attempt may have it
            self.attempt.line.waits(seconds, kept)

    def _lost(self, lost: LockLost, error: BaseException | None) -> None:
        if error is not None:
            if error is not lost and not isinstance(error, LockError):
                note_on(error, lost)
        elif self.attempt.rules.on_lost == "warn":
            get_task_logger(self.call.task_name).warning("%s", lost)
        else:
            raise lost

    def _mark_as_done(self) -> None:
        try:
            self.attempt.earlier().put(str(self.call.task_id))
        except BackendUnavailable as error:
            self.attempt.tell("backend_error", error=str(error), outcome="kept")
