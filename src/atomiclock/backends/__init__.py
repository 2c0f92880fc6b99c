"""What a backend is: the words that the policy and a store's adapter exchange.

An adapter spells five verbs for its store, each a generator that yields the adapter's own requests and
returns a fact. Its two channels, one synchronous and one asynchronous, perform such requests within a
deadline. So a verb is written once for both colours, and the policy (`atomiclock._plans`) knows no store.

A fact is a return value. An unknown is an exception, `Unknown`: the policy then asks again or takes back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from .._process import clock as clock  # what deadlines are told in, for adapters everywhere

if TYPE_CHECKING:
    from .._url import URL

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
Steps = Generator[Any, Any, T]
"""A verb under way: yields the adapter's requests, is sent their replies, returns a fact."""


quick = tuple.__new__
"""`quick(Add, (...))` is `Add(...)` for half of the time: for what is made in every cycle. It takes all fields."""


class Traits(NamedTuple):
    """What a backend can promise. The policy, the tests and the tables in the docs read it."""

    scope: Literal["process", "machine", "network"]
    """Who is excluded: threads and tasks of one process, processes of one machine, or every client of a server."""
    fence: Literal["none", "process", "clock", "durable"]
    """`process`: grows until the process ends. `clock`: grows, also after the store lost its data, while the
    store's clock does not go back. `durable`: grows for ever."""
    waits: Literal["wake", "poll"]
    """Whether a waiter is woken by the release, or asks again and again."""
    survives_restart: Literal["yes", "no", "if persisted"]
    """Whether a lock that is held is still held after the store restarted."""
    ttl_step: float
    """Seconds: a ttl is rounded up to a multiple of it at the store; 0 for none."""
    longest_ttl: float
    """Seconds: a longer ttl is refused."""
    loses: str
    """What can end a lock early, in a few words for a table."""
    late_adds: Literal["refused", "possible"] = "refused"
    """Whether an add that reaches the store after its token was removed is refused there. If it is possible that it
    takes the lock, the policy goes on removing that token until the ttl is over."""


Notes = dict[str, Any]
"""What an adapter noted about a token, to find it again at the next ask of the same token. The policy only carries it;
an ask may come without, so what is in it must be a short cut and nothing more."""


class Add(NamedTuple):
    """Set `key` to `token` for `ttl` seconds if nobody has it; if `token` itself has it, count from now again."""

    key: str
    token: str
    ttl: float
    owner: str
    waiting: bool
    """Whether a `Wait` follows when somebody else has it."""
    deadline: float
    notes: Notes | None = None
    outlives: bool = False
    """Whether it is meant to stand when the process that took it has ended: no store may conclude from its death."""


class Remove(NamedTuple):
    """Remove `key` if `token` has it; forget that `token` waits; if the key is free then, wake who waits next.

    `in_flight` counts the `Add`s of this token that may still land, and the one that has set `key` if it is set:
    none must land afterwards, if the store can prevent it.
    """

    key: str
    token: str
    in_flight: int
    deadline: float
    notes: Notes | None = None
    left: Callable[[], object] | None = None
    """To be called, perhaps more than once, when the request has left: a store that takes requests in their order may
    be asked for the key from then on, although it has not answered. An adapter may as well ignore it."""


class Extend(NamedTuple):
    """Let `key` live `ttl` seconds from now if `token` has it."""

    key: str
    token: str
    ttl: float
    deadline: float
    notes: Notes | None = None


class Peek(NamedTuple):
    """Look who has `key`."""

    key: str
    deadline: float


class Wait(NamedTuple):
    """Return when `key` may be free, at `until` at the latest. To return early is allowed, if not in a loop.

    `since` is when this waiter began, on the monotonic clock; `signals` is what `Busy` said. A backend with
    `wait_adds = True` adds at the end, with `ttl` and `owner`, and returns what its `add` would: it saves a round
    trip. The ttl counts from when the wait was sent then, so the wait has to be much shorter.
    """

    key: str
    token: str
    since: float
    until: float
    signals: bool
    deadline: float
    notes: Notes | None = None
    ttl: float = 30.0
    owner: str = ""


VERBS = {Add: "add", Remove: "remove", Extend: "extend", Peek: "peek", Wait: "wait"}
"""Which verb of a backend answers which ask."""


def verbs_of(backend: Backend) -> dict[type, Callable[[Any], Steps[Any]]]:
    """The verbs themselves."""
    return {ask: getattr(backend, verb) for ask, verb in VERBS.items()}


_AT_ONCE: dict[Any, Callable[[Any, Any], Any]] = {}


def at_once(fact: Callable[[B, A], T]) -> Callable[[B, A], Steps[T]]:
    """The verb that returns what `fact` does, which neither waits nor does I/O."""

    @wraps(fact)
    def verb(self: B, ask: A) -> Steps[T]:
        done: T = yield partial(fact, self, ask)
        return done

    _AT_ONCE[verb] = fact
    return verb


def facts_of(backend: Backend) -> dict[type, Callable[[Any], Any]]:
    """What returns the fact of each verb that is `at_once`, without steps to it.

    Only if the backend's own class has the verb: a subclass or a wrapper may do more in its channel.
    """
    facts: dict[type, Callable[[Any], Any]] = {}
    for ask, name in VERBS.items():
        verb = getattr(getattr(backend, name), "__func__", None)
        if verb in _AT_ONCE and vars(type(backend)).get(name) is verb:
            facts[ask] = MethodType(_AT_ONCE[verb], backend)
    return facts


class Granted(NamedTuple):
    """`token` has the key. `fence` grows with each grant of a key, or is `None`.

    `repeated`: it had it already, from an earlier `Add` whose answer was lost.
    """

    fence: int | None
    repeated: bool = False


class Busy(NamedTuple):
    """Somebody else has the key, for `remaining` seconds more (`None`: unknown or for ever).

    `signals`: the holder's release wakes waiters. Other software that shares the key does not.
    """

    remaining: float | None
    owner: str | None = None
    signals: bool = True


class Holder(NamedTuple):
    """Who holds a lock, for people: by the time one reads it, it may have changed."""

    owner: str | None
    """The holder's label; `None` if other software took the lock."""
    token: str
    fence: int | None
    remaining: float | None
    """Seconds until the lock ends if it is not renewed; `None` if it never does."""


class Unknown(Exception):
    """The store gave no usable answer within the deadline.

    `sent`: the request may have reached the store, now or later. `fresh`: it went over a new connection, so
    to try again at once is not promising. `alive`: the store is there and will answer before long, so who has
    time waits for it. `unkept`: it answers and cannot keep what it grants; that it says no in between, since others
    try the same, is no sign of better times. The message is for people and has no secrets.
    """

    def __init__(
        self, message: str, *, sent: bool = True, fresh: bool = True, alive: bool = False, unkept: bool = False
    ) -> None:
        super().__init__(message)
        self.unkept = unkept
        self.sent = sent
        self.fresh = fresh
        self.alive = alive


def after_part_of(kind: type, reply: Any, error: Unknown) -> None:
    """Note in `error` what it means for a verb of `kind` whose last reply was `reply`: an add of which a part was done
    may have taken the lock, although its next request was not sent."""
    if reply is not None and kind in (Add, Wait):
        error.sent = True


class Channel(Protocol):
    """Performs an adapter's requests for threads. Never used across a fork."""

    def call(self, request: Any, deadline: float) -> Any:
        """The reply to `request`, no later than `deadline`; `Unknown` if there is none. Any exception that
        interrupts it, `KeyboardInterrupt` too, leaves no connection behind that may still be answered."""

    def close(self) -> None:
        """Give up what is open. Calls after it open it again."""


class AsyncChannel(Protocol):
    """Performs an adapter's requests for the tasks of one event loop. `call` is as for `Channel`."""

    async def call(self, request: Any, deadline: float) -> Any: ...

    def close(self) -> None:
        """Give up what is open, at once: it is also called when the loop is about to end."""


class Backend(Protocol):
    """One store's adapter. `atomiclock.testing` proves one; the entry-point group is `atomiclock.backends`."""

    traits: Traits
    request_bound: float
    """Seconds that a call may take when the store does not answer and the caller sets no tighter deadline; one
    request gets half of it."""
    place: str
    """Where the store is, for people: no secrets.

    Three more attributes may be set to true: `wait_adds` (see `Wait`); `pipelines`: the channels then have
    `call_all(requests, deadline)`, which returns the replies to many requests in one round trip; `exact_fence`: the
    fence is shown as the store has it, so a lock is not passed on within a process, which would need some of its bits.
    Where waits poll, `longest_pause` says how many seconds pass at most between two tries of a waiter.
    """

    @classmethod
    def from_url(cls, url: URL) -> Backend: ...

    def add(self, ask: Add) -> Steps[Granted | Busy]: ...

    def remove(self, ask: Remove) -> Steps[bool]:
        """Whether `token` had the key."""
        ...

    def extend(self, ask: Extend) -> Steps[bool]:
        """Whether `token` has the key."""
        ...

    def peek(self, ask: Peek) -> Steps[Holder | None]: ...

    def wait(self, ask: Wait) -> Steps[Granted | Busy | None]:
        """`None`, or, after an add at its end, the answer to that."""
        ...

    def channel(self) -> Channel:
        """A new channel; connects to nothing yet."""
        ...

    def async_channel(self) -> AsyncChannel:
        """A new channel for the running event loop; connects to nothing yet."""
        ...
