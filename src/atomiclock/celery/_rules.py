"""The options of a protected task: their ranges, and which of header, decorator and Celery's configuration wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .._options import CHECKS, Default
from ..errors import ConfigurationError

Word = Literal["skip", "retry", "coalesce", "wait", "raise"]
WORDS = ("skip", "retry", "coalesce", "wait", "raise")
HEADER = "atomiclock"
"""The message header that overrides rules for one call, as a mapping."""
STATE = "atomiclock_state"
"""The message header in which a call that was put back remembers since when and how often."""
PREFIX = "atomiclock_"
"""What the names of the settings begin with in Celery's configuration."""


@dataclass(frozen=True)
class Rules:
    """What holds for one call. Seconds throughout; `exclusive` says what each means."""

    ttl: float | None = None
    on_conflict: str | Callable[..., str] = "skip"
    delay: tuple[float, float] = (1.0, 30.0)
    give_up: float = 600.0
    then: str = "raise"
    wait: float = 0.0
    skip_result: Any = None
    busy: str = "already being imported by another worker"
    on_lost: str = "abort"
    on_backend_error: str = "retry"
    max_hold: float | None = None
    min_hold: float = 0.0
    hold_on_retry: bool = False
    url: str | None = None
    namespace: str | None = None
    enabled: bool = True

    def with_(self, given: Mapping[str, Any], source: str = "") -> Rules:
        """These with those of `given` that were really passed, each checked. `source` is where an error points to."""
        passed = {name: value for name, value in given.items() if type(value) is not Default}
        checked = {name: check(name, value, source) for name, value in passed.items()}
        rules = replace(self, **checked) if checked else self
        if rules.max_hold is not None and rules.min_hold > rules.max_hold:
            raise ConfigurationError(f"{source}min_hold={rules.min_hold:g} is longer than max_hold={rules.max_hold:g}")
        return rules


def of_configuration(conf: Any) -> dict[str, Any]:
    """The rules that Celery's configuration sets, with whatever namespace it is read."""
    found = {name: conf.get(PREFIX + name) for name in SETTABLE}
    return {name: value for name, value in found.items() if value is not None}


def of_header(value: Any) -> dict[str, Any]:
    """The rules that a call's header sets."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"the header {HEADER!r} is a mapping such as {{'on_conflict': 'raise'}}, not {value!r}"
        )
    unknown = sorted(set(value) - OVERRIDABLE)
    if unknown:
        raise ConfigurationError(
            f"a call cannot change {', '.join(map(repr, unknown))}: only {', '.join(sorted(OVERRIDABLE))}"
        )
    return dict(value)


def check(name: str, value: Any, source: str = "") -> Any:
    """`value` as the rule `name` takes it, or a `ConfigurationError`."""
    if name not in _CHECKS:
        raise ConfigurationError(f"{source}there is no rule {name!r}: {', '.join(_CHECKS)}")
    try:
        return _CHECKS[name](name, value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}{error}") from None


def _one_of(*words: str) -> Callable[[str, Any], str]:
    def chosen(name: str, value: Any) -> str:
        if value not in words:
            raise ConfigurationError(f"{name} is one of {', '.join(map(repr, words))}, not {value!r}")
        return str(value)

    return chosen


def _on_conflict(name: str, value: Any) -> Any:
    if callable(value):
        return value
    if value not in WORDS:
        raise ConfigurationError(f"{name} is one of {', '.join(map(repr, WORDS))} or a callable, not {value!r}")
    return value


def _delay(name: str, value: Any) -> tuple[float, float]:
    if isinstance(value, (int, float)):
        value = (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigurationError(f"{name} is a number of seconds or a pair, the first and the longest, not {value!r}")
    first, longest = (CHECKS["ttl"](name, each) for each in value)
    if first > longest:
        raise ConfigurationError(f"{name} is a pair, the first and the longest, not {value!r}")
    return first, longest


def _seconds(name: str, value: Any) -> float:
    if value is None:
        raise ConfigurationError(f"{name} is a number of seconds, not None")
    return float(CHECKS["timeout"](name, value))


def _optional(check_value: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check_value(name, value)


def _url(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{name} is a URL such as 'redis://localhost', not {value!r}")
    return value or None


def _any(_: str, value: Any) -> Any:
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "ttl": _optional(CHECKS["ttl"]),
    "on_conflict": _on_conflict,
    "delay": _delay,
    "give_up": _seconds,
    "then": _one_of("raise", "skip"),
    "wait": _seconds,
    "skip_result": _any,
    "busy": _any,
    "on_lost": _one_of("abort", "fail", "warn"),
    "on_backend_error": _one_of("retry", "raise", "run"),
    "max_hold": CHECKS["max_hold"],
    "min_hold": _seconds,
    "hold_on_retry": CHECKS["renew"],
    "url": _url,
    "namespace": _optional(CHECKS["owner"]),
    "enabled": CHECKS["renew"],
}

SETTABLE = frozenset(_CHECKS) - {"skip_result", "busy", "then", "max_hold"}
"""Rules that are also settings of Celery."""
OVERRIDABLE = frozenset(_CHECKS) - {"url", "namespace", "busy"}
"""Rules that one call may change."""
