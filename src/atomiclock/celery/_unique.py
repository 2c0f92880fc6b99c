"""`unique`: of all calls with one key that are enqueued, the first goes to the broker, and the others find it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._api import manager_for
from .._options import CHECKS, NONE, TTL, Default
from ..errors import BackendUnavailable, ConfigurationError
from ._keeping import seconds_until
from ._marks import Mark
from ._names import task_of
from ._report import log, reporter
from ._rules import Rules, of_configuration
from ._runner import LockBusy

CANVAS = ("task_id", "group_id", "chord", "chain", "link", "link_error")
"""Options of a call whose result somebody counts on: it is never dropped. The end of a chain and the body of a chord
have only an id that was chosen before, which whoever waits for them knows."""


class Unique:
    """What `unique` returns: the `unique` of a `LockedTask`."""

    def __init__(
        self, key: str | Callable[..., str] | None, shared: bool, until: str, on_duplicate: str, given: dict[str, Any]
    ) -> None:
        if until not in ("start", "done"):
            raise ConfigurationError(f"until is 'start' or 'done', not {until!r}")
        if on_duplicate not in ("return", "raise"):
            raise ConfigurationError(f"on_duplicate is 'return' or 'raise', not {on_duplicate!r}")
        self.key, self.shared, self.until, self.on_duplicate = key, shared, until, on_duplicate
        self.given = {name: value for name, value in given.items() if type(value) is not Default}
        Rules().with_(self.given)

    def place(self, task: Any, name: str, task_id: str) -> Mark:
        """The one place in the queue for calls named `name`, as the call `task_id` may have it."""
        rules = self._rules(task)
        return Mark(manager_for(rules.url), "unique", name, rules.namespace, task_id, "enqueued")

    def _rules(self, task: Any) -> Rules:
        return Rules().with_(of_configuration(task.app.conf), "Celery's setting atomiclock_").with_(self.given)

    def ttl(self, options: dict[str, Any]) -> float:
        """Seconds for a call's place: a call that is to come later has it as much longer."""
        return float(self.given["ttl"]) + seconds_until(options.get("eta") or options.get("countdown"))

    def enqueue(self, task: Any, name: str, task_id: str, options: dict[str, Any], send: Callable[[], Any]) -> Any:
        """What `send` returns, or the result of the call that is in the queue already."""
        place = self.place(task, name, task_id)
        owner = self._take(task, place, name, task_id, options)
        if owner is not None and not _must_go(options):
            existing = task_of(owner)
            reporter.tell("duplicate_enqueue", task.name, task_id, name, existing=existing)
            if self.on_duplicate == "raise" or existing is None:
                raise LockBusy(f"a call {name!r} is enqueued already: {owner}", name=name, owner=owner)
            return task.AsyncResult(existing)
        try:
            return send()
        except BaseException:
            if owner is None:
                self.leave(task, name, task_id)
            raise

    def _take(self, task: Any, place: Mark, name: str, task_id: str, options: dict[str, Any]) -> str | None:
        try:
            return place.put(self.ttl(options))
        except BackendUnavailable as error:
            how = self._rules(task).on_backend_error
            retried = how == "raise"
            reporter.tell(
                "backend_error", task.name, task_id, name, error=str(error), outcome="raised" if retried else "run"
            )
            if retried:
                raise
            return None  # a call too many is found when it runs, a call too few never

    def enabled(self, task: Any) -> bool:
        """Whether Celery's setting lets any lock be taken."""
        return self._rules(task).enabled

    def leave(self, task: Any, name: str, task_id: str) -> None:
        """Give the place back, if this call has it."""
        if not self.enabled(task):
            return
        try:
            self.place(task, name, task_id).remove()
        except BackendUnavailable as error:
            log.warning("the place of %s in the queue stays until its ttl is over: %s", name, error)


def unique(
    key: str | Callable[..., str] | None = None,
    *,
    ttl: float = TTL,
    until: str = "start",
    on_duplicate: str = "return",
    shared: bool = False,
    url: str | None = NONE,
    namespace: str | None = NONE,
) -> Unique:
    """Uniqueness at enqueue, as in `@app.task(base=LockedTask, unique=unique("{user_id}", ttl=600))`.

    While a call with the same key is in the queue, a further one is not sent: it returns the `AsyncResult` of the one
    that is, or raises `LockBusy` if `on_duplicate` is "raise".

    - `key`, `shared`, `url`, `namespace`: as for `exclusive`.
    - `ttl`: seconds after which a further call is sent all the same, in case the message was lost; a countdown or eta
      is added to it. It has to be said: choose the longest time that a call may stand in the queue.
    - `until`: "start" frees the place when the work begins, so that what changes meanwhile gets another run; "done"
      when it has ended. A revoked, expired or lost task and a failed publication free it, too.

    A call in a group, chord or chain, with links or with a `task_id` of its own, is always sent: somebody counts on its
    result. What was enqueued by `send_task`, or by other software, is not seen; take `exclusive` as well for what must
    not run twice at once.
    """
    said: object = ttl
    if type(said) is Default:
        raise ConfigurationError("unique needs ttl=SECONDS: the longest time that a call may stand in the queue")
    CHECKS["ttl"]("ttl", ttl)
    return Unique(key, shared, until, on_duplicate, {"ttl": ttl, "url": url, "namespace": namespace})


def _must_go(options: dict[str, Any]) -> bool:
    """Whether a call is sent although another is in the queue: a canvas needs it, or it is a message that goes on."""
    return any(options.get(name) for name in CANVAS)
