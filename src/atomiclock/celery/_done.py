"""What a late-acknowledged task leaves for a second delivery of its message: that it has ended, and need not run again.

The mark is put in two steps. The first, before the lock is released, stands for a short time: the body has ended, but
its result is not stored yet. The second, when Celery has stored it and sent what follows, lets it stand as long as
the broker may deliver again. A process that dies in between has done the first step alone: the next delivery waits
for the end of the short time and runs the task again, since nobody ever had its result.
"""

from __future__ import annotations

import sys
from threading import get_ident
from typing import Any

from celery import signals as celery_signals

from ..errors import LockError
from ._marks import Mark
from ._report import log

VISIBILITY = 3600.0
"""Seconds after which Redis and SQS deliver again what was not acknowledged, if the configuration does not say."""
SHORTEST = 10.0
"""Seconds at least that Celery is given to store a result."""
_ROUNDING = 3.0
"""Seconds by which a store may keep a mark longer than it was told."""

_waiting: dict[tuple[str, int], tuple[Mark, float]] = {}
"""Marks whose second step is to come, by the task's id and the thread: another delivery may be in another one."""


_SAYS_REDELIVERED = ("amqp", "amqps", "pyamqp", "redis", "rediss", "sentinel", "valkey", "valkeys")


def says_redelivered(conf: Any) -> bool:
    """Whether the broker marks each message that it delivers again."""
    url = str(conf.get("broker_read_url") or conf.get("broker_url") or "")
    return url.partition("://")[0] in _SAYS_REDELIVERED


class Done:
    """The mark of one message, under Celery's configuration `conf`."""

    def __init__(self, mark: Mark, ttl: float, conf: Any) -> None:
        self._mark = mark
        self._short = max(SHORTEST, ttl)
        options = conf.get("broker_transport_options") or {}
        twice = 2 * float(options.get("visibility_timeout") or VISIBILITY)
        self._long = max(float(conf.get("atomiclock_done_ttl") or twice), 2 * (self._short + _ROUNDING))

    def state(self) -> str:
        """What an earlier delivery left: "none", "ending" or "done"."""
        found = self._mark.found()
        if found is None:
            return "none"
        return "done" if found.remaining is None or found.remaining > self._short + _ROUNDING else "ending"

    def put(self, task_id: str) -> None:
        """The first step; the second follows by itself."""
        self._mark.put(self._short)
        _waiting[task_id, get_ident()] = self._mark, self._long


def _stored(task_id: str, **_: Any) -> None:
    mark, ttl = _waiting.pop((task_id, get_ident()), (None, 0.0))
    if mark is not None and sys.exc_info()[0] is None:  # else Celery could not store it, and passes the error on
        try:
            mark.keep(ttl)
        except LockError as error:
            log.warning("could not note that the task %s is done, so a second delivery may run it: %s", task_id, error)


celery_signals.task_postrun.connect(_stored, weak=False)
