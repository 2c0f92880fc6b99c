"""The questions with which every connection to memcached begins: what it is, which life of it, and how to talk to it.

Nothing of that is asked again later: a connection does not outlive its server.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from .._process import clock
from ..errors import BackendRefused
from . import Unknown
from ._memcached_target import Target
from ._meta import TICKS, Authenticate, Facts, Failure, Probe, Stats
from ._wire import Nap

FIRST_META = (1, 6, 10)
"""Before it, meta commands had other forms. Debian 12 has 1.6.18."""
SURE_AGE = 4
"""Of `uptime`, which begins at 2: a second later server surely starts in another second, so its fences are others."""
SLOW = 0.25
"""Seconds: a reply that took longer may come from a server that was stopped, and whose clock had not caught up."""
CATCH_UP = 0.1
"""Seconds after which it surely has: up to 0.03 were measured, mostly it is 0.001 to 0.005."""


def greet(target: Target) -> Generator[Any, Any, Facts]:
    """Learn what the server is. Raises what follows for a lock if it is nothing that can keep one."""
    while True:
        asked = clock()
        said = yield Stats()
        if _unauthenticated(said) and target.password is not None:
            said = yield Authenticate(target.user or "", target.password)
            if not isinstance(said, Failure):
                continue
        facts = _checked(said, target.place)
        if clock() - asked > SLOW:
            yield Nap(clock() + CATCH_UP)
        elif _number(facts, "uptime", target.place) >= SURE_AGE:
            break
        else:
            # Two lives that began in the same second could not be told apart: let this second pass.
            yield Nap(clock() + 0.05)
    settings = _checked((yield Stats(b"settings")), target.place)
    if settings.get("cas_enabled") == "no":
        raise BackendRefused(f"{target.place} was started with -C, and without CAS it cannot keep a lock safely")
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", facts.get("version", ""))
    if version is None:
        raise BackendRefused(f"{target.place} is no memcached: its version is {facts.get('version')!r}")
    # When a server without evictions is out of memory, a meta set deletes what it was not even allowed to replace
    # (measured, 1.6.18; so does ms with ME). The classic add and cas leave it alone.
    meta = tuple(map(int, version.groups())) >= FIRST_META and settings.get("evictions") != "off"
    meta = meta and not target.classic and bool((yield Probe()) is True)
    now = _number(facts, "time", target.place)
    return Facts(now - _number(facts, "uptime", target.place), now + TICKS - asked, asked, meta)


def _number(facts: dict[str, str], name: str, place: str) -> int:
    text = facts.get(name, "")
    if not (text.isdecimal() and len(text) < 12):
        raise BackendRefused(f"{place} is no memcached, but perhaps a proxy before one: its stats have no {name}")
    return int(text)


def _unauthenticated(reply: Any) -> bool:
    return isinstance(reply, Failure) and "authenticat" in reply.text


def _checked(reply: Any, place: str) -> dict[str, str]:
    if _unauthenticated(reply):
        raise BackendRefused(f"{place} refused us: {reply.text}; {ADVICE}")
    if isinstance(reply, Failure):  # too many connections, mostly
        raise Unknown(f"{place} answered: {reply.text}", sent=False)
    facts: dict[str, str] = reply
    return facts


ADVICE = (
    "give user and password of its -Y file, as in memcached://user:password@host; SASL (-S) would need the binary "
    "protocol, which this backend does not speak"
)
