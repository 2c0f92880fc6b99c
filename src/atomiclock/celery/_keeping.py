"""Locks that stand on when their body has ended: for the next attempt of the same task, or for a time that was set.

The next attempt goes on under the same token, which travels in the header of its message. A broker may deliver that
twice, so there is a ticket beside the lock: who removes it, which is one step of the store, goes on with the lock. A
second delivery finds no ticket, and the lock held by its own task; it comes again later, as any second delivery does.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from threading import get_ident
from typing import Any

from celery import signals as celery_signals
from celery.exceptions import Ignore, Reject, Retry

from .._api import manager_for
from .._manager import LockManager
from .._process import clock
from ..backends import Unknown
from ..errors import BackendUnavailable
from ._marks import Mark
from ._names import within
from ._report import log
from ._rules import Rules

Settle = Callable[[BaseException], None]

_undecided: dict[tuple[str, int], tuple[Settle, BaseException]] = {}
"""Tasks of which Celery says presently whether they come again, by their ids and threads: what it says of another
delivery of the same message, in another thread, says nothing of this one."""


def final(error: BaseException | None) -> bool:
    """Whether the message is done with. A process that is told to leave gives it back to the broker."""
    return error is None or (isinstance(error, Exception) and not isinstance(error, (Ignore, Reject)))


def stays(rules: Rules, error: BaseException | None, held_for: float, ttl: float, direct: bool = False) -> float:
    """Seconds for which the lock stands on, of a body that ended with `error` after `held_for` seconds.

    What a `direct` call of the function has kept, nobody would know to go on with.
    """
    if not final(error):
        return 0.0
    rest = max(0.0, rules.min_hold - held_for)
    if rules.hold_on_retry and isinstance(error, Retry) and not direct:
        return max(rest, seconds_until(error.when) + ttl)
    return rest


def seconds_until(when: Any) -> float:
    """Seconds until `when`: a number of them, a time as Celery takes it for an eta, or `None` for now."""
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    if isinstance(when, datetime):
        when = when if when.tzinfo is not None else when.replace(tzinfo=timezone.utc)
        when = when.timestamp() - datetime.now(timezone.utc).timestamp()
    return max(0.0, float(when or 0.0))


def written(token: str, attempt: int) -> str:
    """The lock that is kept for `attempt` of a task, as its message says it."""
    return f"{token}:{attempt}"


def token_in(kept: str) -> str:
    """The token of a lock that is kept."""
    return kept.partition(":")[0]


def ticket(manager: LockManager, namespace: str | None, task_id: str, kept: str, hostname: str | None = None) -> Mark:
    """What lets one delivery of one attempt go on with the lock."""
    return Mark(manager, "kept", kept, namespace, task_id, hostname)


def drop(url: str | None, namespace: str | None, name: str, task_id: str, kept: str) -> None:
    """End what stands for an attempt that will not come, unless that has come already. Raises `Unknown`."""
    manager, deadline = manager_for(url), clock() + 1.0
    if ticket(manager, namespace, task_id, kept).remove_by(deadline):
        manager._remove_token(manager._adopt(name, token_in(kept), within(namespace)), deadline)


def drop_quietly(rules: Rules, name: str, task_id: str, kept: str) -> None:
    """The same; if the store does not answer, the lock ends when its time is over."""
    try:
        drop(rules.url, rules.namespace, name, task_id, kept)
    except (Unknown, BackendUnavailable) as error:
        log.warning("the lock %r stands until the time for its next attempt is over: %s", name, error)


def may_come_again(task: Any, error: BaseException) -> bool:
    """Whether Celery's autoretry, which lies around the body's lock, is going to retry for `error`."""
    kinds, but = (tuple(getattr(task, name, None) or ()) for name in ("autoretry_for", "dont_autoretry_for"))
    if isinstance(error, (Ignore, Reject, Retry, *but)) or not isinstance(error, kinds):
        return False
    most = (getattr(task, "retry_kwargs", None) or {}).get("max_retries", task.max_retries)
    most = getattr(task, "override_max_retries", most)
    return most is None or task.request.retries < most


def decide_later(task_id: str, settle: Settle, error: BaseException) -> None:
    """Call `settle` with the `Retry` that follows from `error`, or with `error` itself if none does."""
    _undecided[task_id, get_ident()] = settle, error


def _retried(request: Any, reason: Any, **_: Any) -> None:
    if (key := (request.id, get_ident())) in _undecided:
        settle, error = _undecided.pop(key)
        settle(reason if isinstance(reason, Retry) else error)


def _ended(task_id: str, **_: Any) -> None:
    if (key := (task_id, get_ident())) in _undecided:
        settle, error = _undecided.pop(key)
        settle(error)


celery_signals.task_retry.connect(_retried, weak=False)
celery_signals.task_postrun.connect(_ended, weak=False)
