"""Names from the arguments of a call: the same for the same work, in every process and Python version."""

from __future__ import annotations

import datetime
import enum
import os
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from atomiclock import ConfigurationError
from atomiclock._keys import Key


def work(x: Any, y: Any = 2, *rest: Any, z: Any = None, **more: Any) -> None:
    pass


def key(*args: Any, template: Any = None, **kwargs: Any) -> str:
    return Key(work, template)(args, kwargs)


class Colour(enum.Enum):
    RED = "red"


def test_the_same_call_in_other_words_has_the_same_key() -> None:
    assert key(1) == key(x=1) == key(1, 2) == key(1, y=2) == key(y=2, x=1) == key(1, z=None)
    assert key(1, a=1, b=2) == key(1, b=2, a=1)
    assert key([1, 2]) == key((1, 2)), "a broker makes lists of tuples"
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key(Colour.RED) == key("red")


def test_other_arguments_have_another_key() -> None:
    others = [
        key(1), key(2), key("1"), key(1.5), key(1, 3), key(1, 2, 3), key(1, z=3), key(1, a=1), key([1]), key([[1]]),
        key({"a": 1}), key({"a": 2}), key(None), key("None"), key(b"1"), key(""), key([]), key({}), key(True),
        key("true"), key("\udcff"), key("é"), key("e\u0301"), key(0.1), key(0.1 + 1e-17 + 2e-17),
    ]  # fmt: skip
    assert len(set(others)) == len(others)


def test_a_template_takes_the_bound_arguments() -> None:
    assert key(1, template="{x}-{y}") == key(x=1, template="{x}-{y}") == "1-2"
    assert key("a b", template="feed:{x!r:>8}") == "feed:   'a b'"
    assert key(uuid.UUID(int=5), template="{x}") == "00000000-0000-0000-0000-000000000005"
    assert key(datetime.date(2024, 2, 29), template="{x:%Y}") == "2024"
    assert key(Decimal("1.50"), template="{x}") == "1.50"
    assert key(Colour.RED, template="{x}") == "red"


def test_a_callable_is_given_the_arguments_by_name() -> None:
    assert key(1, z=5, template=lambda x, y, z, **_: f"{x}{y}{z}") == "125"
    bad_names: list[Any] = ["", None, 5]
    for bad in bad_names:
        with pytest.raises(ConfigurationError, match="non-empty str"):
            key(1, template=lambda bad=bad, **_: bad)


@pytest.mark.parametrize(
    "template", ["{nobody}", "{x}{nobody}", "{0}", "{}", "{rest}", "{more}", "{x", "x}", "{x.y.z}{w}"]
)
def test_a_template_that_names_no_parameter_is_refused_when_it_is_made(template: str) -> None:
    with pytest.raises(ConfigurationError):
        Key(work, template)


@pytest.mark.parametrize("template", [5, b"{x}", ["{x}"]])
def test_what_is_no_template_is_refused_when_it_is_made(template: Any) -> None:
    with pytest.raises(ConfigurationError):
        Key(work, template)


UNSTABLE = [object(), {1, 2}, lambda: None, work, object, iter([])]


@pytest.mark.parametrize("value", UNSTABLE, ids=lambda value: type(value).__name__)
def test_a_value_without_a_stable_form_is_refused(value: Any) -> None:
    for args in ((value,), ([value],), ({"a": value},)):
        with pytest.raises(ConfigurationError, match="no form"):
            key(*args)
    with pytest.raises(ConfigurationError, match="no form"):
        key(value, template="{x}")


def test_a_mapping_with_other_keys_than_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no form"):
        key({1: 2})


def test_arguments_that_do_not_fit_are_the_calls_own_type_error() -> None:
    for args, kwargs in (((), {}), ((1,), {"x": 1})):
        with pytest.raises(TypeError):
            key(*args, **kwargs)


def test_skipped_parameters_do_not_count() -> None:
    made = Key(work, None)
    assert made((1, 2), {}, frozenset({"x"})) == made((object(), 2), {}, frozenset({"x"}))


SCRIPT = """
import datetime, decimal, uuid
from atomiclock._keys import Key
def work(a, b=2, *rest, c=None, **more): pass
print(Key(work, None)((1, "\\u00e9\\udcff"), {"c": [1.5, None, True, {"z": 1, "a": b"x"}],
    "later": decimal.Decimal("1.50"), "day": datetime.datetime(2024, 2, 29, 1, 2),
    "id": uuid.UUID(int=7)}))
"""
INTERPRETERS = [sys.executable, *map(str, sorted(Path.home().glob(".pyenv/versions/3.1*/bin/python")))]


def test_the_digest_is_the_same_under_every_hash_seed_and_interpreter() -> None:
    source = str(Path(__file__).parents[2] / "src")
    digests = set()
    for seed, python in enumerate([*INTERPRETERS, sys.executable]):
        env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([python, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert digests == {"eee37a3ec87520902c2424cb9c4a0794"}
