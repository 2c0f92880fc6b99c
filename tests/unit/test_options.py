"""Options: their ranges, and which of call, manager, URL and `configure()` wins."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import pytest

import atomiclock
from atomiclock import AsyncLockManager, ConfigurationError, LockManager, _options, acquire_lock, configure, try_lock
from atomiclock._options import Options

NAN, INF = float("nan"), float("inf")


class Unequalled:
    """As an array is: whether it equals something is no single truth."""

    __hash__ = None  # type: ignore[assignment]  # as an array has none

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


BAD: dict[str, list[Any]] = {
    "ttl": [0, -1, NAN, INF, -INF, True, "30", None, 10**400, [1], Unequalled()],
    "timeout": [-1, -0.001, NAN, INF, True, "5", 10**400],
    "renew": [1, 0, "yes", None, Unequalled()],
    "max_hold": [0, -1, NAN, INF, True, "5"],
    "lock_delay": [-1, NAN, INF, True, "5", None],
    "namespace": [5, b"shop", True],
    "owner": [5, b"me"],
    "on_lost": ["explode", 5, "Cancel"],
}
GOOD: dict[str, list[Any]] = {
    "ttl": [1, 0.001, 1e9],
    "timeout": [None, 0, 5, 0.5],
    "renew": [True, False],
    "max_hold": [None, 5],
    "lock_delay": [0, 0.5, 15],
    "namespace": [None, "", "shop", "a b"],
    "owner": [None, "", "Ann"],
    "on_lost": [None, print],
}


class Index(NamedTuple):
    """A whole number of another library."""

    number: int

    def __index__(self) -> int:
        return self.number


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`configure()` is undone after each test."""
    monkeypatch.setattr(_options, "_configured", {})
    monkeypatch.delenv("ATOMICLOCK_URL", raising=False)
    _options.version += 1
    yield
    _options.version += 1


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in BAD for value in BAD[option]])
def test_a_bad_value_is_refused_everywhere_and_the_option_is_named(option: str, value: Any) -> None:
    locks, tasks = LockManager("memory://"), AsyncLockManager("memory://")
    calls: list[Any] = [LockManager, AsyncLockManager]
    for call in calls:
        with pytest.raises(ConfigurationError, match=option):
            call("memory://", **{option: value})
    named = [locks.acquire, tasks.acquire, acquire_lock]
    if option != "timeout":
        named += [locks.try_acquire, tasks.try_acquire, locks.lock, tasks.lock, try_lock]
    for call in named:
        with pytest.raises(ConfigurationError, match=option):
            call("name", **{option: value})
    with pytest.raises(ConfigurationError, match=option):
        configure(**{option: value})
    assert _options._configured == {}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in GOOD for value in GOOD[option]])
def test_a_good_value_is_taken(option: str, value: Any) -> None:
    options = LockManager("memory://", **{option: value})._core.options()
    expected = "atomiclock" if option == "namespace" and value is None else value
    assert getattr(options, option) == expected


@pytest.mark.parametrize("seconds", [Decimal("2.5"), Fraction(5, 2), Index(2)])
def test_what_is_a_number_but_no_float_is_one_number_of_seconds(seconds: Any) -> None:
    """Such as numpy's, or a Decimal out of a settings file: they are floats from here on."""
    locks = LockManager("memory://", ttl=seconds, timeout=seconds, max_hold=seconds)
    options = locks._core.options()
    assert (options.ttl, options.timeout, options.max_hold) == (float(seconds),) * 3
    assert type(options.ttl) is float
    with locks.acquire("number", ttl=seconds) as lease:
        lease.extend(seconds)
    lock = locks.lock("number")
    assert lock.acquire(timeout=Index(2))
    lock.release()


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("1e999")])
def test_a_decimal_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl"):
        LockManager("memory://", ttl=value)


def test_an_unknown_argument_is_a_type_error_as_for_any_function() -> None:
    with pytest.raises(TypeError):
        acquire_lock("name", tll=5)  # type: ignore[call-arg]  # that is the point


def test_the_defaults_are_the_documented_ones() -> None:
    assert Options() == (30.0, None, True, None, "atomiclock", None, None, True, 0.0)
    assert LockManager("memory://")._core.options() == Options()


def test_call_beats_manager_beats_url_beats_configure_beats_default() -> None:
    configure(ttl=1, timeout=1, max_hold=1, namespace="configured", owner="configured")
    locks = LockManager("memory://?ttl=2&timeout=2&max_hold=2", ttl=3, timeout=3)
    options = locks._core.options({"ttl": 4})
    assert (options.ttl, options.timeout, options.max_hold) == (4, 3, 2)
    assert (options.namespace, options.owner, options.renew) == ("configured", "configured", True)


def test_none_that_was_passed_beats_what_was_configured() -> None:
    configure(timeout=5, max_hold=5)
    options = LockManager("memory://", timeout=None)._core.options({"max_hold": None})
    assert (options.timeout, options.max_hold) == (None, None)


def test_configure_reaches_managers_that_exist_already() -> None:
    locks = LockManager("memory://configured")
    configure(ttl=7)
    with locks.acquire("name") as lease:
        assert lease.ttl == 7


def test_configure_replaces_only_what_it_names() -> None:
    configure(ttl=7, owner="me")
    configure(ttl=8)
    options = LockManager("memory://")._core.options()
    assert (options.ttl, options.owner) == (8, "me")


def test_the_url_comes_from_the_call_then_configure_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _options.configured_url() == "sqlite://"
    monkeypatch.setenv("ATOMICLOCK_URL", "memory://environment")
    assert "memory://environment" in repr(LockManager())
    configure(url="memory://configured")
    assert "memory://configured" in repr(LockManager())
    assert "memory://call" in repr(LockManager("memory://call"))
    configure(url=None)
    assert "memory://environment" in repr(LockManager())


@pytest.mark.parametrize("url", [5, b"memory://", "", "nonsense", "memory://a b"])
def test_configure_refuses_what_is_no_url(url: Any) -> None:
    with pytest.raises(ConfigurationError):
        configure(url=url)
    assert _options._configured == {}


def test_a_ttl_in_the_url_is_checked_like_any() -> None:
    for query in ("ttl=0", "ttl=nan", "ttl=x", "ttl=-1", "timeout=-1", "timeout=x", "renew=2", "max_hold=0", "ttl="):
        with pytest.raises(ConfigurationError, match=query.partition("=")[0]):
            LockManager(f"memory://?{query}")


def test_the_url_spells_none_and_truth() -> None:
    options = LockManager("memory://?timeout=none&renew=off&namespace=a%20b&max_hold=None")._core.options()
    assert (options.timeout, options.renew, options.namespace, options.max_hold) == (None, False, "a b", None)


def test_a_manager_takes_one_of_url_and_client() -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        LockManager("memory://", client=object())
    with pytest.raises(ConfigurationError, match="object"):
        LockManager(client=object())
    with pytest.raises(ConfigurationError, match="object"):
        LockManager(object())


def test_help_shows_the_defaults() -> None:
    import inspect

    assert "ttl: 'float' = 30.0" in str(inspect.signature(atomiclock.acquire_lock))
    assert "timeout: 'float | None' = None" in str(inspect.signature(atomiclock.acquire_lock))
