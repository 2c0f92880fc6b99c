"""Connections to one endpoint through grpcio, with its two shared streams, and what a fork does to them.

grpcio does not survive a fork while any thread is inside it (measured with 1.85: one child in twenty crashed, and
with GRPC_ENABLE_FORK_SUPPORT set to either value children hung). So every entry passes a gate, and ahead of a fork
the gate is shut, the connections are closed and the threads come out: they ask again after it.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import grpc

from .. import _process
from . import Unknown
from ._etcd_hands import sometime
from ._etcd_recipe import KEEP_ALIVE, WATCH
from ._etcd_target import Target
from ._etcd_wire import decode, encode, messages, number

OPTIONS = (
    # Forked processes, and connections that were given up, share no socket with others.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # what is sent again is our business
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", -1),
)
SETTLING = 0.05
"""Seconds that a fork leaves to grpcio's own threads to finish with connections that were just closed: they hold
locks meanwhile, which nobody would open again in the child (without it 3 children of 200 hung; with it none)."""
LEAVING = 1.0
"""Seconds that a fork waits for threads to leave grpcio."""

_mutex = threading.RLock()
_inside: set[object] = set()
_links: list[weakref.ref[Link]] = []  # no WeakSet, whose callbacks a signal may interrupt
_orphans: deque[Any] = deque()


class gate:  # noqa: N801  # used as a word, like `suppress`
    """The body may call into grpcio: no fork comes in between."""

    def __enter__(self) -> None:
        with _mutex:
            _inside.add(self)

    def __exit__(self, *_: object) -> None:
        _inside.discard(self)


def _before_fork() -> None:
    _mutex.acquire()
    closed = _close_all()
    end = time.monotonic() + LEAVING
    while _inside and time.monotonic() < end:
        time.sleep(0.001)
    if closed:
        time.sleep(SETTLING)


def _close_all() -> bool:
    """Close what is open, if anything is."""
    links = [link for link in [ref() for ref in _links] if link is not None and link.open]
    for link in links:
        link.close()
    _close_orphans()
    return bool(links)


def _close_orphans() -> None:
    with suppress(IndexError):
        while True:
            _orphans.popleft().close()  # streams, each before its channel


def _forget_parents() -> None:
    """In a forked child, whose parent's links are closed, and whose mutexes nobody may ever open again."""
    _inside.clear()
    _links.clear()


_process.around_fork(_before_fork, _mutex.release)
_process.after_fork(_forget_parents)
atexit.register(_close_all)


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

    def forget(self, number: int) -> None:
        with self._mutex:
            self._hearers.pop(number, None)

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


class WatchStream(Stream):
    """Watches keys, each once: `hear` is called when the key is deleted, or when nothing more will be heard of it."""

    def __init__(self, channel: Any, metadata: Any) -> None:
        super().__init__(channel, WATCH, metadata)
        self._last = 0

    def watch(self, key: bytes, since: int, hear: Callable[[Any], None]) -> Callable[[], None]:
        """Watch `key` from the revision `since`. Returns what ends the watch."""
        with self._mutex:
            self._last = number = self._last + 1
            # A number of our choice; filter 0 is NOPUT.
            create = encode({1: key, 3: since, 5: b"\0", 7: number})
            self.ask(number, encode({1: create}), hear)
        return lambda: self.stop(number)

    def stop(self, watch: int) -> None:
        """End a watch, unless it has ended."""
        with self._mutex:
            if self._hearers.pop(watch, None) is not None:
                self.tell(encode({2: encode({1: watch})}))

    def _heard(self, data: bytes) -> None:
        reply = decode(data)
        watch, ended = number(reply, 2), number(reply, 4)
        if not messages(reply, 11) and not ended:
            return  # it was created, or is still there
        self._next(watch)(True)
        if not ended:
            self.tell(encode({2: encode({1: watch})}))


def _nobody(reply: Any) -> None:
    """Hears what nobody waits for any more."""


def path_of(method: str) -> str:
    return f"/etcdserverpb.{method}"


class Link:
    """A connection to one endpoint, with its streams. Closed at a fork; then all that is under way ends."""

    def __init__(self, target: Target, endpoint: str) -> None:
        self.endpoint = endpoint
        self.proven = False  # it has brought an answer
        self.silent_since: float | None = None  # when the first of the requests was sent that nothing answered
        self.alive: KeepAliveStream | None = None
        self.watches: WatchStream | None = None
        self._methods: dict[str, Any] = {}
        with _mutex:
            if target.credentials is None:
                self._channel = grpc.insecure_channel(endpoint, OPTIONS)
            else:
                self._channel = grpc.secure_channel(endpoint, target.credentials, OPTIONS)
            self.open = True
            _links[:] = [ref for ref in _links if ref() is not None] + [weakref.ref(self)]
        _close_orphans()

    def method(self, name: str) -> Any:
        found = self._methods.get(name)
        if found is None:
            found = self._methods[name] = self._channel.unary_unary(path_of(name))
        return found

    @contextmanager
    def usable(self) -> Iterator[None]:
        """The body may use the channel, or learns that a fork or another thread has closed it."""
        try:
            yield
        except ValueError as error:  # grpcio's word for a closed channel
            if self.open:
                raise
            raise Unknown(f"the connection to {self.endpoint} was just closed", sent=False, fresh=False) from error

    def keep_alive(self, metadata: Any) -> KeepAliveStream:
        """Opened when first needed, and again when it was lost."""
        with _mutex, self.usable():
            if self.alive is None or not self.alive.open:
                self.alive = KeepAliveStream(self._channel, metadata)
            return self.alive

    def watching(self, metadata: Any) -> WatchStream:
        with _mutex, self.usable():
            if self.watches is None or not self.watches.open:
                self.watches = WatchStream(self._channel, metadata)
            return self.watches

    def end_streams(self) -> None:
        """End the streams, which carry a token that is not valid any more."""
        for stream in (self.alive, self.watches):
            if stream is not None:
                stream.close()

    def heard(self) -> None:
        self.proven = True
        self.silent_since = None

    def close(self) -> None:
        self.open = False
        streams = [stream for stream in (self.alive, self.watches) if stream is not None]
        for stream in streams:
            stream.close()
        self._channel.close()
        for stream in streams:
            stream.join()

    def __del__(self) -> None:
        # Wherever this runs, perhaps on grpcio's own thread, for which a close would wait: so somebody else closes.
        if getattr(self, "open", False):
            _orphans.extend(part for part in (self.alive, self.watches, self._channel) if part is not None)
            sometime(_close_orphans)
