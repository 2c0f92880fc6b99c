"""What is said to who writes `with` for `async with`, or the other way round."""

from __future__ import annotations

from typing import NoReturn


class WrongWith(TypeError, AttributeError):
    """The object cannot be entered that way. An `AttributeError` too, so that `hasattr` says no, as it did before."""


class Missing:
    """Stands where `__enter__` or `__aenter__` is not: whoever looks for it is told what to write instead.

    Only the one that Python looks for first is given. The other half of the pair stays away, so nobody who asks for
    a context manager, by `isinstance` or a runtime protocol, takes the object for one.
    """

    def __init__(self, instead: str) -> None:
        self._instead = instead

    def __get__(self, instance: object, owner: type | None = None) -> NoReturn:
        raise WrongWith(self._instead)
