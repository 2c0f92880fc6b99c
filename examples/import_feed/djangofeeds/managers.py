"""`Feed.objects.import_feed`: fetch, read, store; the same again changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models, transaction
from django.db.models import F
from django.utils import timezone

from djangofeeds.fetch import Document, FeedError, fetch, parse
from djangofeeds.journal import recorded

if TYPE_CHECKING:
    from djangofeeds.models import Feed


class FeedManager(models.Manager["Feed"]):
    """Imports feeds."""

    def import_feed(self, url: str, *, fence: int | None = None) -> Feed:
        """The feed, imported; a FeedError is kept in its `last_error` and raised.

        With a `fence`, what comes after the import of a later holder is refused: StaleFence, and nothing is written.
        """
        with recorded(url):
            feed, _ = self.get_or_create(url=url)
            try:
                self._store(feed, fetch(url, etag=feed.etag, modified=feed.modified), fence)
            except FeedError as error:
                _write(feed, {"last_error": str(error), "fetched_at": timezone.now()}, fence)
                raise
            feed.refresh_from_db()
            return feed

    def _store(self, feed: Feed, document: Document, fence: int | None) -> None:
        """Entries and feed in one transaction, so that a child killed here leaves no half of an import."""
        from djangofeeds.models import Entry  # models import this module

        facts = {"imports": F("imports") + 1, "last_error": "", "fetched_at": timezone.now()}
        rows = []
        if document.body is not None:
            title, items = parse(document)
            rows = [Entry(feed=feed, **vars(item)) for item in items]
            # The validators are kept only with what they belong to: an unread answer must not become a 304.
            facts |= {"title": title, "etag": document.etag, "modified": document.modified}
        with transaction.atomic():
            _write(feed, facts, fence)  # first: if it is refused, the entries are not touched
            Entry.objects.bulk_create(
                rows,
                update_conflicts=True,
                unique_fields=["feed", "guid"],
                update_fields=["title", "link", "published"],
            )


def _write(feed: Feed, facts: dict[str, Any], fence: int | None) -> None:
    for name, value in facts.items():
        setattr(feed, name, value)
    guard = {} if fence is None else {"fence": fence}
    feed.save(update_fields=list(facts), **guard)
