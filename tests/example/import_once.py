"""Imports one feed by the example's task, as often as it takes to get its turn: import_once.py URL."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "import_feed"))


def main() -> None:
    """Say how it went."""
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
    django.setup()
    from djangofeeds.models import Feed
    from djangofeeds.tasks import import_feed

    said: dict[str, object] = {"url": None, "error": None}
    try:
        while not said["url"]:
            said["url"] = import_feed(sys.argv[1])
            time.sleep(0.05)
    except Exception as error:
        said["error"] = [type(error).__name__, str(error)]
    feed = Feed.objects.get(url=sys.argv[1])
    said["row"] = [feed.title, feed.imports, feed.last_error, feed.fence > 0]
    said["entries"] = sorted(feed.entries.values_list("guid", flat=True))
    print(json.dumps(said))


if __name__ == "__main__":
    main()
