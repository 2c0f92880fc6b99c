"""From names to keys: injective, in characters that every store takes, and not too long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomiclock import ConfigurationError
from atomiclock._names import check_name, digest, key_of

SURROGATES_TOO = st.characters(exclude_categories=())
NAMES = st.one_of(st.text(SURROGATES_TOO, min_size=1), st.text("ab:~0f{} \n", min_size=1, max_size=200))
SAFE = re.compile(r"[!-z|~]+")


@given(NAMES)
def test_a_key_has_only_characters_that_every_store_takes_and_is_short(name: str) -> None:
    key = key_of("shop", name)
    assert SAFE.fullmatch(key)
    assert len(key) <= 160
    assert len(key.encode()) == len(key)


@given(NAMES, NAMES)
def test_two_names_never_share_a_key(one: str, other: str) -> None:
    assert (key_of("shop", one) == key_of("shop", other)) == (one == other)


@given(NAMES)
def test_a_name_that_looks_like_a_key_does_not_get_that_key(name: str) -> None:
    key = key_of("shop", name)
    alike = key.removeprefix("shop:")
    if alike != name:
        assert key_of("shop", alike) != key


@given(NAMES)
def test_an_empty_namespace_leaves_the_name_as_it_is(name: str) -> None:
    assert key_of("", name) == name


def test_a_plain_name_stays_readable() -> None:
    assert key_of("shop", "invoice:42") == "shop:invoice:42"
    assert key_of("shop", "two words").startswith("shop:two_words~")
    assert key_of("shop", "x" * 1000).startswith("shop:xxxx")


def test_the_longest_plain_key_and_one_more() -> None:
    assert key_of("shop", "x" * 155) == "shop:" + "x" * 155
    assert key_of("shop", "x" * 156) == "shop:" + "x" * 59 + "~" + digest("shop:" + "x" * 156)


def test_keys_stay_the_same_in_later_versions() -> None:
    assert key_of("atomiclock", "a b") == "atomiclock:a_b~" + digest("atomiclock:a b")
    assert digest("atomiclock:a b") == "7bb6be1e01e7e089999208a022ea3b8e"
    assert digest("\udcff") == "40d1d020650a22edcf418d8f8392fbf2"


def test_a_long_wrong_name_is_shown_short() -> None:
    with pytest.raises(ConfigurationError, match="not list") as raised:
        check_name(["x" * 1000])
    assert len(str(raised.value)) < 200
