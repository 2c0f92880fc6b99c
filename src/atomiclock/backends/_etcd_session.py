"""What to exchange with a cluster for a request: with one endpoint at a time, the next one when it fails, and with a
token when one is asked for.

It is a generator, which does no I/O but a goodbye: threads (`_etcd_channel`) and tasks (`_etcd_tasks`) wait each in
their own way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from .. import _process
from ..errors import BackendRefused, BackendUnavailable
from . import Unknown
from ._etcd_dial import dial
from ._etcd_errors import explain, is_fact, stale_token
from ._etcd_recipe import AUTHENTICATE, NOT_FOUND, Attempt, Fault, KeepAlive, Watch, keep_alive, revoke
from ._etcd_spares import Spares
from ._etcd_target import Target
from ._etcd_watch import Watches
from ._etcd_wire import decode, encode, number, text
from ._grpc import DEADLINE_EXCEEDED, REFUSED, Answer, Ask, Call
from ._wire_pool import WireChannel

AT_ONCE = 50
"""Leases that are kept alive in one round trip, with two calls for each: most servers bear 100 at a time."""
GOODBYE = 0.25
"""Seconds that a close may take to give back the leases that were kept."""


class Link:
    """What is known of one endpoint: its connections, each for one exchange at a time, and its stream of watches."""

    def __init__(self, endpoint: str, wires: Any) -> None:
        self.endpoint = endpoint
        self.wires = wires
        self.open = True
        self.proven = False  # it has brought an answer
        self.silent_since: float | None = None  # when the first of the requests was sent that nothing answered
        self.watches: Watches | None = None

    def heard(self) -> None:
        self.proven = True
        self.silent_since = None

    def open_watches(self) -> Watches | None:
        """The stream of watches, if there is one."""
        return self.watches if self.watches is not None and self.watches.open else None

    def adopt(self, watches: Watches) -> Watches:
        self.watches = watches
        if not self.open:
            watches.close()
        return watches

    def end_watches(self) -> None:
        if self.watches is not None:
            self.watches.close()

    def close(self) -> None:
        self.open = False
        self.wires.close()
        self.end_watches()

    def __del__(self) -> None:
        watches = getattr(self, "watches", None)
        if watches is not None:
            watches.hang_up()  # a finalizer takes no locks


class Send(NamedTuple):
    """To the one who waits: make these calls. The reply is the list of their answers; or `Unknown` is raised, or what
    it means that there is no connection."""

    link: Link
    ask: Ask
    deadline: float


class Open(NamedTuple):
    """To the one who waits: return the stream of watches, which is opened when it is first needed, and again when it
    was lost; or raise what it means that there is no connection."""

    link: Link
    token: bytes
    deadline: float


class Hear(NamedTuple):
    """To the one who waits: return what comes into the mailbox, or raise `TimeoutError` at `until`."""

    mailbox: Any
    until: float


Exchange = Generator[Send | Open | Hear, Any, Any]


class Session:
    """What a channel knows of its cluster: the endpoint in use, and the token that it was given."""

    def __init__(
        self, target: Target, spares: Spares, wires: Callable[[Target, str], Any], mailbox: Callable[[], Any]
    ) -> None:
        self.target = target
        self._spares = spares
        self._wires = wires
        self._mailbox = mailbox  # makes one, for whoever waits here
        self._mutex = threading.RLock()
        self._at = 0
        self._missed = 0  # endpoints that were left since the last answer
        self._link: Link | None = None
        self._token: bytes | None = target.token.encode() if target.token else None

    def exchange(self, request: Any, deadline: float) -> Exchange:
        if type(request) is Attempt:
            try:
                return (yield from self.exchange(request.request, deadline))
            except (Unknown, BackendRefused) as error:
                return error
        if deadline <= _process.clock():
            raise Unknown(f"{self.target.place}: no time was left to ask", sent=False)
        if type(request) is Call:
            return (yield from self._calls((request,), deadline))[0]
        if type(request) is KeepAlive:
            return (yield from self._keep_alive(request, deadline))
        return (yield from self._watch(request, deadline))

    def exchange_all(self, requests: list[Any], deadline: float) -> Exchange:
        """The replies to `requests`, all of one kind, in as few round trips as there may be. What etcd refuses is a
        `Fault` here: each has to go on as it can."""
        replies: list[Any] = []
        for at in range(0, len(requests), AT_ONCE):
            part = [each.request if type(each) is Attempt else each for each in requests[at : at + AT_ONCE]]
            pairs = [_calls_of(each) for each in part]
            link, answers = yield from self._answers(tuple(call for pair in pairs for call in pair), deadline)
            facts = [self._fact(link, answer) for answer in answers]
            for pair in pairs:
                mine, facts = facts[: len(pair)], facts[len(pair) :]
                replies.append(mine[0] if len(mine) == 1 else _kept_alive(*mine))
        return replies

    def _calls(self, calls: tuple[Call, ...], deadline: float) -> Exchange:
        """What comes of `calls`, which are made at the same time: of each a message or a `Fault`."""
        link, answers = yield from self._answers(calls, deadline)
        return [self._meaning(link, answer) for answer in answers]

    def _answers(self, calls: tuple[Call, ...], deadline: float) -> Exchange:
        """The endpoint that answered, and its answers."""
        for again in (False, True):
            link = self._usable()
            token = self._token
            if token is None:
                token = yield from self._authenticate(link, deadline)
            sent = _process.clock()
            if link.silent_since is None:
                link.silent_since = sent
            until = self._until(link, deadline)
            try:
                answers = yield Send(link, Ask(calls, token), until)
                if REFUSED in answers and len(answers) > 1:
                    yield from _ask_the_refused(link, Ask(calls, token), answers, until)
            except (Unknown, BackendRefused) as error:
                self._broken(link, error)
            if not link.open:  # closed meanwhile, but for the connection that was in our hands
                link.wires.close()
            if again or self.target.password is None or not any(map(stale_token, answers)):
                return link, answers
            if token == self._token:  # else another thread has a new one
                self._token = None
                link.end_watches()
        raise AssertionError("not reached")

    def _fact(self, link: Link, answer: Answer) -> Any:
        """A message, or a `Fault` with what the endpoint says instead."""
        try:
            return self._meaning(link, answer)
        except (Unknown, BackendUnavailable) as error:
            return Fault(str(error))

    def _meaning(self, link: Link, answer: Answer) -> Any:
        """A message, or a `Fault`; or raise what it means that the endpoint answers so."""
        if not answer.code:
            try:
                message = decode(answer.data)
            except ValueError as error:
                self._leave(link)
                raise Unknown(f"{self.target.place}: not the answer of an etcd: {error}") from error
            link.heard()
            self._missed = 0
            return message
        if is_fact(answer):
            link.heard()
            return Fault(answer.text)
        raise self._refused(link, answer)

    def _until(self, link: Link, deadline: float) -> float:
        """Until when `link` may take: one that has not answered yet has to leave time for the other endpoints."""
        others = len(self.target.endpoints) - 1 - self._missed
        if link.proven or others <= 0:
            return deadline
        now = _process.clock()
        return now + (deadline - now) / (others + 1)

    def _others(self) -> bool:
        return self._missed < len(self.target.endpoints) - 1

    def _refused(self, link: Link, answer: Answer) -> Exception:
        """What `answer` means, which is no fact."""
        fresh, others = not link.proven, self._others()
        problem = explain(answer, self.target, link.endpoint)
        if answer.code == DEADLINE_EXCEEDED:
            return self._silent(link, problem)
        if isinstance(problem, Unknown):
            self._leave(link)
            problem.fresh = fresh and not others
        elif fresh and others and isinstance(problem, BackendRefused):  # perhaps another one serves us
            self._leave(link)
            return Unknown(str(problem), sent=False, fresh=False)
        else:
            link.heard()
        return problem

    def _broken(self, link: Link, error: Exception) -> NoReturn:
        """Raise what it means that no answer came."""
        problem = self._problem(link, error)
        if problem is error:
            raise error
        raise problem from error

    def _problem(self, link: Link, problem: Exception) -> Exception:
        fresh, open_before, others = not link.proven, link.open, self._others()
        if isinstance(problem, BackendRefused):
            if not (fresh and others):
                return problem
            self._leave(link)
            return Unknown(str(problem), sent=False, fresh=False)
        if isinstance(problem, Unknown) and problem.__cause__ is not None:  # else there was no time to ask it
            if isinstance(problem.__cause__, TimeoutError) and problem.sent:
                where = self.target.where(link.endpoint)
                return self._silent(link, Unknown(f"{where} did not answer in time (is it an etcd?)"))
            self._leave(link)
            # Closed by another thread, or there is another endpoint, or it was a connection of the pool: ask at once.
            problem.fresh = fresh and open_before and problem.fresh and not others
        return problem

    def _silent(self, link: Link, problem: Exception) -> Exception:
        """The problem of who got no answer in time: one request with little time says nothing about the endpoint;
        nothing heard for a while does."""
        fresh, others = not link.proven, self._others()
        silent = link.silent_since is not None and _process.clock() - link.silent_since
        if (silent and silent >= self.target.bound / 4) or (fresh and others):
            self._leave(link)
            if isinstance(problem, Unknown) and fresh and others:
                problem.fresh = False  # there is another endpoint to ask at once
        return problem

    # Endpoints

    def _usable(self) -> Link:
        link = self._link
        if link is not None and link.open:
            return link
        with self._mutex:
            link = self._link
            if link is None or not link.open:
                endpoint = self.target.endpoints[self._at]
                link = self._link = Link(endpoint, self._wires(self.target, endpoint))
            return link

    def _leave(self, link: Link) -> None:
        """Go on with the next endpoint, over a new connection."""
        with self._mutex:
            if self._link is link:
                self._link = None
                self._at = (self._at + 1) % len(self.target.endpoints)
                self._missed += 1
        link.close()

    def close(self) -> None:
        with self._mutex:
            link, self._link = self._link, None
        if link is None:
            return
        try:
            if link.proven and link.silent_since is None:
                self._give_back(link)
        finally:
            link.close()

    def _give_back(self, link: Link) -> None:
        """Revoke what is kept, if the server answers quickly. Else it ends with its ttl.

        By a connection for threads, also for tasks: a close must be done when it returns.
        """
        leases = self._spares.take_all()
        if leases:
            wires = WireChannel(dial(self.target, link.endpoint), fit, self.target.place)
            with suppress(Unknown, BackendRefused):
                wires.call(Ask(tuple(map(revoke, leases)), self._token or b""), _process.clock() + GOODBYE)
            wires.close()

    # Tokens

    def _authenticate(self, link: Link, deadline: float) -> Exchange:
        """The token to use; none without a password."""
        target = self.target
        if target.password is None:
            return b""
        ask = encode({1: (target.user or "").encode(), 2: (target.password or "").encode()})
        try:
            (answer,) = yield Send(link, Ask((Call(AUTHENTICATE, ask),)), self._until(link, deadline))
        except (Unknown, BackendRefused) as error:
            self._broken(link, error)
        if "authentication is not enabled" in answer.text:
            self._token = b""  # whoever may do without a password may also give one, as with etcdctl
        else:
            self._token = text(self._meaning(link, answer), 2)
        return self._token

    # Streams

    def _keep_alive(self, ask: KeepAlive, deadline: float) -> Exchange:
        return _kept_alive(*(yield from self._calls(_calls_of(ask), deadline)))

    def _watch(self, ask: Watch, deadline: float) -> Exchange:
        link = self._usable()
        watches = link.open_watches()
        if watches is None:
            watches = yield from self._watches(link, deadline)
        mailbox = self._mailbox()
        stop = watches.watch(ask, mailbox.put)
        try:
            with suppress(TimeoutError):
                return (yield Hear(mailbox, min(ask.until, deadline)))
        finally:
            stop()

    def _watches(self, link: Link, deadline: float) -> Exchange:
        token = self._token
        if token is None:
            token = yield from self._authenticate(link, deadline)
        try:
            return (yield Open(link, token, deadline))
        except (Unknown, BackendRefused) as error:
            self._broken(link, error)


def _ask_the_refused(link: Link, ask: Ask, answers: list[Answer], until: float) -> Exchange:
    """Make the calls again that the server took no more of, as long as it takes some of them each time."""
    rest = [at for at, answer in enumerate(answers) if answer == REFUSED]
    before = len(answers)
    while 0 < len(rest) < before:
        before = len(rest)
        more = yield Send(link, Ask(tuple(ask.calls[at] for at in rest), ask.token), until)
        for at, answer in zip(rest, more, strict=True):
            answers[at] = answer
        rest = [at for at in rest if answers[at] == REFUSED]


def _calls_of(request: Call | KeepAlive) -> tuple[Call, ...]:
    return (keep_alive(request.lease), request.beside) if isinstance(request, KeepAlive) else (request,)


def _kept_alive(alive: Any, beside: Any) -> tuple[int, Any]:
    """The reply to a `KeepAlive`. If etcd refused that itself, it is the reply to all of it."""
    if isinstance(alive, Fault):
        return 0, beside if alive.means(NOT_FOUND) else alive
    return number(alive, 3), beside


def fit(reply: Any) -> bool:  # noqa: ARG001  # that a call failed says nothing about the connection
    return True
