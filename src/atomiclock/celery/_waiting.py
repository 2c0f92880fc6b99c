"""The place of the one call that waits for the holder's end, by `on_conflict="coalesce"`, and who gives it back.

The call does so itself when its turn has come. If it is revoked first, the worker that it told of its place does, as
soon as it hears of that: else the calls that come until its message is due would skip in favour of nobody.
"""

from __future__ import annotations

from celery.worker import state

from .._api import manager_for
from .._manager import LockManager
from ..errors import BackendUnavailable
from ._marks import Mark
from ._names import task_of
from ._report import log
from ._rules import Rules


def place(manager: LockManager, name: str, namespace: str | None, task_id: str, hostname: str | None = None) -> Mark:
    """The place behind the holder of the lock `name`, as the call `task_id` may have it."""
    return Mark(manager, "next", name, namespace, task_id, hostname)


def is_revoked(task_id: str | None) -> bool:
    """Whether this process, if it is a worker's that takes messages, was told to revoke that task."""
    return task_id is not None and task_id in state.revoked


def taken(mine: Mark, ttl: float, manager: LockManager, name: str, namespace: str | None) -> bool:
    """Whether somebody else waits already, and will come. If not, the place is `mine`. Raises `BackendUnavailable`."""
    owner = mine.put(ttl)
    other = task_of(owner)
    if other is None or not is_revoked(other):
        return owner is not None
    place(manager, name, namespace, other).remove()
    return mine.put(ttl) is not None


def leave(rules: Rules, name: str, task_id: str) -> None:
    """Give back the place of a call that does not come any more."""
    try:
        place(manager_for(rules.url), name, rules.namespace, task_id).remove()
    except BackendUnavailable as error:
        log.warning("the place of a call that waited for %s stays until its ttl is over: %s", name, error)
