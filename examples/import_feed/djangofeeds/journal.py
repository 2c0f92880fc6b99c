"""The marks an import leaves, so that whoever reads them need not trust the lock.

One JSON line per event. Each is a single write() on a descriptor opened with O_APPEND, so the lines of several
processes neither mix nor overwrite each other, and what was written survives the SIGKILL of its writer.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import current_task
from django.conf import settings


def record(event: str, **facts: Any) -> None:
    """Append one event, if IMPORT_FEED_JOURNAL names a file."""
    path = settings.IMPORT_FEED_JOURNAL
    if path is None:
        return
    # The monotonic clock of Linux and macOS is one for all processes of the machine, and no NTP step moves it.
    line = json.dumps({"event": event, "time": time.monotonic(), "pid": os.getpid(), **facts}) + "\n"
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)


@contextmanager
def recorded(feed: str) -> Iterator[None]:
    """Mark the begin and the end of an import of `feed`; a process that dies in it leaves no end."""
    request = current_task.request if current_task else None
    who = {"feed": feed, "task": request.id if request else None, "worker": request.hostname if request else None}
    record("begin", **who)
    error = "the process is leaving"
    try:
        yield
        error = ""
    except Exception as exc:
        error = f"{type(exc).__name__}: {exc}"
        raise
    finally:
        record("end", **who, error=error)
