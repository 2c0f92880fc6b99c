"""The two streams of a connection, which all its users share: one keeps leases alive, the other watches keys."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from ._etcd_recipe import KEEP_ALIVE, WATCH, Watch
from ._etcd_wire import Message, decode, encode, messages, number

LEAVING = 1.0
"""Seconds that a fork waits for threads to leave grpcio."""
IDLE = 16
"""How many watches stay open although nobody waits."""
UNHEARD = 8
"""After how many deletions in a row that nobody waited for a watch does not stay open."""
_DELETE = 1  # the type of an event
Hear = Callable[[Any], None]


def path_of(method: str) -> str:
    return f"/etcdserverpb.{method}"


class Stream:
    """One open call with many requests, the replies to which go to whoever asked: by `hear`, on a thread of ours.

    `hear` is given the reply, or `None` when the stream has ended.
    """

    def __init__(self, channel: Any, method: str, metadata: Any) -> None:
        self._out: SimpleQueue[bytes | None] = SimpleQueue()
        self._mutex = threading.RLock()
        self._hearers: dict[int, deque[Callable[[Any], None]]] = {}
        self.open = True
        self._threads: list[threading.Thread] = []  # in grpcio on our behalf: two of its own, and the reader
        self._call = channel.stream_stream(path_of(method))(self._requests(), metadata=metadata)
        self._call.add_callback(self._note_thread)
        reader = threading.Thread(target=self._read, name=f"atomiclock-{method}", daemon=True)
        self._threads.append(reader)
        reader.start()

    def _requests(self) -> Iterator[bytes]:
        self._note_thread()
        while (request := self._out.get()) is not None:
            yield request

    def _note_thread(self) -> None:
        self._threads.append(threading.current_thread())

    def ask(self, number: int, request: bytes, hear: Callable[[Any], None]) -> None:
        """Send `request`. Replies about one number come in the order of its requests: each hearer gets one."""
        with self._mutex:  # in one step, or two requests could be sent in another order than they are noted
            if not self.open:
                hear(None)
                return
            self._hearers.setdefault(number, deque()).append(hear)
            self._out.put(request)

    def tell(self, request: bytes) -> None:
        self._out.put(request)

    def _read(self) -> None:
        try:
            for data in self._call:
                self._heard(data)
        except (grpc.RpcError, ValueError):
            return  # the hearers ask again, and are told the reason then
        finally:
            self.close()

    def _heard(self, data: bytes) -> None:
        raise NotImplementedError

    def _next(self, number: int) -> Callable[[Any], None]:
        with self._mutex:
            waiting = self._hearers.get(number)
            hear = waiting.popleft() if waiting else _nobody
            if not waiting:
                self._hearers.pop(number, None)
        return hear

    def close(self) -> None:
        """End it: nothing more will be heard."""
        with self._mutex:
            self.open = False
            hearers, self._hearers = self._hearers, {}
        self._out.put(None)  # for grpcio's thread that sends
        self._call.cancel()
        for waiting in hearers.values():
            for hear in waiting:
                hear(None)
        self._ended()

    def _ended(self) -> None:
        """Tell others who wait."""

    def join(self) -> None:
        """Wait until no thread is in grpcio because of this stream."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(LEAVING)


class KeepAliveStream(Stream):
    """Keeps leases alive. A reply is the seconds that the lease lives from then, 0 if it is dead."""

    def __init__(self, channel: Any, metadata: Any) -> None:
        super().__init__(channel, KEEP_ALIVE, metadata)

    def renew(self, lease: int, hear: Callable[[Any], None]) -> None:
        self.ask(lease, encode({1: lease}), hear)

    def _heard(self, data: bytes) -> None:
        reply = decode(data)
        self._next(number(reply, 2))(number(reply, 3))


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


class WatchStream(Stream):
    """Tells of deletions.

    A watch from a revision in the past is served by etcd only every 100 ms (measured with 3.4), one from now on at
    once. So all are from now on, and whoever saw the key before "now" is told to look again. A watch stays open when
    it has told: leases are used again, so the same key is often the next to wait for, and then nothing is sent.
    """

    def __init__(self, channel: Any, metadata: Any) -> None:
        self._last = 0
        self._by_key: dict[bytes, _Watched] = {}  # the one that was used last comes last
        self._by_number: dict[int, _Watched] = {}
        super().__init__(channel, WATCH, metadata)

    def watch(self, ask: Watch, hear: Hear) -> Callable[[], None]:
        """Call `hear` once with the reply to `ask`, or with `None` when the stream ends. Returns what ends that."""
        waiter = _Waiter(ask, hear)
        with self._mutex:
            if not self.open:
                hear(None)
                return lambda: None
            waiter.watched = (self._watched(ask.key), self._watched(ask.own))
            for watched in waiter.watched:
                watched.waiting.append(waiter)
            told = [self._tell_of(waiter)] if any(waiter in watched.due() for watched in waiter.watched) else []
        for reply in told:
            hear(reply)
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
        self.tell(encode({1: encode({1: key, 5: b"\0", 7: self._last})}))
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
            self.tell(encode({2: encode({1: watched.number})}))

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

    def _ended(self) -> None:
        with self._mutex:
            every, self._by_key = list(self._by_key.values()), {}
            self._by_number = {}
        for waiter in {waiter for watched in every for waiter in watched.waiting}:
            waiter.hear(None)


def _nobody(reply: Any) -> None:
    """Hears what nobody waits for any more."""
