"""Feeds and entries in the admin."""

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from djangofeeds.models import Entry, Feed


@admin.register(Feed)
class FeedAdmin(admin.ModelAdmin):
    """What each import left."""

    list_display = ["url", "title", "imports", "entry_count", "fetched_at", "last_error"]
    search_fields = ["url", "title"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Feed]:
        """All feeds, each with the number of its entries."""
        return super().get_queryset(request).annotate(number_of_entries=Count("entries"))

    @admin.display(ordering="number_of_entries", description="entries")
    def entry_count(self, feed: Feed) -> int:
        """How many entries the feed has."""
        return feed.number_of_entries


@admin.register(Entry)
class EntryAdmin(admin.ModelAdmin):
    """Every entry once."""

    list_display = ["title", "feed", "published", "guid"]
    list_filter = ["feed"]
    search_fields = ["title", "guid"]
    date_hierarchy = "published"
