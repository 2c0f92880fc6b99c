"""Labels for metrics, of which there must be few: never the names of locks themselves."""

from __future__ import annotations

import re
from collections.abc import Callable

MOST = 100
"""Labels in one process; names beyond them count as `OTHER`. Each costs a metrics store a few dozen series."""
OTHER = "other"

_HEAD = re.compile(r"[^:/\s]*")
_WITH_DIGIT = re.compile(r"\w*\d\w*")


def template_of(name: str) -> str:
    """What `name` has in common with its like: its part before the first ":" or "/", words with a digit as "*".

    >>> [template_of(name) for name in ("invoice:42", "nightly-report", "order-1742", "shop/north/7")]
    ['invoice:*', 'nightly-report', 'order-*', 'shop/*']
    """
    head = _HEAD.match(name)
    end = head.end() if head else 0
    rest = name[end : end + 1] + "*" if end < len(name) else ""
    return _WITH_DIGIT.sub("*", name[:end][:80]) + rest


class Labels:
    """The label of each name by `label`, as long as those are few."""

    def __init__(self, label: Callable[[str], str] | None) -> None:
        self._label = label or template_of
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        label = self._label(name)
        if label not in self._known:
            if len(self._known) >= MOST:
                return OTHER
            self._known.add(label)
        return label
