"""What is said of the mistakes that one makes at first: sync code for async, arguments in each other's place."""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import Any, NoReturn

from ._options import Options
from .errors import ConfigurationError


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


def refuse_cancel(options: Options) -> Options:
    if options.on_lost == "cancel":
        raise ConfigurationError('on_lost="cancel" needs `async with`: a thread cannot be cancelled; pass a callable')
    if getattr(getattr(options.on_lost, "__code__", None), "co_flags", 0) & _COROUTINE:
        raise ConfigurationError(
            "on_lost is a coroutine function, which nobody awaits in sync code: pass a plain function"
        )
    return options


_COROUTINE = 0x80
"""`inspect.CO_COROUTINE`: to load that module takes milliseconds."""


_warned = False


def warn_in_event_loop() -> None:
    """Say once that a thread which runs an event loop is about to block it."""
    global _warned
    events = sys.modules.get("asyncio.events")
    if _warned or events is None or events._get_running_loop() is None:
        return
    _warned = True
    warnings.warn(
        "a plain `with` or acquire() blocks this thread's event loop while it waits; in async code use "
        "`async with acquire_lock(...)`, or an AsyncLockManager",
        RuntimeWarning,
        stacklevel=_callers_level(),
    )


def name_comes_first(name: object, url: object, called: str) -> None:
    """Raise `ConfigurationError` for what was surely meant in another place."""
    if isinstance(url, (int, float)):
        raise ConfigurationError(
            f"after the name comes the URL, not {url!r}: give seconds by name, as in timeout={url!r}", name=str(name)
        )
    if callable(name):
        raise ConfigurationError(f"{called} needs the lock's name: write @{called}('NAME') above the function")
    if isinstance(url, str) and "://" in str(name) and "://" not in url:
        raise ConfigurationError(f"the name comes first, then the URL: write {called}('NAME', 'redis://...')")


def refuse_to_decorate(given: Any) -> None:
    """Raise `ConfigurationError` for what is no function, or returns before its work is done."""
    import inspect

    advice = {classmethod: "put @classmethod above it", staticmethod: "put @staticmethod above it"}
    advice |= {property: "put @property above it", type: "decorate its methods"}
    kind = type if isinstance(given, type) else type(given)
    if kind in advice or not callable(given):
        more = f": {advice[kind]}" if kind in advice else ""
        raise ConfigurationError(f"acquire_lock decorates a function, not {given!r}{more}")
    if inspect.isgeneratorfunction(given) or inspect.isasyncgenfunction(given):
        raise ConfigurationError(
            f"{given.__qualname__} is a generator: it would be locked only until its first value is asked for; "
            "use `with acquire_lock(...)` inside it"
        )


def refuse_a_template(name: str, function: Any) -> None:
    """Raise `ConfigurationError` for a name that would be filled in by `exclusive` of `atomiclock.celery`."""
    import inspect

    code = getattr(inspect.unwrap(function), "__code__", None)
    for argument in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ():
        if f"{{{argument}}}" in name:
            raise ConfigurationError(
                f"the name {name!r} is taken as it is written, with each call the same: to lock by an argument, "
                f"use `with acquire_lock(f{name!r}):` inside {function.__qualname__}"
            )


def warn_if_thrown_away(instead: str) -> None:
    """Say in the log if who drops the last reference is a statement that made a lock and did nothing with it.

    To be called by `__del__`, where a warning that is an error would be lost. A lock that was kept for later, and never
    used, is nobody's mistake.
    """
    try:
        frame = sys._getframe(2)
    except ValueError:  # the interpreter ends
        return
    if _throws_a_value_away(frame):
        from logging import getLogger

        where = (frame.f_code.co_filename, frame.f_lineno)
        getLogger("atomiclock").warning("%s:%d: this statement acquires nothing: %s", *where, instead)


def _throws_a_value_away(frame: FrameType) -> bool:
    """Whether `frame` is at the end of a statement that is a call and nothing else."""
    from dis import get_instructions, opmap  # needed for a mistake only

    if frame.f_code.co_code[frame.f_lasti] != opmap["POP_TOP"]:
        return False
    before = [step.opname for step in get_instructions(frame.f_code) if step.offset < frame.f_lasti]
    return bool(before) and before[-1].startswith("CALL")  # else it ends a `with` or `except`


def _callers_level() -> int:
    """The `stacklevel`, counted from who calls this, of the first code that is not this package's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    return level
