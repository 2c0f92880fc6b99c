"""Reading what the workers record while they still write it; djangofeeds/journal.py is the other end."""

import json
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class JournalReader:
    """Every event once, in the order in which they were written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.events: list[Event] = []

    def read(self) -> list[Event]:
        """The events since the last call, which are also appended to `events`."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as journal:
            journal.seek(self._offset)
            data = journal.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        new = [json.loads(line) for line in whole.splitlines()]
        self.events += new
        return new
