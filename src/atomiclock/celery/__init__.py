"""Celery tasks that run one at a time: what the Celery Cookbook's recipe set out to do.

    @app.task
    @exclusive("{feed_url}", ttl=60)
    def import_feed(feed_url):
        return Feed.objects.import_feed(feed_url).url

The lock is renewed while the task runs, so `ttl` only bounds how long a dead machine blocks others; it is
released by its owner alone; a task that lost its lock in the middle fails with `LockLost` instead of reporting
success. Two tasks never share a name, since it starts with the task's.
"""

from __future__ import annotations

from . import signals
from ._body import current_lease
from ._conflicts import Conflict
from ._cookbook import cookbook_lock
from ._exclusive import Exclusive, exclusive
from ._install import install
from ._names import canonical_url
from ._runner import LockBusy
from ._task import LockedTask, LockMixin
from ._unique import Unique, unique

__all__ = [
    "Conflict",
    "Exclusive",
    "LockBusy",
    "LockMixin",
    "LockedTask",
    "Unique",
    "canonical_url",
    "cookbook_lock",
    "current_lease",
    "exclusive",
    "install",
    "signals",
    "unique",
]
