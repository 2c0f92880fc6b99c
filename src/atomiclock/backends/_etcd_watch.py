"""The watches of a connection, which all its users share: one stream on which etcd tells of deletions."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from ssl import SSLWantReadError
from typing import Any

from .. import _process
from ._etcd_dial import connected, explained
from ._etcd_recipe import WATCH, Watch
from ._etcd_target import Target
from ._etcd_wire import Message, decode, encode, messages, number
from ._grpc import DATA, LAST, RESET, Frames
from ._wire import poll_of

IDLE = 16
"""How many watches stay open although nobody waits."""
UNHEARD = 8
"""After how many deletions in a row that nobody waited for a watch does not stay open."""
SENDING = 3.0
"""Seconds that a request may take to leave: it is short, and the server reads as a rule."""
_DELETE = 1  # the type of an event
Hear = Callable[[Any], None]


class _Waiter:
    """Who waits for a key to be deleted, and for its own not to be."""

    def __init__(self, ask: Watch, hear: Hear) -> None:
        self.seen = ask.seen  # both were there at this revision
        self.hear = hear
        self.watched: tuple[_Watched, ...] = ()  # the key, and its own

    @property
    def is_last(self) -> bool:
        """Whether it is certain that the key was deleted and its own was not.

        etcd tells one stream of deletions in their order. (But when it has 1,024 unsent messages for it. Then it is
        as with the key of a holder that somebody deletes by hand: it is noticed at the next renewal.)
        """
        key, own = self.watched
        return key.deleted > self.seen and own.begun is not None and max(own.begun, own.deleted) <= self.seen


class _Watched:
    """A key that is watched, from some revision on without a gap."""

    def __init__(self, key: bytes, number: int) -> None:
        self.key = key
        self.number = number
        self.begun: int | None = None  # the revision after which nothing is missed; `None` before etcd told it
        self.deleted = 0  # the revision of the last deletion that was heard of
        self.unheard = 0  # deletions in a row that nobody waited for
        self.waiting: list[_Waiter] = []

    def due(self) -> list[_Waiter]:
        """Those to tell: the key was deleted after what they saw, or may have been."""
        known = max(self.begun or 0, self.deleted)
        return [waiter for waiter in self.waiting if waiter.seen < known]


class Watches(Frames, ABC):
    """Tells of deletions: each who waits, by its `hear`, which is given the reply, or `None` when the stream ends.

    A watch from a revision in the past is served by etcd only every 100 ms (measured with 3.4), one from now on at
    once. So all are from now on, and whoever saw the key before "now" is told to look again. A watch stays open when
    it has told: leases are used again, so the same key is often the next to wait for, and then nothing is sent.
    """

    def __init__(self, authority: str, secure: bool, token: bytes) -> None:
        super().__init__(authority, secure)
        self.open = True
        self._token = token
        self._mutex = threading.RLock()
        self._call = 0
        self._body = b""
        self._last = 0
        self._by_key: dict[bytes, _Watched] = {}  # the one that was used last comes last
        self._by_number: dict[int, _Watched] = {}

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Whatever it raises closes the stream: nobody knows how much of `data` has left."""

    @abstractmethod
    def hang_up(self) -> None:
        """End the connection, at once. Takes no lock, and may be called again."""

    def begin(self) -> bytes:
        self._call, head = self.call(WATCH, self._token)
        return super().begin() + head

    def message(self, stream: int, payload: bytes, flags: int = 0) -> bytes:
        made = super().message(stream, payload, flags)
        self._stream_room -= len(payload) + 5
        return made

    def widened(self, more: int) -> None:
        self._stream_room += more

    def watch(self, ask: Watch, hear: Hear) -> Callable[[], None]:
        """Call `hear` with the reply to `ask`, or with `None` when the stream ends. Returns what ends that."""
        waiter = _Waiter(ask, hear)
        with self._mutex:
            waiter.watched = (self._watched(ask.key), self._watched(ask.own))
            for watched in waiter.watched:
                watched.waiting.append(waiter)
            told = [self._tell_of(waiter)] if any(waiter in watched.due() for watched in waiter.watched) else []
        for reply in told:
            hear(reply)
        if not self.open:
            hear(None)
        return lambda: self._stop(waiter)

    def _watched(self, key: bytes) -> _Watched:
        watched = self._by_key.pop(key, None) or self._begin(key)
        self._by_key[key] = watched
        watched.unheard = 0
        return watched

    def _begin(self, key: bytes) -> _Watched:
        idle = [one for one in self._by_key.values() if not one.waiting]
        for one in idle[: max(0, len(idle) + 1 - IDLE)]:
            self._cancel(one)
        self._last += 1
        watched = self._by_number[self._last] = _Watched(key, self._last)
        # A number of our choice; filter 0 is NOPUT.
        self._tell(encode({1: encode({1: key, 5: b"\0", 7: self._last})}))
        return watched

    def _tell_of(self, waiter: _Waiter) -> bool:
        """What to tell it. It waits no more."""
        for watched in waiter.watched:
            watched.waiting = [one for one in watched.waiting if one is not waiter]
        return waiter.is_last

    def _stop(self, waiter: _Waiter) -> None:
        """End the waiting of one who was not told, and the watches that nobody else needs."""
        with self._mutex:
            for watched in waiter.watched:
                if waiter in watched.waiting:
                    watched.waiting.remove(waiter)
                    if not watched.waiting:
                        self._cancel(watched)

    def _cancel(self, watched: _Watched) -> None:
        if self._by_number.pop(watched.number, None) is not None:
            self._by_key.pop(watched.key, None)
            self._tell(encode({2: encode({1: watched.number})}))

    def _tell(self, request: bytes) -> None:
        if not self.open:
            return
        try:
            with self._mutex:
                self._send_owed(self.message(self._call, request))
        except (OSError, ValueError):
            self.close()
        except BaseException:  # a signal, perhaps in the middle of a frame
            self.close()
            raise

    def _send_owed(self, more: bytes = b"") -> None:
        owed, self.owed = self.owed, b""
        if owed or more:
            self.send(owed + more)

    def came(self, data: bytes) -> None:
        """Hear what `data` brings. Raises `ValueError`, or what `send` does, if the stream is to be closed."""
        with self._mutex:
            found = self.frames(data)
            self._send_owed()
        for kind, flags, stream, payload in found:
            if stream != self._call:
                continue
            if kind == DATA:
                self._body += payload
                self._cut()
            if flags & LAST or kind == RESET:
                raise ValueError("the stream has ended")
        if self.ending:
            raise ValueError("the server is going away")

    def _cut(self) -> None:
        """Hear the messages that are whole."""
        body = self._body
        while len(body) >= 5 and (end := 5 + int.from_bytes(body[1:5], "big")) <= len(body):
            self._heard(body[5:end])
            body = body[end:]
        self._body = body

    def _heard(self, data: bytes) -> None:
        reply = decode(data)
        with self._mutex:
            watched = self._by_number.get(number(reply, 2))
            due = [] if watched is None else self._news(watched, reply)
            told = [(waiter, self._tell_of(waiter)) for waiter in due]
        for waiter, last in told:
            waiter.hear(last)

    def _news(self, watched: _Watched, reply: Message) -> list[_Waiter]:
        """Those to tell of `reply`."""
        if number(reply, 4):  # it was ended by etcd
            self._by_number.pop(watched.number, None)
            self._by_key.pop(watched.key, None)
            return list(watched.waiting)
        if number(reply, 3):
            watched.begun = number(messages(reply, 1)[0], 3)
        for event in messages(reply, 11):
            if number(event, 1) == _DELETE:
                watched.deleted = max(watched.deleted, number(messages(event, 2)[0], 3))
                watched.unheard = 0 if watched.waiting else watched.unheard + 1
        if watched.unheard >= UNHEARD:
            self._cancel(watched)
        return watched.due()

    def close(self) -> None:
        """End it: nothing more will be heard. May be called again, and completes then what was interrupted."""
        self.open = False
        self.hang_up()
        with self._mutex:  # others may end their waiting meanwhile
            waiting = {waiter for watched in self._by_number.values() for waiter in watched.waiting}
        for waiter in waiting:
            waiter.hear(None)
        with self._mutex:  # last: who was not told yet is found by the next close
            self._by_key, self._by_number = {}, {}


class ThreadWatches(Watches):
    """The watches of threads: what comes is heard on a thread of ours."""

    def __init__(self, sock: socket.socket, authority: str, secure: bool, token: bytes) -> None:
        super().__init__(authority, secure, token)
        self._sock = sock
        self._poll = poll_of(sock).poll
        self._generation = _process.generation

    def start(self) -> None:
        self.send(self.begin())
        threading.Thread(target=self._read, name="atomiclock-etcd-watch", daemon=True).start()

    def send(self, data: bytes) -> None:
        # Never beside a receive: TLS bears no two threads.
        self._sock.settimeout(SENDING)
        try:
            self._sock.sendall(data)
        finally:
            self._sock.setblocking(False)

    def _read(self) -> None:
        try:
            more: Callable[[], int] = getattr(self._sock, "pending", lambda: 0)  # what TLS has taken in already
            while True:
                if not more():
                    self._poll(60_000)
                with suppress(BlockingIOError, SSLWantReadError):
                    with self._mutex:
                        data = self._sock.recv(65536)
                    if not data:
                        return
                    self.came(data)
        except (OSError, ValueError):
            return  # who waits asks again, and is told the reason then
        finally:
            self.close()
            self._sock.close()

    def hang_up(self) -> None:
        if self._generation != _process.generation:  # a forked child: its parent would feel the shutdown
            self._sock.close()
            return
        _hang_up(self._sock)


def _hang_up(sock: socket.socket) -> None:
    """What the thread that reads from `sock` notices."""
    with suppress(OSError):  # it has ended
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not that of TLS, which says goodbye and waits for an answer


def open_watches(
    target: Target, endpoint: str, token: bytes, deadline: float, adopt: Callable[[Watches], Watches]
) -> Watches:
    """A stream of watches for threads, on a connection of its own. Whoever is to close it does `adopt` it."""
    sock: socket.socket | None = None
    try:
        sock = connected(target, endpoint, deadline)
        watches = ThreadWatches(sock, endpoint, target.tls is not None, token)
        watches.start()
        adopt(watches)  # before it is ours no more: a signal may come in between, and its thread would read for ever
        sock = None
        return watches
    except (OSError, ValueError, RuntimeError) as error:  # the last: there can be no more threads
        raise explained(error, target, endpoint) from error
    finally:
        if sock is not None:
            _hang_up(sock)
            sock.close()
