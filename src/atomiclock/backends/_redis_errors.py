"""What Redis's errors mean for a lock."""

from __future__ import annotations

import ssl
from typing import Any

import redis
import redis.exceptions

from ..errors import BackendRefused, BackendUnavailable, ConfigurationError
from . import Unknown
from ._resp import ServerError

REFUSALS = {"NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "READONLY", "MOVED", "ASK", "CROSSSLOT"}
PASSING = {"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "OOM", "MISCONF"}


def refuses(reply: Any) -> bool:
    """Whether the server will not serve us over this connection."""
    return isinstance(reply, ServerError) and reply.code in REFUSALS


def checked(reply: Any) -> Any:
    """`reply`, unless it is an error: then raise what it means for the lock. An error reply changed nothing."""
    if not isinstance(reply, ServerError):
        return reply
    if "WRONGTYPE" in reply.args[0]:
        raise ConfigurationError("the key holds other data, not a lock: choose another name or namespace")
    if reply.code in PASSING:
        raise Unknown(f"Redis answered: {reply}", sent=False)
    if reply.code in REFUSALS or "unauthenticated" in reply.args[0]:  # how it refuses many words before it knows us
        raise BackendRefused(f"Redis refused: {reply}; {advice(reply.code)}")
    raise BackendUnavailable(f"Redis answered: {reply}")


def advice(code: str) -> str:
    if code in ("MOVED", "ASK", "CROSSSLOT"):
        return "this is a node of a Redis Cluster, which redis:// does not follow: use a single server"
    if code == "READONLY":
        return "this is a replica: give the URL of the primary"
    if code == "NOPERM":
        needs = "EVALSHA EVAL SET GET DEL PEXPIRE PTTL EXISTS TIME RPUSH BLPOP, and WAIT with replicas="
        return f"on the lock's keys the user needs {needs}"
    return "check user and password in redis://user:password@host"


def explain(error: Exception, place: str) -> Exception:
    """What a failure to connect means for the lock."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BackendRefused(f"{place}: the server's certificate is not trusted: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if isinstance(error, redis.AuthenticationError) or text.startswith(
        ("WRONGPASS", "NOAUTH", "NOPERM", "invalid username")
    ):
        return BackendRefused(f"{place} refused us: {text}; {advice('NOAUTH')}")
    if isinstance(error, redis.ResponseError) and not isinstance(error, (redis.exceptions.BusyLoadingError,)):
        return BackendRefused(f"{place} refused the connection: {text}")
    if isinstance(error, redis.InvalidResponse):
        text = f"what answers there does not speak Redis's protocol ({text})"
    return Unknown(f"{place} is not reachable: {text}", sent=False)
