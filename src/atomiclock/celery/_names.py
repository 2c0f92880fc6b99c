"""What locks and marks of tasks are called, and who is said to hold them."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from .._keys import Key
from .._names import DEFAULT_NAMESPACE, digest

LONGEST_ID = 120
"""Characters of a task's id that a label can carry; memcached keeps 200 of a label."""
_PORTS = {"http": 80, "https": 443}


def label(task_id: str, hostname: str | None) -> str:
    """The owner's label of a task: its id, so that a second delivery of it knows its own, then for people where."""
    return f"celery:{_written(task_id)}:{hostname or 'unknown'}:{os.getpid()}"


def is_own(owner: str | None, task_id: str | None) -> bool:
    """Whether the label `owner` is that of a task with this id."""
    return bool(owner and task_id) and str(owner).startswith(f"celery:{_written(str(task_id))}:")


def task_of(owner: str | None) -> str | None:
    """The id of the task whose label `owner` is; `None` if it is not known from it."""
    words = (owner or "").split(":")
    if len(words) < 3 or words[0] != "celery" or words[1].startswith("~"):
        return None
    return unquote(words[1])


def _written(task_id: str) -> str:
    text = quote(task_id, safe="-._")
    return text if len(text) <= LONGEST_ID else f"~{digest(task_id)}"


def beside(namespace: str, kind: str) -> str:
    """The namespace of what is kept beside the locks: marks of what is done, places of who waits."""
    return f"{namespace or DEFAULT_NAMESPACE}.{kind}"


def within(namespace: str | None) -> dict[str, Any]:
    """The option for a lock's namespace; none if the task does not say one, so that the URL may."""
    return {} if namespace is None else {"namespace": namespace}


def name_of(key: Key, task_name: str, shared: bool, args: tuple[Any, ...], kwargs: Any, skip: frozenset[str]) -> str:
    """The lock's name for a call: the task's name before the key, unless tasks share it."""
    own = key(args, kwargs, skip)
    return own if shared else f"{task_name}:{own}"


def canonical_url(url: str) -> str:
    """One spelling for the ways to write an http address, for keys: `key=lambda feed_url: canonical_url(feed_url)`.

    Scheme and host in lower case, without the default port, an empty path as "/", no fragment. The rest is kept as it
    is written, since servers may mind it.
    """
    parts = urlsplit(url.strip())
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
    if ":" in host:
        host = f"[{host}]"
    if parts.port is not None and parts.port != _PORTS.get(scheme):
        host += f":{parts.port}"
    who, at, _ = parts.netloc.rpartition("@")
    return urlunsplit((scheme, who + at + host, parts.path or "/", parts.query, ""))
