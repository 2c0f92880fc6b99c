"""What etcd's errors mean for a lock. The texts are those of etcd's rpctypes/error.go, 3.4 and 3.5."""

from __future__ import annotations

from .._names import presentable
from ..errors import BackendRefused, BackendUnavailable
from . import Unknown
from ._etcd_recipe import EXISTS, NOT_FOUND
from ._etcd_target import Target
from ._grpc import (
    ABORTED,
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    Answer,
)

_STALE = ("invalid auth token", "revision of auth store is old")
_BAD_CREDENTIALS = ("authentication failed", "user name is empty", "user name not found", "invalid auth token")


def is_fact(answer: Answer) -> bool:
    """Whether it is an answer that the recipe knows how to go on with."""
    return any(words in answer.text for words in (NOT_FOUND, EXISTS))


def stale_token(answer: Answer) -> bool:
    """Whether the token is valid no more: it expired, the server restarted, or users or roles were changed."""
    return any(words in answer.text for words in _STALE)


def explain(answer: Answer, target: Target, endpoint: str) -> Exception:
    """The exception for an `answer` that is no fact."""
    code, text = answer.code, presentable(answer.text)
    where = target.where(endpoint)
    if (refusal := _refusal(code, text, target)) is not None:
        return BackendRefused(f"{where} refused us: {text}; {refusal}")
    if code == RESOURCE_EXHAUSTED:  # too many requests, no space left: it did nothing
        return Unknown(f"{where} answered: {text}", sent=False)
    if code in (UNAVAILABLE, UNKNOWN, INTERNAL, ABORTED, DEADLINE_EXCEEDED, CANCELLED):
        return Unknown(f"{where}: {text}")
    if code == UNIMPLEMENTED:
        return BackendRefused(f"{where} does not speak etcd's API v3: {text}")
    return BackendUnavailable(f"{where} answered: {text}")


def _refusal(code: int, text: str, target: Target) -> str | None:
    """Advice, if the server will not serve us."""
    if any(words in text for words in _BAD_CREDENTIALS):
        if target.token is not None:
            return "the client's token has expired, and only a URL with user:password@ lets us get another"
        return "check user and password in etcd://user:password@host"
    if code == PERMISSION_DENIED:
        return "give the user a role with readwrite on the prefix of the locks, such as atomiclock:"
    return None
