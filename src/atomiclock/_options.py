"""The options of a lock: their ranges, and which of call, manager, URL and `configure()` wins."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from ._names import DEFAULT_NAMESPACE
from .errors import ConfigurationError

OnLost = Callable[[Any], object] | Literal["cancel"] | None


class Default:
    """The default of an argument: told apart from the same value passed, and shown as that value by help()."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return self is other  # and nobody else is asked

    __hash__ = object.__hash__


TTL: Any = Default(30.0)
NONE: Any = Default(None)
TRUE: Any = Default(True)
ZERO: Any = Default(0.0)


class Options(NamedTuple):
    """What a call can choose, checked. Seconds throughout; the meanings are in `acquire_lock`."""

    ttl: float = 30.0
    timeout: float | None = None
    renew: bool = True
    max_hold: float | None = None
    namespace: str = DEFAULT_NAMESPACE
    owner: str | None = None
    on_lost: OnLost = None
    handover: bool = True
    lock_delay: float = 0.0

    def with_(self, given: Mapping[str, Any]) -> Options:
        """These options with those of `given` that were really passed, each checked."""
        passed = {key: value for key, value in given.items() if type(value) is not Default}
        if not passed:
            return self
        return self._replace(**{key: CHECKS[key](key, value) for key, value in passed.items()})


_NOTHING = (TTL, NONE, TRUE, NONE, NONE, NONE, NONE, ZERO, TRUE)
"""What `overrides` is given by most calls."""


def overrides(
    ttl: Any = TTL,
    timeout: Any = NONE,
    renew: Any = TRUE,
    max_hold: Any = NONE,
    namespace: Any = NONE,
    owner: Any = NONE,
    on_lost: Any = NONE,
    lock_delay: Any = ZERO,
    handover: Any = TRUE,
) -> dict[str, Any]:
    """The options that a call really gave."""
    if _NOTHING == (ttl, timeout, renew, max_hold, namespace, owner, on_lost, lock_delay, handover):  # noqa: SIM300  # ours ask nobody else
        return {}
    given = {
        "ttl": ttl,
        "timeout": timeout,
        "renew": renew,
        "max_hold": max_hold,
        "namespace": namespace,
        "owner": owner,
        "on_lost": on_lost,
        "handover": handover,
        "lock_delay": lock_delay,
    }
    return {key: value for key, value in given.items() if type(value) is not Default}


def _number(key: str, value: object) -> float:
    kind = type(value)
    if kind is bool or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):  # also Decimal, and numpy's
        in_seconds = getattr(value, "total_seconds", None)  # as a timedelta has
        hint = f"; write {key}={in_seconds():g}" if callable(in_seconds) else ""
        raise ConfigurationError(f"{key} is a number of seconds, not {kind.__name__}: {value!r}{hint}")
    try:
        return float(value)  # type: ignore[arg-type]  # it has one of the two
    except OverflowError:
        raise ConfigurationError(f"{key} must be a finite number of seconds, not {value!r}"[:200]) from None
    except (TypeError, ValueError):  # Decimal("sNaN"), an array of several
        raise ConfigurationError(f"{key} is a number of seconds, not {value!r}"[:200]) from None


def _positive(key: str, value: object) -> float:
    seconds = _number(key, value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigurationError(f"{key} must be a finite number of seconds above 0, not {value!r}")
    return seconds


def _positive_or_none(key: str, value: object) -> float | None:
    return None if value is None else _positive(key, value)


def _wait_or_none(key: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = _number(key, value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ConfigurationError(
            f"{key} must be a finite number of seconds, 0 or more (0: one attempt; None: wait for ever), not {value!r}"
        )
    return seconds


def _zero_or_more(key: str, value: object) -> float:
    seconds = _number(key, value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ConfigurationError(f"{key} must be a finite number of seconds, 0 or more, not {value!r}")
    return seconds


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{key} is True or False, not {value!r}")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{key} is a str, not {type(value).__name__}: {value!r}")
    return value


def _namespace(key: str, value: object) -> str:
    return DEFAULT_NAMESPACE if value is None else _text(key, value)


def _text_or_none(key: str, value: object) -> str | None:
    return None if value is None else _text(key, value)


def _on_lost(key: str, value: Any) -> OnLost:
    if value is None or value == "cancel" or callable(value):
        return value  # type: ignore[no-any-return]  # a callable, or one of the two constants
    raise ConfigurationError(
        f'{key} is None, a callable that takes the lease, or "cancel" in async code, not {value!r}'
    )


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "ttl": _positive,
    "timeout": _wait_or_none,
    "renew": _flag,
    "max_hold": _positive_or_none,
    "namespace": _namespace,
    "owner": _text_or_none,
    "on_lost": _on_lost,
    "handover": _flag,
    "lock_delay": _zero_or_more,
}

IN_URL = ("ttl", "timeout", "renew", "max_hold", "namespace", "handover", "lock_delay")


def seconds_from_text(key: str, text: str) -> float:
    """The seconds that a URL's `key=text` says."""
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{key}={text} in the URL is not a number of seconds") from None


def bound_from_text(key: str, text: str) -> float:
    """The seconds that a backend may take for a call, as a URL says them."""
    seconds = seconds_from_text(key, text)
    if not 0 < seconds < 3600:
        raise ConfigurationError(f"{key} is a number of seconds above 0, not {text}")
    return seconds


def flag_from_text(key: str, text: str) -> bool:
    """The truth value that a URL's `key=text` says."""
    value = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in value:
        raise ConfigurationError(f"{key}={text} in the URL is neither true nor false")
    return value[text.lower()]


def from_text(key: str, text: str) -> Any:
    """The value of one of `IN_URL` as a URL spells it."""
    if key == "namespace":
        return text
    if key in ("renew", "handover"):
        return flag_from_text(key, text)
    if text.lower() == "none" and key in ("timeout", "max_hold"):
        return None
    return seconds_from_text(key, text)


_FALLBACK_URL = "sqlite://"
_configured: dict[str, Any] = {}
version = 0
"""Changes whenever `configure()` was called, so that what was derived from it can be kept until then."""


def configure(
    url: str | None = NONE,
    *,
    ttl: float = TTL,
    timeout: float | None = NONE,
    renew: bool = TRUE,
    max_hold: float | None = NONE,
    namespace: str | None = NONE,
    owner: str | None = NONE,
    on_lost: OnLost = NONE,
    lock_delay: float = ZERO,
    handover: bool = TRUE,
) -> None:
    """Set this process's defaults for calls that do not say otherwise; each call replaces what it names.

    `url` is the backend that `acquire_lock` and `try_lock` use when they are given none. The others are the
    defaults of the arguments of the same names, `handover` of that of the managers. A call's own arguments beat a
    URL's, and a URL's beat these.
    Raises `ConfigurationError` for a value out of range, and then changes nothing.
    """
    global version
    changed = overrides(ttl, timeout, renew, max_hold, namespace, owner, on_lost, lock_delay, handover)
    Options().with_(changed)
    given_url: object = url
    if type(given_url) is not Default:
        if given_url is not None and not isinstance(given_url, str):
            raise ConfigurationError(f"configure(url=...) takes a URL such as 'redis://localhost', not {given_url!r}")
        if given_url is not None:
            from ._process import loading

            with loading:
                from ._registry import check  # loads urllib.parse: only who says a URL pays

                check(given_url)
        changed["url"] = given_url
    _configured.update(changed)
    version += 1


def configured_url() -> str:
    """The URL for calls that give none."""
    return _configured.get("url") or os.environ.get("ATOMICLOCK_URL") or _FALLBACK_URL


def base() -> Options:
    """The built-in defaults with those of `configure()`."""
    return Options().with_({key: value for key, value in dict(_configured).items() if key != "url"})
