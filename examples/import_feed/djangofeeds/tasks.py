"""The cookbook's task: of all calls for one feed, one imports and the others go home."""

from typing import Any

from atomiclock.celery import current_lease, exclusive
from celery import shared_task, signals

from djangofeeds.fetch import FeedError
from djangofeeds.journal import record
from djangofeeds.models import Feed

# Renewal keeps the lock for as long as an import takes: the ttl is only how long a crash can block the next one
# on a store that cannot see the holder die.
LOCK_TTL = 5


@shared_task(throws=(FeedError,))
@exclusive("{feed_url}", ttl=LOCK_TTL, on_conflict="skip")
def import_feed(feed_url: str) -> str:
    """Import one feed; None, at once, while another worker does."""
    lease = current_lease()
    # No fence: a store that has none, such as a DatabaseCache. Then nothing refuses a worker that comes too late.
    return Feed.objects.import_feed(feed_url, fence=lease.fence if lease else None).url


@shared_task(throws=(FeedError,))
def import_feed_without_lock(feed_url: str) -> str:
    """The same, unprotected: what the demo enqueues to show that its verdict can be "no"."""
    return Feed.objects.import_feed(feed_url).url


@signals.worker_ready.connect
def note_ready(**_: Any) -> None:
    """Tell the demo that a worker takes tasks."""
    record("ready")


@signals.task_postrun.connect
def note_done(task_id: str, args: tuple[str, ...], retval: object, state: str, **_: Any) -> None:
    """Tell the demo how a task ended: imported, skipped, or by which error."""
    error = type(retval).__name__ if isinstance(retval, BaseException) else ""
    why = str(retval)[:300] if error else ""
    skipped = not error and retval is None
    record("done", task=task_id, feed=args[0], state=state, skipped=skipped, error=error, why=why)
