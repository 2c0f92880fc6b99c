"""The cookbook's task: of all calls for one feed, one imports and the others go home."""

from collections import Counter
from typing import Any

from atomiclock.celery import current_lease, exclusive
from celery import chord, shared_task, signals

from djangofeeds.fetch import FeedError
from djangofeeds.journal import record
from djangofeeds.models import Feed
from djangofeeds.recipe import import_feed_by_the_recipe  # noqa: F401  # where Celery looks for tasks

# Renewal keeps the lock for as long as an import takes: the ttl is only how long a crash can block the next one
# on a store that cannot see the holder die.
LOCK_TTL = 5


@shared_task(throws=(FeedError,))
@exclusive("{feed_url}", ttl=LOCK_TTL, on_conflict="skip")
def import_feed(feed_url: str) -> str:
    """Import one feed; None, at once, while another worker does."""
    return Feed.objects.import_feed(feed_url, fence=_fence()).url


@shared_task(throws=(FeedError,))
@exclusive("{feed_url}", ttl=LOCK_TTL, on_conflict="coalesce")
def import_changed_feed(feed_url: str) -> str:
    """Import a feed that is known to have changed: never dropped while an import runs that may not have seen it."""
    return Feed.objects.import_feed(feed_url, fence=_fence()).url


def _fence() -> int | None:
    """None: a store that has none, such as a DatabaseCache. Then nothing refuses a worker that comes too late."""
    lease = current_lease()
    return lease.fence if lease else None


@shared_task(ignore_result=False)
@exclusive(f"{import_feed.name}:{{feed_url}}", shared=True, ttl=LOCK_TTL, skip_result="skipped")
def outcome_of_import(feed_url: str) -> str:
    """The same under the same lock, told in a word: a chord ends with its first error."""
    try:
        Feed.objects.import_feed(feed_url, fence=_fence())
    except FeedError:
        return "failed"
    return "imported"


@shared_task(ignore_result=False)
def summary(outcomes: list[str]) -> dict[str, int]:
    """How many feeds were imported, skipped and failed."""
    return dict(Counter(outcomes))


@shared_task(ignore_result=False)
@exclusive(ttl=LOCK_TTL)
def import_all() -> str:
    """Import all known feeds; the id of the task that sums it up. Beat calls it, see CELERY_BEAT_SCHEDULE."""
    members = [outcome_of_import.s(url) for url in Feed.objects.values_list("url", flat=True)]
    return str(chord(members, summary.s()).delay().id) if members else ""


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
    record("done", task=task_id, feed=str(args[0]) if args else "", state=state, skipped=skipped, error=error, why=why)
