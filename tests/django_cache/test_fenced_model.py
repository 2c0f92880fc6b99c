"""`FencedModel`, on Django's own connections to SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from atomiclock import ConfigurationError, LockManager, StaleFence

BIG = 2**60 + 1
_models: tuple[Any, Any] | None = None


def declared() -> tuple[Any, Any]:
    """The models; Django lets a class be declared once only, and not before its settings are there."""
    global _models
    if _models is None:
        from django.db import models

        from atomiclock.fencing.django import FencedModel

        class Feed(FencedModel):
            slug = models.CharField(max_length=50, primary_key=True)
            title = models.CharField(max_length=50)
            imports = models.IntegerField(default=0)

            class Meta:
                app_label = "fenced"

        class NewsFeed(Feed):
            agency = models.CharField(max_length=50)

            class Meta:
                app_label = "fenced"

        _models = Feed, NewsFeed
    return _models


@pytest.fixture
def models(django_project: Any) -> Iterator[tuple[Any, Any]]:
    from django.db import connection

    found = declared()
    with connection.schema_editor() as editor:
        for model in found:
            editor.create_model(model)
    yield found
    with connection.schema_editor() as editor:
        for model in reversed(found):
            editor.delete_model(model)
    connection.close()


@pytest.fixture
def feed_model(models: tuple[Any, Any]) -> Any:
    return models[0]


def stored(model: Any) -> tuple[str, int]:
    row = model.objects.get(pk="a")
    return row.title, row.fence


def test_a_later_fence_is_written_and_an_older_one_refused(feed_model: Any) -> None:
    feed_model(slug="a", title="first").save()
    feed = feed_model.objects.get(pk="a")
    for fence in (5, 5, BIG - 1, BIG):
        feed.title = f"by {fence}"
        feed.save(fence=fence)
    late = feed_model.objects.get(pk="a")
    late.title = "late"
    for stale in (0, 5, BIG - 1):
        with pytest.raises(StaleFence, match=rf"fenced.Feed 'a'.*{stale}.*{BIG}") as raised:
            late.save(fence=stale)
        assert (raised.value.fence, raised.value.seen) == (stale, BIG)
        assert late.fence == BIG, "as it was"
    assert stored(feed_model) == (f"by {BIG}", BIG)


@pytest.mark.parametrize("fence", [None, -1, 2**63, "7", True])
def test_what_is_no_fence_is_refused(feed_model: Any, fence: Any) -> None:
    with pytest.raises(ConfigurationError, match="fence"):
        feed_model(slug="a").save(fence=fence)
    assert not feed_model.objects.exists()


def test_a_plain_save_is_not_guarded_and_never_sets_the_fence_back(feed_model: Any) -> None:
    feed_model(slug="a", title="first").save(fence=5)
    old = feed_model.objects.get(pk="a")
    feed_model.objects.get(pk="a").save(fence=9)
    old.title = "by an admin"
    old.save()
    assert stored(feed_model) == ("by an admin", 9)
    old.fence = 0
    old.save(update_fields=["fence"])
    assert stored(feed_model) == ("by an admin", 0), "where it is meant"


def test_update_fields_are_what_is_written_and_the_fence(feed_model: Any) -> None:
    from django.db.models import F

    feed_model(slug="a", title="first").save(fence=5)
    feed = feed_model.objects.get(pk="a")
    feed.title, feed.imports = "not this", F("imports") + 1
    feed.save(fence=7, update_fields=["imports"])
    assert stored(feed_model) == ("first", 7)
    assert feed_model.objects.get(pk="a").imports == 1
    with pytest.raises(StaleFence):
        feed.save(fence=6, update_fields=["title"])
    feed.save(fence=6, update_fields=[])
    deferred = feed_model.objects.only("slug", "title").get(pk="a")
    deferred.title = "deferred"
    with pytest.raises(StaleFence):
        deferred.save(fence=6)
    assert deferred.fence == 7
    deferred.save(fence=8)
    assert stored(feed_model) == ("deferred", 8)


def test_the_first_write_sets_the_fence_and_force_insert_still_inserts(feed_model: Any) -> None:
    from django.db import DatabaseError, IntegrityError

    feed_model(slug="a", title="first").save(fence=5)
    assert stored(feed_model) == ("first", 5)
    with pytest.raises(IntegrityError):
        feed_model(slug="a", title="again").save(force_insert=True, fence=9)
    with pytest.raises(DatabaseError):
        feed_model(slug="b").save(force_update=True, fence=9)
    with pytest.raises(StaleFence):
        feed_model(slug="a", title="late").save(fence=4)
    feed_model(slug="a", title="an upsert").save(fence=6)
    assert stored(feed_model) == ("an upsert", 6)


@pytest.mark.parametrize(("mine", "outcome"), [(9, "mine"), (4, "theirs")])
def test_who_loses_the_race_to_insert_is_compared_all_the_same(feed_model: Any, mine: int, outcome: str) -> None:
    original, looks = feed_model._do_update, []

    def update(self: Any, *args: Any) -> Any:
        looks.append(args)
        if len(looks) > 1:
            return original(self, *args)
        return False  # there was none: it came a moment later

    feed_model(slug="a", title="theirs").save(fence=5)
    with patch.object(feed_model, "_do_update", update):
        try:
            feed_model(slug="a", title="mine").save(fence=mine)
        except StaleFence:
            assert mine < 5
    assert len(looks) == 2
    assert stored(feed_model) == (outcome, max(5, mine))


def test_a_row_that_came_before_the_look_is_updated(feed_model: Any) -> None:
    from django.db.models.query import QuerySet

    original, calls = QuerySet._update, []

    def update(self: Any, values: Any, *more: Any) -> Any:  # since Django 6.1 there is more
        calls.append(values)
        return 0 if len(calls) == 1 else original(self, values, *more)  # the first found none, the look finds one

    feed_model(slug="a", title="theirs").save(fence=3)
    with patch.object(QuerySet, "_update", update):
        feed_model(slug="a", title="mine").save(fence=5)
    assert stored(feed_model) == ("mine", 5)


def test_signals_tell_of_what_was_written_alone(feed_model: Any) -> None:
    from django.db.models.signals import post_save

    told: list[Any] = []

    def tell(instance: Any, created: bool, **_: Any) -> None:
        told.append((created, instance.fence))

    post_save.connect(tell, sender=feed_model)
    try:
        feed_model(slug="a").save(fence=5)
        feed_model(slug="a").save(fence=6)
        with pytest.raises(StaleFence):
            feed_model(slug="a").save(fence=4)
    finally:
        post_save.disconnect(tell, sender=feed_model)
    assert told == [(True, 5), (False, 6)]


def test_a_transaction_goes_on_after_a_refusal_that_was_caught(feed_model: Any) -> None:
    from django.db import transaction

    feed_model(slug="a", title="new").save(fence=5)
    with transaction.atomic():
        with pytest.raises(StaleFence):
            feed_model(slug="a", title="late").save(fence=4)
        feed_model(slug="b", title="beside").save(fence=4)
    assert feed_model.objects.count() == 2

    @transaction.atomic
    def imported() -> None:
        feed_model.objects.filter(pk="b").update(title="to be undone")
        feed_model(slug="a", title="late").save(fence=4)

    with pytest.raises(StaleFence):
        imported()
    assert feed_model.objects.get(pk="b").title == "beside"


def test_a_model_below_has_the_guard_of_the_one_above(models: tuple[Any, Any]) -> None:
    feed_model, news = models
    news(slug="a", title="first", agency="one").save(fence=5)
    with pytest.raises(StaleFence):
        news(slug="a", title="late", agency="late").save(fence=4)
    row = news.objects.get(pk="a")
    assert (row.title, row.agency, row.fence) == ("first", "one", 5)
    row.agency = "two"
    row.save(fence=6)
    assert (stored(feed_model), news.objects.get(pk="a").agency) == (("first", 6), "two")


def test_it_is_the_same_in_async_code_and_with_a_lease(feed_model: Any) -> None:
    async def main() -> None:
        from asgiref.sync import sync_to_async
        from django.db import connection

        feed = feed_model(slug="a", title="new")
        await feed.asave(fence=5)
        with pytest.raises(StaleFence):
            await feed_model(slug="a", title="late").asave(fence=4)
        await sync_to_async(lambda: connection.close())()  # that of its thread

    asyncio.run(main())
    with LockManager("memory://fenced") as locks:
        older = locks.acquire("feed:a", ttl=0.05, renew=False)
        with locks.acquire("feed:a", timeout=10) as lease:
            feed_model(slug="b", title="new").save(fence=lease)
        with pytest.raises(StaleFence) as raised:
            feed_model(slug="b", title="late").save(fence=older)
    assert raised.value.name == "feed:a"
