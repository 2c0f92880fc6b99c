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
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from .. import _process
from . import Unknown
from ._etcd_hands import sometime
from ._etcd_streams import LEAVING, KeepAliveStream, WatchStream, path_of
from ._etcd_target import Target

with suppress(ImportError):  # that is grpcio's own affair
    import grpc._channel  # loaded by the first channel, and better now: see `_process.loading`

OPTIONS = (
    # Forked processes, and connections that were given up, share no socket with others.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # what is sent again is our business
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.bdp_probe", 0),  # a ping for each reply, to find a window that our messages do not need (5 to 10 %)
)
SETTLING, LONGEST_SETTLING = 0.05, 1.0
"""Seconds that a fork leaves to grpcio's own threads to finish with connections that were just closed: they hold
locks meanwhile, which nobody would open again in the child (without it 3 children of 200 hung). They end when the last
connection is closed. Those that stay are others', and asleep by the first time; one that still runs is waited for."""

_mutex = threading.RLock()
_inside: set[object] = set()
_links: list[weakref.ref[Link]] = []
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
        _settle(SETTLING, LONGEST_SETTLING)
    else:  # what was closed by others, just now
        _settle(0.0, SETTLING)


def _settle(asleep: float, longest: float) -> None:
    """Wait until grpcio's threads have ended: for `asleep` seconds if all that are left are asleep, else `longest`."""
    begun = time.monotonic()
    while (states := _states_of_others()) and time.monotonic() < begun + longest:
        if time.monotonic() >= begun + asleep and states == {"S"}:
            return
        time.sleep(0.002)


def _states_of_others() -> set[str]:
    """What the threads that are not Python's do: S is asleep. As if they slept where the system does not tell."""
    ours = {str(thread.native_id) for thread in threading.enumerate()} | {str(threading.get_native_id())}
    states = set() if _TASKS.exists() else {"S"}
    for task in _TASKS.glob("*"):
        if task.name not in ours:
            with suppress(OSError):  # it has ended meanwhile
                states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states


_TASKS = Path("/proc/self/task")


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


class _Usable:
    """A context manager by hand: it is on the way of every request, and costs a tenth of one made by `contextlib`."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, ValueError) and not self._link.open:  # grpcio's word for a closed channel
            text = f"the connection to {self._link.endpoint} was just closed"
            raise Unknown(text, sent=False, fresh=False) from error


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
            _process.remember(_links, self)
        _close_orphans()

    def method(self, name: str) -> Any:
        found = self._methods.get(name)
        if found is None:
            found = self._methods[name] = self._channel.unary_unary(path_of(name))
        return found

    def usable(self) -> _Usable:
        """The body may use the channel, or learns that a fork or another thread has closed it."""
        return _Usable(self)

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
