"""A feed and its entries."""

from atomiclock.fencing.django import FencedModel
from django.db import models

from djangofeeds.managers import FeedManager


class Feed(FencedModel):
    """One feed, with what is needed to ask for it again and what came of the last attempt.

    Its fence refuses an import whose worker slept past its lock while another imported the feed.
    """

    url = models.URLField(max_length=500, unique=True)
    title = models.CharField(max_length=500, blank=True)
    etag = models.CharField(max_length=200, blank=True)
    modified = models.CharField(max_length=100, blank=True, help_text="Last-Modified, as the server sent it.")
    imports = models.PositiveIntegerField(default=0, help_text="Imports that succeeded, unchanged feeds included.")
    last_error = models.TextField(blank=True, help_text="Why the last attempt failed; empty if it did not.")
    fetched_at = models.DateTimeField(null=True, blank=True, help_text="The last attempt, successful or not.")

    objects = FeedManager()

    class Meta:
        ordering = ["url"]

    def __str__(self) -> str:
        return self.title or self.url


class Entry(models.Model):
    """One entry of a feed; `guid` is what makes a second import of it an update."""

    feed = models.ForeignKey(Feed, on_delete=models.CASCADE, related_name="entries")
    guid = models.CharField(max_length=500)
    title = models.CharField(max_length=500, blank=True)
    link = models.URLField(max_length=500, blank=True)
    published = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-published", "guid"]
        verbose_name_plural = "entries"
        constraints = [models.UniqueConstraint(fields=["feed", "guid"], name="one_entry_per_feed_and_guid")]

    def __str__(self) -> str:
        return self.title or self.guid
