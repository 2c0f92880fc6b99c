"""How connections to Redis are made: by redis-py, whose URLs, TLS, authentication and defaults apply, by a deadline."""

from __future__ import annotations

import email.parser  # noqa: F401  # this and `secrets` redis-py loads when it connects, not under `_process.loading`
import secrets  # noqa: F401
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio
import redis.retry
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff

from .. import _process
from . import Unknown
from ._redis_errors import explain
from ._resp import Reader
from ._wire import DeadlineSocket, Dial, Wire
from ._wire_tasks import AsyncDial, AsyncWire, Link, within

NOT_OURS = (
    "cache", "cache_config", "decode_responses", "event_dispatcher", "health_check_interval", "himport_registry",
    "legacy_responses", "maint_notifications_config", "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler", "parser_class", "protocol", "retry", "retry_on_error",
    "retry_on_timeout", "socket_connect_timeout", "socket_timeout",
)  # fmt: skip
"""Settings of a redis-py client that are not for a lock's connections, or that we set ourselves."""


def dial(connection: Any, kwargs: dict[str, Any], bound: float, place: str) -> Dial:
    """Opens connections of redis-py's class `connection`, with its settings `kwargs`."""
    within = type("DeadlineConnection", (_DeadlineMixin, connection), {})
    make = _maker(within, redis.ConnectionPool, redis.retry.Retry, kwargs, bound)

    def open_wire(deadline: float) -> Wire:
        made = make()
        made.deadline = deadline
        try:
            made.connect()
            sock, made._sock = made._sock, None  # ours now
            return Wire(sock, Reader())
        except (redis.RedisError, OSError, ValueError) as error:
            raise explain(error, place) from error
        finally:
            # Without the shutdown() of redis-py's disconnect(), which a forked twin would feel.
            sock, made._sock = made._sock, None
            if sock is not None:
                sock.close()

    return open_wire


def async_dial(connection: Any, kwargs: dict[str, Any], bound: float, place: str) -> AsyncDial:
    """The same for a class of redis.asyncio."""
    make = _maker(connection, redis.asyncio.ConnectionPool, AsyncRetry, kwargs, bound)

    async def open_wire(deadline: float) -> AsyncWire:
        made = make()
        try:
            left = max(0.001, deadline - _process.clock())
            made.socket_connect_timeout = made.socket_timeout = left  # a cancellation alone is lost now and then
            await within(made.connect(), deadline, lambda _: _drop(made))
            wire = AsyncWire(Link.instead(made._reader, made._writer, Reader()))
            made._reader = made._writer = None  # ours now; its __del__ would complain
            return wire
        except TimeoutError as error:
            raise Unknown(f"{place} is not reachable: timed out", sent=False) from error
        except (redis.RedisError, OSError, ValueError) as error:
            raise explain(error, place) from error
        finally:
            _drop(made)

    return open_wire


def _drop(made: Any) -> None:
    """Close what it still has, at once."""
    writer, made._writer = made._writer, None
    if writer is not None:
        writer.transport.abort()


def _maker(connection: Any, pool: Any, retry: Any, kwargs: dict[str, Any], bound: float) -> Callable[[], Any]:
    """Makes redis-py's connections, which never repeat a command and answer in RESP2.

    Its pool only completes the settings: it would count connections that it never gets back, up to a limit.
    """
    ours = {"retry": retry(NoBackoff(), 0), "retry_on_timeout": False, "retry_on_error": [], "protocol": 2}
    bounds = {"socket_timeout": bound, "socket_connect_timeout": bound}
    settings = {**kwargs, **ours, **bounds, "decode_responses": False, "max_connections": None}
    made = pool(connection_class=connection, **settings)
    return lambda: connection(**made.connection_kwargs)


class _DeadlineMixin:
    """A redis-py connection whose connect and handshake are over by `deadline`."""

    deadline = 0.0

    def _connect(self) -> Any:
        self.socket_connect_timeout = self.socket_timeout = max(0.001, self.deadline - _process.clock())
        return DeadlineSocket(super()._connect(), self.deadline)  # type: ignore[misc]  # a redis-py connection's
