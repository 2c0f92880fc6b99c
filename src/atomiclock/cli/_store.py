"""A store as the commands see it: its backend, and questions to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .. import _process
from .._manager import LockManager
from .._options import overrides
from ..backends import Remove, Steps, Unknown, _admin
from ..backends._admin import Finding, Seen
from ..errors import BackendUnavailable, ConfigurationError

T = TypeVar("T")


class Store:
    """The store of `url`, with the namespace whose locks are meant. Connects when first asked."""

    def __init__(self, url: str | None, namespace: str | None = None) -> None:
        given: dict[str, Any] = {} if namespace is None else {"namespace": namespace}
        self.manager = LockManager(url, **given)
        self.core = self.manager._core
        self.backend = self.core.backend
        self.namespace = self.core.options().namespace
        self._channel = self.backend.channel()

    def refuse_memory(self) -> None:
        """Nobody else can look into a process's memory."""
        if self.backend.traits.scope == "process":
            raise ConfigurationError(f"{self.backend.place} is in the memory of each process: nobody else can see it")

    def ask(self, steps: Steps[T]) -> T:
        """What `steps` return, however many requests that takes. Raises `BackendUnavailable` if one has no answer."""
        try:
            request = next(steps)
            while True:
                request = steps.send(self._channel.call(request, self.deadline()))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # the steps' own T
        except Unknown as error:
            raise BackendUnavailable(str(error)) from error

    def deadline(self) -> float:
        return _process.clock() + self.backend.request_bound

    def held(self) -> list[Seen]:
        """All locks of the namespace."""
        prefix = f"{self.namespace}:" if self.namespace else ""
        found = self.ask(_admin.held(self.backend, prefix))
        return [self._shown(one) for one in found]

    def seen(self, name: str) -> Seen | None:
        key = self.core.key(name, self.core.options(overrides()))
        found = self.ask(_admin.seen(self.backend, key, self.deadline()))
        return None if found is None else self._shown(found)._replace(key=name)

    def remove(self, name: str, token: str) -> bool:
        """Whether `token` had the lock until now."""
        key = self.core.key(name, self.core.options(overrides()))
        return self.ask(self.backend.remove(Remove(key, token, 0, self.deadline())))

    def diagnose(self) -> list[Finding]:
        return self.ask(_admin.diagnose(self.backend))

    def _shown(self, seen: Seen) -> Seen:
        """By its name, as far as the key has it, and with the fence that its holder knows."""
        key, prefix = seen.key, f"{self.namespace}:"
        name = key[len(prefix) :] if self.namespace and key.startswith(prefix) else key
        return seen._replace(key=name, holder=seen.holder._replace(fence=self.core.fence(seen.holder.fence)))

    def close(self) -> None:
        self._channel.close()
        self.manager.close()


def timed(function: Callable[[], object]) -> float:
    """Seconds that it took."""
    begun = _process.clock()
    function()
    return _process.clock() - begun
