"""A guard for values in etcd: a write in a transaction that compares the lock's own key.

Where data and lock are in one cluster, no fence need be stored: the transaction asks whether the lock is still held.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigurationError


def etcd_key(lease: Any) -> bytes:
    """The key that a lease of etcd:// has while it is held; its create revision is `lease.fence`."""
    hold = getattr(lease, "_hold", None)
    backend = getattr(getattr(hold, "io", None), "backend", None)
    if hold is None or type(backend).__module__ != "atomiclock.backends.etcd":
        raise ConfigurationError(f"etcd_guard takes a lease of etcd:// or etcds://, not {lease!r}"[:200])
    from ..backends._etcd_recipe import Place

    return Place(hold.key, hold.token, hold.notes.get("own")).own


def etcd_guard(client: Any, lease: Any) -> Any:
    """A comparison for `client.transaction(compare=[...])`: `lease` holds its lock at the moment of the transaction.

    `client` is a python-etcd3 client of the lock's cluster. The first of what `transaction` returns says whether
    it was written. Unlike a stored fence it also refuses a holder whom nobody has followed yet.
    """
    return client.transactions.create(etcd_key(lease)) == lease.fence
