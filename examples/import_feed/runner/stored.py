"""What a run left in the database."""

from djangofeeds.models import Feed
from runner.verdict import Stored


def stored() -> dict[str, Stored]:
    """Every feed, by address."""
    return {
        feed.url: Stored(feed.imports, feed.last_error, tuple(entry.guid for entry in feed.entries.all()))
        for feed in Feed.objects.prefetch_related("entries")
    }
