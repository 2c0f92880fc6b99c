"""From the user's name to the key in the store."""

from __future__ import annotations

import re
from functools import lru_cache

from .errors import ConfigurationError

DEFAULT_NAMESPACE = "atomiclock"

# Printable ASCII but the space, and but the braces, which Redis Cluster reads as a hash tag.
_PLAIN = re.compile(r"[!-z|~]+", re.ASCII)
_UNSAFE = re.compile(r"[^!-z|~]", re.ASCII)
_LOOKS_DIGESTED = re.compile(r"~[0-9a-f]{32}$")
_LONGEST_KEY = 160  # memcached's limit of 250 bytes, less room for what adapters append
_HEAD = 64


def check_name(name: object) -> str:
    """`name` if it can be a lock's name, else a `ConfigurationError` that says what to pass."""
    if not isinstance(name, str):
        raise ConfigurationError(
            f"a lock's name is a non-empty str, not {type(name).__name__}: {_short(name)}; say what the "
            "lock protects, as in 'invoice:42'"
        )
    if not name:
        raise ConfigurationError("a lock's name must not be empty: name what the lock protects, as in 'invoice:42'")
    return name


def key_of(namespace: str, name: str) -> str:
    """The key in the store: `namespace:name`, or `name` verbatim where the namespace is "".

    A key that is long or has characters that some store cannot take becomes a readable head and a digest of
    the whole. A name that only looks like such a key is digested too, so two names never share a key.
    Raises `ConfigurationError` for what is no name.
    """
    if type(name) is str and name and namespace and len(name) <= _LONGEST_KEY:
        return _short_key_of(namespace, name)
    check_name(name)
    return _key_of(namespace, name) if namespace else name


def _key_of(namespace: str, name: str) -> str:
    key = f"{namespace}:{name}"
    if len(key) <= _LONGEST_KEY and _PLAIN.fullmatch(key) and not _LOOKS_DIGESTED.search(key):
        return key
    return f"{_UNSAFE.sub('_', key[:_HEAD])}~{digest(key)}"


_short_key_of = lru_cache(maxsize=256)(_key_of)
"""Most programs use a few names again and again."""


def digest(text: str) -> str:
    """128 bits of `text` in hex, the same in every process and version. Lone surrogates are legal in a str."""
    from ._process import loading

    with loading:
        from hashlib import blake2b  # OpenSSL takes milliseconds to load: only names that need it pay

    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def presentable(text: str) -> str:
    """`text` from a store as it may stand in a message: whoever wrote it there can have written anything."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:200])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
