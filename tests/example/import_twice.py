"""Imports every served feed into a Django database, several times over, and prints what came of it as JSON.

A process of its own, because a process can configure Django once only. IMPORT_FEED_STATE says where the database is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "import_feed"))

if TYPE_CHECKING:
    from feedserver import FeedServer

PASSES = 3  # flaky.xml answers 500 the first time


def one_pass(server: FeedServer, names: list[str]) -> dict[str, object]:
    """Import each feed once; what the database holds afterwards, and which imports raised."""
    from djangofeeds.fetch import FeedError
    from djangofeeds.models import Entry, Feed

    raised = {}
    for name in names:
        try:
            Feed.objects.import_feed(server.url(name))
        except FeedError as error:
            raised[name] = str(error)
    rows = Entry.objects.order_by("id").values_list("id", "feed__url", "guid", "title", "link", "published")
    feeds = {
        feed.url.rsplit("/", 1)[-1]: {"title": feed.title, "imports": feed.imports, "last_error": feed.last_error}
        for feed in Feed.objects.all()
    }
    return {"raised": raised, "rows": [[*row[:5], str(row[5])] for row in rows], "feeds": feeds}


def main() -> None:
    """All passes, on a migrated database whose migrations match the models."""
    import django
    from django.core.management import call_command
    from feedserver import SERVED, FeedServer

    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
    django.setup()
    call_command("migrate", verbosity=0)
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)
    with FeedServer(pace=0.02) as server:
        passes = [one_pass(server, list(SERVED)) for _ in range(PASSES)]
    print(json.dumps({"passes": passes, "statuses": server.statuses}))


if __name__ == "__main__":
    main()
