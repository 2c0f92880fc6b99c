"""What people ask of memcached, which cannot tell its keys: whether it may lose locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Steps
from ._admin import Finding

if TYPE_CHECKING:
    from .memcached import MemcachedBackend, ServerFacts


NO_LIST = "memcached has no command that lists its keys reliably"


def diagnose(backend: MemcachedBackend) -> Steps[list[Finding]]:
    facts = yield from backend.facts()
    found = [Finding("ok", f"memcached {facts.version}, up for {facts.uptime / 86400:.1f} days, {facts.items} items")]
    found.append(Finding("note", "a restart or flush forgets all locks", "check the fence where you write"))
    return [*found, *_evictions(facts), *_room(facts)]


def _evictions(facts: ServerFacts) -> list[Finding]:
    if not facts.evicts:
        return [Finding("ok", "it evicts nothing (-M): when it is full it refuses new locks")]
    if facts.evictions:
        text = f"{facts.evictions} items were evicted since it was started, and locks may have been of them"
        return [Finding("warn", text, "give locks a memcached of their own, with -M")]
    return [
        Finding("note", "when its memory is full it evicts items, locks too", "give locks one of their own, with -M")
    ]


def _room(facts: ServerFacts) -> list[Finding]:
    found = []
    used = facts.bytes / facts.bytes_limit if facts.bytes_limit else 0.0
    text = f"{used:.0%} of {facts.bytes_limit / 2**20:.0f} MiB are used, an item may have {facts.item_size_limit} bytes"
    found.append(Finding("warn", text, "raise -m") if used > 0.9 else Finding("ok", text))
    if facts.item_size_limit < 1024:
        found.append(Finding("warn", "an item's limit below 1024 bytes may be too small for a lock", "raise -I"))
    if facts.connections_limit and facts.connections > 0.9 * facts.connections_limit:
        text = f"{facts.connections} of {facts.connections_limit} connections are open"
        found.append(Finding("warn", text, "raise -c: who gets none cannot renew"))
    return found
