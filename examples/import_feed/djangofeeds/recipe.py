"""The Celery Cookbook's recipe, "Ensuring a task is only executed one at a time", as its listing has it.

https://docs.celeryq.dev/en/stable/tutorials/task-cookbook.html. Three of its lines do not run any more, and nothing
else is changed: `from celery import task` (gone since 5.0), `from celery.five import monotonic` (gone since 5.0), and
`md5(feed_url)`, which wants bytes. Beside that, the time is a setting, so that a demonstration need not take hours.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from time import monotonic
from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger
from django.core.cache import cache

from djangofeeds.models import Feed

logger = get_task_logger(__name__)

LOCK_EXPIRE = float(os.environ.get("RECIPE_LOCK_EXPIRE") or 60 * 10)


@contextmanager
def memcache_lock(lock_id: str, oid: str) -> Iterator[bool]:
    """The recipe's lock."""
    timeout_at = monotonic() + LOCK_EXPIRE - 3
    status = cache.add(lock_id, oid, LOCK_EXPIRE)
    try:
        yield status
    finally:
        if monotonic() < timeout_at and status:
            cache.delete(lock_id)


@shared_task(bind=True)
def import_feed_by_the_recipe(self: Any, feed_url: str) -> str | None:
    """The recipe's task."""
    feed_url_hexdigest = md5(feed_url.encode()).hexdigest()  # as the recipe has it
    lock_id = f"{self.name}-lock-{feed_url_hexdigest}"
    logger.debug("Importing feed: %s", feed_url)
    with memcache_lock(lock_id, self.app.oid) as acquired:
        if acquired:
            return Feed.objects.import_feed(feed_url).url
    logger.debug("Feed %s is already being imported by another worker", feed_url)
    return None
