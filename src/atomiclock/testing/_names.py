"""Laws of names: any characters, any length, never confused."""

from __future__ import annotations

from contextlib import ExitStack
from hashlib import blake2b
from typing import Any

import pytest

from .._names import key_of
from ..errors import ConfigurationError
from ._base import Laws
from ._facade import Locks

LONG = "x" * 10_000
NAMES = [
    "plain", "Plain", "with space", " with space", "with space ", "tab\there", "line\nfeed", "line\r\nfeed",
    "x\r\nSET y z\r\n", "nul\0byte", "\0", "\x1f", "\x7f", "é", "e\u0301", "ß", "SS", "日本語", "💡", "\u202e",
    "\udcff", "\ud800", "{braces}", "{", "}", "a{b}c", "%s %d", "$1", "'; DROP TABLE locks; --", '"', "\\",
    "/../../etc", "*", "?", "[a]", "a:b", "a::b", ":", ":a", "a:info", "a:wake", "a:waiting", "~", "~" + 32 * "0", LONG,
    LONG + "x", LONG[:-1] + "y", "y" + LONG[1:], "0", "-1", "None", "True", ".", "..", "#", "@", "a?b=c&d",
]  # fmt: skip


class NameLaws(Laws):
    def test_names_of_any_characters_and_length_are_distinct(self, locks: Locks, another: Locks, name: str) -> None:
        names = [*NAMES, *(name + one for one in NAMES)]
        with ExitStack() as stack:
            tokens = {}
            for one in names:
                lease = locks.acquire(one, ttl=60, renew=False, timeout=0, namespace=name)
                tokens[one] = stack.enter_context(lease).token
            for one in names:
                assert another.try_acquire(one, namespace=name) is None
                holder = another.holder(one, namespace=name)
                assert holder is not None
                assert holder.token == tokens[one]
        for one in names:
            assert another.holder(one, namespace=name) is None

    def test_a_name_that_looks_like_the_key_of_another_is_another(self, locks: Locks, another: Locks) -> None:
        namespace = "looks"
        for one in (LONG, "a b", "é"):
            key = key_of(namespace, one)
            digest = blake2b(one.encode(), digest_size=16).hexdigest()
            alike = [key.removeprefix(namespace + ":"), key, f"{one}~{digest}"]
            with locks.acquire(one, namespace=namespace):
                for other in alike:
                    with another.acquire(other, timeout=0, namespace=namespace):
                        pass

    def test_namespaces_are_separate(self, locks: Locks, another: Locks, name: str) -> None:
        with locks.acquire(name), another.acquire(name, namespace="shop", timeout=0) as lease:
            with locks.acquire(name, namespace="shop2", timeout=0):
                assert locks.try_acquire(name, namespace="shop") is None
                holder = locks.holder(name, namespace="shop")
                assert holder is not None
                assert holder.token == lease.token

    def test_an_empty_namespace_takes_the_name_verbatim(self, locks: Locks, another: Locks, name: str) -> None:
        assert key_of("", name) == name
        with locks.acquire(name, namespace="", timeout=0):
            assert another.try_acquire(name, namespace="") is None
            another.acquire(name, timeout=0).release()

    def test_a_name_that_is_no_text_is_refused(self, locks: Locks) -> None:
        bad_names: list[Any] = ["", None, 5, b"bytes", ["a"]]
        for bad in bad_names:
            for call in (locks.acquire, locks.try_acquire, locks.lock, locks.holder):
                with pytest.raises(ConfigurationError, match="name"):
                    call(bad)
