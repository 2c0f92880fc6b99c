"""What sync and async managers share: the backend, the options, and the making of an attempt."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

from . import _options, _process
from ._hold import HELD, Hold
from ._line import FENCE_BITS
from ._names import key_of
from ._options import Default, Options
from ._plans import Terms
from .backends import Backend, Holder
from .errors import BackendUnavailable, ConfigurationError, LockError

BATCH = 100
"""Renewals in one go, where the backend can: few enough for a reply within the deadline over a slow link."""

try:
    _host = os.uname().nodename
except AttributeError:  # not on Windows
    _host = os.environ.get("COMPUTERNAME", "localhost")


def default_owner() -> str:
    """The label of a holder that chose none: host, process and thread."""
    generation, thread, name, label = _labels.mine
    if generation != _process.generation:
        generation, thread, name = _process.generation, threading.current_thread(), None
    if name != thread.name:
        name = thread.name
        label = f"{_host}:{os.getpid()}:{name}"
        _labels.mine = (generation, thread, name, label)
    return label


class _Labels(threading.local):
    """Of each thread its own."""

    mine: tuple[int, Any, str | None, str] = (-1, None, None, "")  # generation, thread, its name, the label


_labels = _Labels()


class Core:
    """A backend with its options. `given` beats the URL's options, and these beat `configure()`'s."""

    def __init__(self, url: object, client: object, given: Mapping[str, Any], colour: str, ours: Any) -> None:
        if url is not None and not isinstance(url, str) and client is None:
            url, client = None, url
        if url is not None and client is not None:
            raise ConfigurationError("give a URL or a client, not both")
        in_url: dict[str, Any] = {}
        with _process.loading:
            from . import _registry  # at import time nobody needs a backend

            if client is not None:
                self.backend: Backend = _registry.backend_of(client, colour)
            else:
                text = _options.configured_url() if url is None else url
                self.backend, in_url = _registry.backend_for(text)
        passed = {key: value for key, value in given.items() if type(value) is not Default}
        self._given = {**in_url, **passed}
        self._options = Options()
        self._version = -1
        late_adds = self.backend.traits.late_adds == "possible"
        wait_adds = bool(getattr(self.backend, "wait_adds", False))
        batch = BATCH if getattr(self.backend, "pipelines", False) else 1
        clock = getattr(self.backend, "virtual_clock", _process.clock)  # that of a fake in a test
        self.terms = Terms(clock, random.random, self.backend.request_bound / 2, late_adds, batch, wait_adds, ours)
        polls = self.backend.traits.waits == "poll"
        self.pause = float(getattr(self.backend, "longest_pause", 0.1)) if polls else 0.0
        self.in_line = not hasattr(self.backend, "virtual_clock")  # a line waits by the real one
        self._hands_over = self.in_line and not getattr(self.backend, "exact_fence", False)
        self.fence_bits = FENCE_BITS if self._hands_over else 0
        self.options()

    def fence(self, fence: int | None) -> int | None:
        """The fence of a lease that the store granted with `fence`: turns in this process follow in the low bits."""
        return fence << self.fence_bits if fence and self.fence_bits else fence

    def shown(self, holder: Holder | None, front: Hold | None) -> Holder | None:
        """What the store says of a holder. If we have passed that on in this process, then who of us has it by now."""
        if holder is None:
            return None
        if front is not None and front.state == HELD and front.grant != front.token == holder.token:
            return holder._replace(owner=front.owner, token=front.grant or front.token, fence=front.fence)
        return holder._replace(fence=self.fence(holder.fence))

    def options(self, given: Mapping[str, Any] | None = None) -> Options:
        """This manager's options, with those that a call gave."""
        version = _options.version  # read first: who changes it meanwhile makes us look again
        if self._version != version:
            self._options = self._checked(_options.base().with_(self._given))
            self._version = version
        if not given:
            return self._options
        options = self._options.with_(given)
        return options if options is self._options else self._checked(options)

    def options_for(self, name: str, given: Mapping[str, Any] | None = None) -> Options:
        """The same for a lock, whose name an error then carries."""
        if not given and self._version == _options.version:
            return self._options
        try:
            return self.options(given)
        except ConfigurationError as error:
            raise named(error, name) from error.__cause__

    def _checked(self, options: Options) -> Options:
        traits = self.backend.traits
        if options.ttl + options.lock_delay > traits.longest_ttl:
            and_delay = f" with lock_delay={options.lock_delay:g}" if options.lock_delay else ""
            most = f"the {traits.longest_ttl:g} s that {self.backend.place} can keep"
            raise ConfigurationError(f"ttl={options.ttl:g}{and_delay} is longer than {most}")
        return options

    def performer(self, name: str, usual: Any) -> Any:
        """What performs plans on the backend: `usual`, or the backend's own, where it has one of that name."""
        return getattr(self.backend, name, usual)(self.backend, self.terms)

    def key(self, name: str, options: Options) -> str:
        return key_of(options.namespace, name)

    def hold(
        self, name: str, options: Options, io: Any, token: str | None = None, make: Callable[..., Hold] = Hold
    ) -> Hold:
        """A new attempt at `name`, under a new token unless `token` says it."""
        _, _, _, _, namespace, owner, _, _, _ = options
        key, owner = key_of(namespace, name), default_owner() if owner is None else owner
        hold = make(name, key, owner, token or _process.new_token(), options, io)
        if not self._hands_over:
            hold.handover = False
        return hold

    def begin_anew(self, hold: Hold) -> None:
        """Make an attempt of this process out of one whose coroutine was made before a fork: its twin has its token."""
        hold.generation = _process.generation
        hold.token = hold.grant = _process.new_token()
        if hold.label is None:
            hold.owner = default_owner()

    def ttl(self, ttl: float | None, hold: Hold) -> float | None:
        """A ttl for `extend()`, checked like that of an acquire."""
        if ttl is None:
            return None
        checked: float = _options.CHECKS["ttl"]("ttl", ttl)
        self._checked(Options(ttl=checked, lock_delay=hold.delay))
        return checked


def named(error: BaseException, name: str) -> BaseException:
    """`error` with the lock's name, which the depths that raised it did not know."""
    if isinstance(error, LockError) and error.name is None:
        error.name = name
    return error


def unavailable(name: str, what: str, error: Exception) -> BackendUnavailable:
    """The error for a call that is not a plan, such as a look at the holder."""
    return BackendUnavailable(f"could not {what} the lock {name!r}: {error}", name=name)
