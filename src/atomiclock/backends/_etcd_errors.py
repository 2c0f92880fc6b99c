"""What etcd's and grpcio's errors mean for a lock. The texts are those of etcd's rpctypes/error.go, 3.4 and 3.5."""

from __future__ import annotations

from typing import Any

import grpc

from ..errors import BackendRefused, BackendUnavailable
from . import Unknown
from ._etcd_recipe import EXISTS, NOT_FOUND
from ._etcd_target import Target

_CODE = grpc.StatusCode
_STALE = ("invalid auth token", "revision of auth store is old")
_BAD_CREDENTIALS = ("authentication failed", "user name is empty", "user name not found", "invalid auth token")
_BAD_CERTIFICATE = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification", "not in peer certificate")
_WRONG_PROTOCOL = ("WRONG_VERSION_NUMBER", "http1.x server")
_NEEDS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE")


def details_of(error: Any) -> str:
    return str(error.details() or "")


def is_fact(error: Any) -> bool:
    """Whether it is an answer that the recipe knows how to go on with."""
    return any(words in details_of(error) for words in (NOT_FOUND, EXISTS))


def stale_token(error: Any) -> bool:
    """Whether the token is valid no more: it expired, the server restarted, or users or roles were changed."""
    return any(words in details_of(error) for words in _STALE)


def cannot_connect(error: Any) -> bool:
    """Whether it is certain that nothing was sent."""
    text = details_of(error)
    return any(
        words in text for words in ("failed to connect to all addresses", "DNS resolution failed", "errors resolving")
    )


def explain(error: Any, target: Target, endpoint: str) -> Exception:
    """The exception for an `error` that is no fact."""
    code, text = error.code(), details_of(error)
    where = target.place if len(target.endpoints) == 1 else f"{target.place}, of it {endpoint}"
    if (refusal := _refusal(code, text, target)) is not None:
        return BackendRefused(f"{where} refused us: {text}; {refusal}")
    if code is _CODE.DEADLINE_EXCEEDED:
        return Unknown(f"{where} did not answer in time (is it an etcd?)")
    if code is _CODE.CANCELLED:
        return Unknown(f"the connection to {where} was closed meanwhile")
    if cannot_connect(error):
        return _unreachable(text, where)
    if code is _CODE.RESOURCE_EXHAUSTED:  # too many requests, no space left: it did nothing
        return Unknown(f"{where} answered: {text}", sent=False)
    if code in (_CODE.UNAVAILABLE, _CODE.UNKNOWN, _CODE.INTERNAL, _CODE.ABORTED):
        return Unknown(f"{where}: {text}")
    if code is _CODE.UNIMPLEMENTED:
        return BackendRefused(f"{where} does not speak etcd's API v3: {text}")
    return BackendUnavailable(f"{where} answered: {text}")


def _refusal(code: Any, text: str, target: Target) -> str | None:
    """Advice, if the server will not serve us."""
    if any(words in text for words in _BAD_CREDENTIALS):
        if target.token is not None:
            return "the client's token has expired, and only a URL with user:password@ lets us get another"
        return "check user and password in etcd://user:password@host"
    if code is _CODE.PERMISSION_DENIED:
        return "give the user a role with readwrite on the prefix of the locks, such as atomiclock:"
    return None


def _unreachable(text: str, where: str) -> Exception:
    """What it means that there was no connection."""
    if any(words in text for words in _BAD_CERTIFICATE):
        return BackendRefused(
            f"{where}: the server's certificate is not trusted: {text}; check ca= and the host's name"
        )
    if any(words in text for words in _NEEDS_CERTIFICATE):
        return BackendRefused(f"{where}: the server wants a certificate of ours: give cert= and key=; {text}")
    if any(words in text for words in _WRONG_PROTOCOL):
        return BackendRefused(f"{where} speaks no gRPC there: check the port, and etcd:// or etcds://; {text}")
    return Unknown(f"{where} is not reachable: {text}", sent=False)
