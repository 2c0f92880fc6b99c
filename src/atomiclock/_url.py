"""URLs of backends: parsed once, checked whole, and never shown with their password."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ._options import IN_URL, Options, from_text
from .errors import ConfigurationError

FILES = "and for a lock in a file sqlite:///relative.db or sqlite:////absolute.db"


class URL(NamedTuple):
    """A backend's URL, taken apart. `query` has the backend's own options, `options` those of every lock."""

    scheme: str
    host: str | None
    port: int | None
    username: str | None
    password: str | None
    path: str
    query: dict[str, str]
    options: dict[str, Any]
    netloc: str = ""

    def __repr__(self) -> str:
        return f"<URL {self.scheme}://{self.host}>"  # without what is secret

    def take(self, **known: Any) -> dict[str, Any]:
        """The backend's options as `known` converts them: name to a function of (name, text).

        Raises `ConfigurationError` for an option that is not in `known`, naming the nearest one that is.
        """
        for key in self.query:
            if key not in known:
                hint = nearest(key, [*known, *IN_URL])
                raise ConfigurationError(f"{self.scheme}:// has no option {key!r}; {hint}")
        return {key: known[key](key, text) for key, text in self.query.items()}


def mask(url: str) -> str:
    """`url` as it may be shown: without a password, wherever it stands, also in what is only meant to be a URL.

    A password that should have been percent-encoded may have any character, so all up to the last @ is hidden. So is
    what stands alone before an @: a user, or the password of somebody who forgot the colon before it.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/+", url)
    start = scheme.end() if scheme else 0
    rest = re.sub(r"(?s)^([^:@]*:).*@", r"\1***@", url[start:])
    rest = re.sub(r"^[^:@/?#]*@", "***@", rest)
    return re.sub(r"(?i)((?:password|passwd|secret|token)=)[^&#]*", r"\1***", url[:start] + rest)


def nearest(word: str, known: list[str]) -> str:
    """A half-sentence that names the known word nearest to `word`, or all of them."""
    from difflib import get_close_matches  # needed for a mistake only

    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def parse(text: str) -> URL:
    """The parts of `text`. Raises `ConfigurationError` that says what is wrong with it."""
    shown = mask(text)
    scheme, separator, _ = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        hint = FILES if re.search(r"^[./~]|\.(db|sqlite3?|lock)$", text) else "such as redis://localhost:6379/0"
        raise ConfigurationError(f"{shown!r} is not a backend's URL: write scheme://..., {hint}")
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ConfigurationError(f"{shown!r} has white space or a control character: percent-encode it")
    try:
        parts = urlsplit(text)
    except ValueError:  # whose text would show the password
        raise ConfigurationError(f"{shown!r} has no valid host: write an IPv6 address in brackets") from None
    if parts.fragment:
        raise ConfigurationError(f"{shown!r} has a '#': percent-encode it as %23")
    options, own = _query(parts, shown)
    if parts.netloc and "@" not in parts.netloc and ("@" in parts.path or any("@" in key for key in own)):
        # The rest of a password, which an error about a path or an option would show.
        raise ConfigurationError(f"{shown!r} has a '/' or '?' before its '@': percent-encode them as %2F and %3F")
    return URL(
        scheme=parts.scheme.lower(),
        host=_host(parts, shown),
        port=_port(parts, shown),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        path=unquote(parts.path),
        query=own,
        options=options,
        netloc=parts.netloc,
    )


def _query(parts: SplitResult, shown: str) -> tuple[dict[str, Any], dict[str, str]]:
    options: dict[str, Any] = {}
    own: dict[str, str] = {}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key in own or key in options:
            raise ConfigurationError(f"{shown!r} says {key} twice")
        if key in IN_URL:
            options[key] = from_text(key, text)
        else:
            own[key] = text
    Options().with_(options)
    return options, own


def _host(parts: SplitResult, shown: str) -> str | None:
    try:
        host = parts.hostname
    except ValueError as error:
        raise ConfigurationError(f"{shown!r}: {error}") from None
    return unquote(host) if host else None


def _port(parts: SplitResult, shown: str) -> int | None:
    if "," in parts.netloc:  # several hosts: the backend that takes them reads `netloc` itself
        return None
    try:
        return parts.port
    except ValueError:
        raise ConfigurationError(f"the port in {shown!r} is not a number from 0 to 65535") from None
