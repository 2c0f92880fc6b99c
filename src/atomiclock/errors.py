"""Every error that atomiclock raises, in one tree under `LockError`.

All of them survive pickling (Celery and multiprocessing send errors between processes) and carry the
lock's name, as the application gave it, in `name`. What is known about the lock after an error is part
of its meaning, so each class says it.
"""

from __future__ import annotations

from typing import Any


def _rebuild(cls: type[LockError], args: tuple[Any, ...], state: dict[str, Any]) -> LockError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class LockError(Exception):
    """Anything that went wrong with a lock. `name` is the lock's name, or `None` if none was involved."""

    # Annotated, not assigned: an error is built with its message alone, because OSError, which two of the
    # subclasses also are, reads a second positional argument as an errno.
    name: str | None = None

    def __init__(self, message: str = "", *, name: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.name = name
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key != "__notes__"}
        return _rebuild, (type(self), self.args, state)


class LockTimeout(LockError, TimeoutError):
    """Somebody else held the lock until the timeout was over. Nothing of ours is left in the store.

    `waited` is how many seconds we waited, `owner` the holder's label if the store knows it.
    """

    waited: float = 0.0
    owner: str | None = None


class LockLost(LockError):
    """The lease ended before it was released: somebody else may hold the lock by now. `reason` says why."""

    reason: str = ""


class StaleFence(LockError):
    """A guard of `atomiclock.fencing` refused a write, and nothing of it is there: a later holder has written already.

    `fence` is the number that was refused, `seen` the later one that is there, if that is known.
    """

    fence: int | None = None
    seen: int | None = None


class NotHeld(LockError, RuntimeError):
    """A release or extension of something that is not held: never acquired, or released before."""


class BackendUnavailable(LockError, ConnectionError):
    """The store gave no usable answer, so the outcome is unknown: it is never "no" and never "yes".

    After a failed acquire the attempt has been taken back, or is being taken back in the background until
    the store answers or the ttl is over. After a failed release or extend the call may be repeated.
    """


class ConfigurationError(LockError, ValueError):
    """The call, URL or environment is wrong. Nothing was sent to a store."""


class BackendRefused(BackendUnavailable, ConfigurationError):
    """The store is there and refuses to serve us: a wrong password, no permission, a read-only directory.

    Trying again does not help before the configuration is changed; nothing was stored.
    """
