"""memcached://, memcached+unix://: one memcached server, 1.4.8 or newer; meta commands from 1.6.10 on.

A lock is the item KEY. Its value is "TOKEN FENCE DATE OWNER": 0 for FENCE while the item is as it was added, and for
DATE where the server tells the time left itself. The item's version (CAS) is what a release or an extension compares,
in the server, so each is one round trip. Other software's cache.add(KEY, ...) is respected, and respects ours.

The fence is the server's life, the second in which it was started, times 4194304, plus the version with which the item
was added: versions are one counter of the server. It grows across a restart, while the server's clock does not go back
and it was written to less than four million times for each second that it lived.

A version means nothing in another life of the server, where the counter has begun again: it may be another holder's.
So it is noted with its life, and the connection refuses to send it to another (`OtherLife`); then the token decides.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .._names import digest
from .._process import clock
from .._url import URL
from ..errors import BackendUnavailable, ConfigurationError
from . import Add, Busy, Extend, Granted, Holder, Peek, Remove, Steps, Traits, Unknown, Wait, quick
from ._memcached_dial import dial
from ._memcached_greet import CATCH_UP, SLOW
from ._memcached_target import Target, of_client, of_url
from ._meta import DONE, Done, Drop, Failure, Found, Gone, Look, Other, Put, Stats, Stored, TooFar, ready_for
from ._wire import Nap
from ._wire_pool import WireChannel

if TYPE_CHECKING:
    from . import AsyncChannel, Channel, Notes
    from ._meta import Ready

LIFE = 1 << 22
"""What one second of the server's life is worth in a fence: below 2**53 until 2038, and 256 times that fits 64 bits."""
LONGEST_KEY = 250
"""Bytes that memcached takes for a key."""
LONGEST_OWNER = 200
"""Bytes of an owner's label that are kept: every lock then is a small item."""
TRIES = 4
"""How often a version that changed under our hands is looked up, by a renewal of our own, or before 1.6.24 by a move
of the item to another place in the server's memory."""
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.3
"""Seconds between a waiter's tries; an eighth of the time waited in between. Half more or less at random."""
LOOK_AGAIN = 2.5
"""Seconds for which a waiter who is refused again takes it to be by whom it was the last time, and does not look."""

# What pymemcache and its like let through as a key: no white space, no zero byte, 250 bytes.
_KEY = re.compile(rb"[^\0\t\n\v\f\r ]{1,250}")
_UNSAFE = re.compile(r"[^!-~]")
GONE = "it was gone as soon as it was added"


class Place(NamedTuple):
    """Which version of a lock is ours, and what its value says."""

    life: int
    cas: int
    fence: int
    owner: bytes


class Seen(NamedTuple):
    """Who refused a waiter the last time, and when that was looked up."""

    busy: Busy
    at: float

    def now(self) -> Busy | None:
        """The same now, or `None` if it is time to look."""
        age, left = clock() - self.at, self.busy.remaining
        if age > LOOK_AGAIN or (left is not None and left <= age):
            return None
        return self.busy if left is None else self.busy._replace(remaining=left - age)


class ServerFacts(NamedTuple):
    """What a memcached says of itself that matters to locks."""

    version: str
    started: int
    """When, on its own clock, in seconds since 1970."""
    uptime: int
    evicts: bool
    """Whether it drops items, locks too, when its memory is full; without it, it refuses new locks then."""
    evictions: int
    """Items that it has dropped so."""
    items: int
    bytes: int
    bytes_limit: int
    item_size_limit: int
    connections: int
    connections_limit: int


class MemcachedBackend:
    """Locks on one memcached server."""

    traits = Traits(
        scope="network",
        fence="clock",
        waits="poll",
        survives_restart="no",
        ttl_step=1.0,
        longest_ttl=365 * 86400.0,
        loses="a restart or flush of the server; eviction when its memory is full; a server stopped and continued",
        late_adds="possible",
    )
    longest_pause = 1.5 * LONGEST_PAUSE

    def __init__(self, target: Target, prefix: bytes = b"", request_bound: float = 3.0) -> None:
        self.place = target.place
        self.request_bound = request_bound
        self._target = target
        self._prefix = prefix

    @classmethod
    def from_url(cls, url: URL) -> MemcachedBackend:
        target, bound = of_url(url)
        return cls(target, request_bound=bound)

    @classmethod
    def from_client(cls, client: Any, colour: str) -> MemcachedBackend:  # noqa: ARG003  # pymemcache has no other
        """For the server of a pymemcache client, with its key prefix and TLS. Tasks get connections of their own."""
        target, prefix = of_client(client)
        return cls(target, prefix)

    def _key(self, name: str) -> bytes:
        return _key_of(self._prefix, name, self.place)

    def add(self, ask: Add) -> Steps[Granted | Busy]:
        name, text, ttl, label, _, _, notes, _ = ask
        token = text.encode("utf-8", "surrogatepass")
        key, owner, ready = _usual(self._prefix, name, self.place, len(token), label, ttl)
        # Not there while an answer is awaited: if that is lost, it may be our own token that refuses us the next time.
        seen: Seen | None = notes.pop("seen", None) if notes else None
        for _ in range(TRIES):
            sent = clock()
            reply = yield quick(Put, (key, token, 0, owner, ttl, 0, None, ready))
            if type(reply) is Stored:
                life, cas = reply
                fence = life * LIFE + cas
                place = quick(Place, (life, cas, fence, owner))
                if clock() - sent > SLOW:
                    place = yield from self._surely_kept(key, token, ttl, place)
                if notes is not None:
                    notes["place"] = place
                return quick(Granted, (fence, False))
            found = yield from self._instead(key, token, reply)
            if found is None and seen is not None and (busy := seen.now()) is not None:
                return _refused(ask, seen, busy)
            found = found or _checked((yield Look(key)))
            if found is None:
                continue  # gone meanwhile
            if _token_of(found) != token:
                busy = Busy(found.remaining, found.parts and found.parts[3].decode("utf-8", "replace"), signals=False)
                return _refused(ask, Seen(busy, clock()), busy)
            kept = yield from self._extended(key, token, ttl, _place(found))
            if kept is not None:  # ours, from an add whose reply was lost
                _note(notes, kept)
                return Granted(kept.fence, repeated=True)
        raise Unknown("it comes and goes faster than it can be looked at", sent=False)

    def _surely_kept(self, key: bytes, token: bytes, ttl: float, place: Place) -> Steps[Place]:
        """The version that lives `ttl` seconds from now, after an add that was answered slowly."""
        kept = yield from self._extended_again(key, token, ttl, place)
        if kept is None:
            raise Unknown(GONE)
        return kept

    def _instead(self, key: bytes, token: bytes, reply: Any) -> Steps[Found | None]:
        """What is there instead of our lock, after such a reply to an add; `None` if the server did not say."""
        if type(reply) is Failure and "out of memory" in reply.text:
            # It looks for memory first, and for a holder not at all.
            found: Found | None = _checked((yield Look(key)))
            if found is not None and _token_of(found) != token:
                return found
        if type(_checked(reply)) is not Other:
            raise Unknown(GONE)
        return reply.found  # type: ignore[no-any-return]  # as `Other` has it

    def remove(self, ask: Remove) -> Steps[bool]:
        key, notes = _key_of(self._prefix, ask.key, self.place), ask.notes
        place = notes.get("place") if notes else None
        for _ in range(TRIES):
            if place is None:
                place = yield from self._look(key, _token(ask.token))
                if place is None:
                    return False
            life, cas, _, _ = place
            reply = yield quick(Drop, (key, cas, life))
            if reply is DONE:
                return True
            if type(_checked(reply)) is Gone:
                return False
            place = None
        raise Unknown("it changes faster than it can be removed")

    def extend(self, ask: Extend) -> Steps[bool]:
        key, token = self._key(ask.key), _token(ask.token)
        place = yield from self._extended(key, token, ask.ttl, _noted(ask.notes))
        _note(ask.notes, place)
        return place is not None

    def _extended(self, key: bytes, token: bytes, ttl: float, place: Place | None) -> Steps[Place | None]:
        """The new version, which lives `ttl` seconds from now, if `token` has the key."""
        sent = clock()
        place = yield from self._extended_once(key, token, ttl, place)
        if place is not None and clock() - sent > SLOW:
            place = yield from self._extended_again(key, token, ttl, place)
        return place

    def _extended_again(self, key: bytes, token: bytes, ttl: float, place: Place) -> Steps[Place | None]:
        """Once more after a reply that was slow.

        A memcached that was stopped and continues may act before it looks at its clock, and then drops the item
        sooner by all the time for which it was stopped (measured, 1.6.18: three times of five).
        """
        yield Nap(clock() + CATCH_UP)
        return (yield from self._extended_once(key, token, ttl, place))

    def _extended_once(self, key: bytes, token: bytes, ttl: float, place: Place | None) -> Steps[Place | None]:
        for _ in range(TRIES):
            if place is None:
                place = yield from self._look(key, token)
                if place is None:
                    return None
            reply = _checked((yield Put(key, token, place.fence, place.owner, ttl, place.cas, place.life)))
            if type(reply) is Stored:
                return place._replace(life=reply.life, cas=reply.cas)
            if type(reply) is Gone:
                return None
            place = None
        raise Unknown("it changes faster than it can be extended")

    def _look(self, key: bytes, token: bytes) -> Steps[Place | None]:
        """Which version is there now, if `token` has it."""
        found = _checked((yield Look(key)))
        return _place(found) if found is not None and _token_of(found) == token else None

    def peek(self, ask: Peek) -> Steps[Holder | None]:
        found = _checked((yield Look(self._key(ask.key))))
        if found is None:
            return None
        parts, token = found.parts, _token_of(found).decode("utf-8", "replace")
        if parts is None:
            return Holder(None, token, None, found.remaining)
        return Holder(parts[3].decode("utf-8", "replace"), token, _place(found).fence, found.remaining)

    def wait(self, ask: Wait) -> Steps[None]:
        now = clock()
        pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, (now - ask.since) / 8))
        yield Nap(min(ask.until, now + pause * (0.5 + random.random())))

    def facts(self) -> Steps[ServerFacts]:
        """What the server says of itself, for people who set it up."""
        said = _checked((yield Stats()))
        settings = _checked((yield Stats(b"settings")))
        number = {key: int(text) for key, text in {**settings, **said}.items() if text.isdecimal()}.get
        return ServerFacts(
            version=said.get("version", ""),
            started=number("time", 0) - number("uptime", 0),
            uptime=number("uptime", 0),
            evicts=settings.get("evictions") != "off",
            evictions=number("evictions", 0),
            items=number("curr_items", 0),
            bytes=number("bytes", 0),
            bytes_limit=number("limit_maxbytes", 0),
            item_size_limit=number("item_size_max", 0),
            connections=number("curr_connections", 0),
            connections_limit=number("maxconns", 0),
        )

    def channel(self) -> Channel:
        return WireChannel(dial(self._target), _fit, self.place, _SURE)

    def async_channel(self) -> AsyncChannel:
        from ._memcached_tasks import async_dial  # these two load asyncio, which threads need not
        from ._wire_tasks import AsyncWireChannel

        return AsyncWireChannel(async_dial(self._target), _fit, self.place)


_SURE = frozenset({Stored, Done})
"""Replies of which `_fit` need not be asked."""


def _fit(reply: Any) -> bool:
    """After an error line nobody knows what the server makes of the rest of what it was sent."""
    return type(reply) is not Failure


def _checked(reply: Any) -> Any:
    """`reply`, unless it is a failure: then raise what it means for the lock."""
    if type(reply) is Failure:
        text = f"memcached answered: {reply.text}"
        if "out of memory" in text:
            text += "; give it more (-m), or a server of its own for locks"
        if reply.text.startswith("SERVER_ERROR"):
            raise Unknown(text)
        raise BackendUnavailable(text)
    if type(reply) is TooFar:
        raise ConfigurationError(str(reply))
    return reply


# Most programs use a few names again and again.


@lru_cache(maxsize=256)
def _key_of(prefix: bytes, name: str, place: str) -> bytes:
    """The item's key: the name, if memcached can hold it. Otherwise no other software can mean the same either."""
    key = prefix + name.encode("utf-8", "surrogatepass")
    if _KEY.fullmatch(key):
        return key
    room = LONGEST_KEY - len(prefix) - 33
    if room < 0:
        raise ConfigurationError(f"{place}: the client's key_prefix leaves no room for a key of a lock")
    return prefix + f"{_UNSAFE.sub('_', name[: min(64, room)])}~{digest(name)}".encode()


@lru_cache(maxsize=256)
def _usual(
    prefix: bytes, name: str, place: str, size: int, label: str, ttl: float
) -> tuple[bytes, bytes, Ready | None]:
    """What an add with a token of `size` bytes says each time: the key, the owner, and how these are sent."""
    key, owner = _key_of(prefix, name, place), _owner(label)
    return key, owner, ready_for(key, size, owner, ttl)


def _token(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


def _owner(label: str) -> bytes:
    """As much of it as is kept."""
    owner = label.encode("utf-8", "replace")
    return owner if len(owner) <= LONGEST_OWNER else owner[:LONGEST_OWNER].decode("utf-8", "ignore").encode()


def _token_of(found: Found) -> bytes:
    """Whoever has it; other software is told by its whole value, or a digest of that if it is not fit to be shown."""
    parts = found.parts
    if parts is not None:
        return parts[0]
    text = found.value.decode("utf-8", "replace")
    fit = found.value == text.encode() and text.isprintable() and len(text) <= 200
    return (text if fit else "~" + digest(found.value.decode("latin-1"))).encode()


def _place(found: Found) -> Place:
    _, fence, _, owner = found.parts or (b"", 0, 0, b"")
    return Place(found.life, found.cas, fence or found.life * LIFE + found.cas, owner)


def _refused(ask: Add, seen: Seen, busy: Busy) -> Busy:
    """`busy`, while the next try of a waiter is told what was `seen`."""
    if ask.waiting and ask.notes is not None:
        ask.notes["seen"] = seen
    return busy


def _noted(notes: Notes | None) -> Place | None:
    return notes.get("place") if notes else None


def _note(notes: Notes | None, place: Place | None) -> None:
    if notes is not None:
        notes["place"] = place
