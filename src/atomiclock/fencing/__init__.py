"""Guards for what a lock protects: they refuse a holder that comes too late, in the same step as the write.

A lock cannot: a process may pass its last check, sleep past its lease, and write. So the data remembers the greatest
fence that it has seen, and takes no smaller one. Equal is taken, since the same holder may write more than once.

For SQL there are `fenced_update` and `fence_predicate`, for Redis `fenced_set`, for etcd `etcd_guard`, and for
Django's models `atomiclock.fencing.django.FencedModel`. `fence` may be the number or the lease that has it; with the
lease a `StaleFence` knows the lock's name, too.
"""

from __future__ import annotations

from ..errors import StaleFence
from ._etcd import etcd_guard, etcd_key
from ._number import Fenced
from ._redis import SET_IF_NOT_STALE, async_fenced_set, fenced_set
from ._sql import fence_predicate, fenced_update

__all__ = [
    "SET_IF_NOT_STALE",
    "Fenced",
    "StaleFence",
    "async_fenced_set",
    "etcd_guard",
    "etcd_key",
    "fence_predicate",
    "fenced_set",
    "fenced_update",
]
