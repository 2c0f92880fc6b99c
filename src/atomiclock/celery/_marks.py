"""Marks beside a lock, which belong to a message and not to a process: this one is done, that one waits its turn.

A mark is a lock with a token that is made from the task's id, so every delivery of a message, on whatever worker,
finds its own mark, and nobody has to remember a token.
"""

from __future__ import annotations

from typing import Any

from .._manager import LockManager
from .._names import digest
from .._process import clock
from ..backends import Holder, Unknown
from ..errors import BackendUnavailable, LockTimeout
from ._names import beside, label, within


class Mark:
    """One mark of `kind`, named `name`, which the task `task_id` puts or finds."""

    def __init__(
        self, manager: LockManager, kind: str, name: str, namespace: str | None, task_id: str, hostname: str | None
    ) -> None:
        self._manager = manager
        self._name = name
        self._namespace = beside(manager._core.options(within(namespace)).namespace, kind)
        self._token = digest(f"{kind}:{task_id}:{name}")
        self._label = label(task_id, hostname)

    def put(self, ttl: float) -> str | None:
        """Put it for `ttl` seconds, or, if it is ours already, let it stand so long from now.

        `None`, or the label of who has it. Raises `BackendUnavailable`.
        """
        hold = self._hold(ttl)
        hold.outlives = True
        try:
            self._manager._acquire(hold, 0)
            self._manager._let_stand(hold)
            return None
        except LockTimeout as error:
            return error.owner or "other software"

    def keep(self, ttl: float) -> bool:
        """Let it stand for `ttl` seconds from now. False if it was not ours any more."""
        hold = self._hold(ttl)
        return bool(_asked(hold, lambda end: self._manager._extend_token(hold, end)))

    def remove(self) -> bool:
        """Remove it. False if it was not ours any more."""
        hold = self._hold(1.0)
        return bool(_asked(hold, lambda end: self._manager._remove_token(hold, end)))

    def remove_by(self, deadline: float) -> bool:
        """The same in one request, until `deadline`. Raises `Unknown`."""
        return self._manager._remove_token(self._hold(1.0), deadline)

    def found(self) -> Holder | None:
        """Who has it, if anybody."""
        return self._manager.holder(self._name, namespace=self._namespace)

    def _hold(self, ttl: float) -> Any:
        given = {"ttl": ttl, "renew": False, "owner": self._label, "namespace": self._namespace, "on_lost": None}
        hold = self._manager._adopt(self._name, self._token, given)
        hold.notes = None  # etcd then finds a mark of ours that another process put: it follows from the token
        return hold


def _asked(hold: Any, request: Any) -> Any:
    """The store's answer, at the second try at the latest: the first may find a connection that was closed."""
    try:
        return request(clock() + hold.io.terms.each)
    except Unknown:
        pass
    try:
        return request(clock() + hold.io.terms.each)
    except Unknown as error:
        raise BackendUnavailable(f"could not reach the store of {hold.name!r}: {error}", name=hold.name) from error
