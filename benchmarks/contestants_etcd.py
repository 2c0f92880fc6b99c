"""etcd: raw grpc, and the locks of other libraries."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from contest import RAW, Lock, Place, contestant

KEPT = 3600
"""Seconds: longer than any run, so that nobody has to keep it alive."""


class _Raw:
    """The calls of a lock, with the generated messages of python-etcd3."""

    def __init__(self, channel: Any, ttl: int) -> None:
        from etcd3 import etcdrpc

        self.rpc = etcdrpc
        self.ttl = ttl
        self.kv = etcdrpc.KVStub(channel)
        self.leases = etcdrpc.LeaseStub(channel)

    def grant(self, ttl: int | None = None) -> Any:
        return self.leases.LeaseGrant(self.rpc.LeaseGrantRequest(TTL=ttl or self.ttl))

    def revoke(self, lease: int) -> Any:
        return self.leases.LeaseRevoke(self.rpc.LeaseRevokeRequest(ID=lease))

    def put(self, key: bytes, token: bytes, lease: int) -> Any:
        free = self.rpc.Compare(key=key, target="CREATE", result="EQUAL", create_revision=0)
        put = self.rpc.RequestOp(request_put=self.rpc.PutRequest(key=key, value=token, lease=lease))
        return self.kv.Txn(self.rpc.TxnRequest(compare=[free], success=[put]))

    def delete(self, key: bytes, token: bytes) -> Any:
        mine = self.rpc.Compare(key=key, target="VALUE", result="EQUAL", value=token)
        delete = self.rpc.RequestOp(request_delete_range=self.rpc.DeleteRangeRequest(key=key))
        return self.kv.Txn(self.rpc.TxnRequest(compare=[mine], success=[delete]))


@contestant("raw grpc, txn + txn on a kept lease", "etcd", RAW, needs=("grpcio",), waits=False)
def raw_kept(place: Place) -> Callable[[str], Lock]:
    import grpc

    raw = _Raw(grpc.insecure_channel(f"127.0.0.1:{place.port('etcd')}"), place.ttl)
    lease = raw.grant(KEPT).ID

    def lock(name: str) -> Lock:
        key, token = name.encode(), uuid.uuid4().bytes
        return Lock(lambda: raw.put(key, token, lease), lambda: raw.delete(key, token))

    return lock


@contestant("raw grpc, grant + txn + revoke", "etcd", RAW, needs=("grpcio",), waits=False, scenarios=("S1",))
def raw_granted(place: Place) -> Callable[[str], Lock]:
    import grpc

    raw = _Raw(grpc.insecure_channel(f"127.0.0.1:{place.port('etcd')}"), place.ttl)

    def lock(name: str) -> Lock:
        key, token = name.encode(), uuid.uuid4().bytes
        leases: list[int] = []

        def acquire() -> None:
            leases.append(raw.grant().ID)
            raw.put(key, token, leases[-1])

        return Lock(acquire, lambda: raw.revoke(leases.pop()))

    return lock


@contestant("raw grpc.aio, txn + txn", "etcd", RAW, is_async=True, needs=("grpcio",), waits=False)
async def raw_async(place: Place) -> Callable[[str], Lock]:
    import grpc.aio

    raw = _Raw(grpc.aio.insecure_channel(f"127.0.0.1:{place.port('etcd')}"), place.ttl)
    lease = (await raw.grant(KEPT)).ID

    def lock(name: str) -> Lock:
        key, token = name.encode(), uuid.uuid4().bytes

        async def acquire() -> None:
            await raw.put(key, token, lease)

        async def release() -> None:
            await raw.delete(key, token)

        return Lock(acquire, release)

    return lock


@contestant("python-etcd3", "etcd", needs=("cslab-etcd3", "grpcio", "protobuf"))
def python_etcd3(place: Place) -> Callable[[str], Lock]:
    import etcd3

    client = etcd3.client(port=place.port("etcd"))

    def lock(name: str) -> Lock:
        one = client.lock(name, ttl=place.ttl)
        return Lock(lambda: one.acquire(timeout=None), one.release)

    return lock


@contestant("aetcd", "etcd", is_async=True, needs=("aetcd", "grpcio", "protobuf"))
async def aetcd(place: Place) -> Callable[[str], Lock]:
    import aetcd

    client = aetcd.Client(port=place.port("etcd"))
    await client.connect()

    def lock(name: str) -> Lock:
        one = client.lock(name.encode(), ttl=place.ttl)
        return Lock(lambda: one.acquire(timeout=None), one.release)

    return lock


@contestant("tooz", "etcd", slow=True, needs=("tooz", "etcd3gw"))
def tooz(place: Place) -> Callable[[str], Lock]:
    from tooz import coordination

    url = f"etcd3+http://127.0.0.1:{place.port('etcd')}?lock_timeout={place.ttl}"
    coordinator = coordination.get_coordinator(url, uuid.uuid4().hex.encode())
    coordinator.start()

    def lock(name: str) -> Lock:
        one = coordinator.get_lock(name.encode())
        return Lock(one.acquire, one.release)

    return lock
