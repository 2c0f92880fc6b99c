"""What people ask of Redis: its locks, and whether its settings can lose them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from . import Holder, Steps
from ._admin import Finding, Seen, text_of
from ._redis_errors import checked
from ._redis_scripts import keys_of
from ._resp import ServerError, pack
from ._wire import Several
from .redis import info_of

if TYPE_CHECKING:
    from .redis import RedisBackend

BATCH = 100
"""Keys in one go: a reply has to stay short."""


def held(backend: RedisBackend, prefix: str) -> Steps[list[Seen]]:  # noqa: ARG001
    found: dict[bytes, Seen] = {}
    cursor = b"0"
    while True:
        reply = checked((yield pack(b"SCAN", cursor, b"MATCH", _pattern(prefix), b"COUNT", b"%d" % BATCH)))
        cursor, keys = reply
        names = [name for key in keys for name in _locks_of(key, prefix)]
        for start in range(0, len(names), BATCH):
            for one in (yield from _look(names[start : start + BATCH], bool(prefix))):
                found[one.key.encode("utf-8", "surrogatepass")] = one  # SCAN may show a key twice
        if cursor == b"0":
            return [found[key] for key in sorted(found)]


def seen(backend: RedisBackend, key: str) -> Steps[Seen | None]:  # noqa: ARG001
    return next(iter((yield from _look([key]))), None)


def _pattern(prefix: str) -> bytes:
    """Keys of locks. Without a prefix, any key may be anybody's, so only those that we left a note beside."""
    if not prefix:
        return b"*:info"
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix.encode("utf-8", "surrogatepass")) + b"*"


def _locks_of(found: bytes, prefix: str) -> list[str]:
    """The locks that a key which was found stands for, or may stand for if it is a note."""
    if prefix:
        name = text_of(found)
        return [] if name is None else [name]
    stem = text_of(found.removesuffix(b":info"))
    candidates = [] if stem is None else [stem, stem[1:-1]]  # {KEY}:info, unless KEY has braces of its own
    return [name for name in candidates if name and _keys(name)[1] == found]


def _keys(name: str) -> tuple[bytes, bytes, bytes]:
    """The lock, what its holder says of itself, and whether anybody waits."""
    stem = keys_of(name).stem
    return name.encode("utf-8", "surrogatepass"), stem + b":info", stem + b":waiting"


def _look(names: list[str], others: bool = True) -> Steps[list[Seen]]:
    """Those of `names` that are locks and held; `others`: by other software, too."""
    if not names:
        return []
    requests = [pack(b"TIME")]
    for name in names:
        key, info, waiting = _keys(name)
        requests += [pack(b"GET", key), pack(b"PTTL", key), pack(b"GET", info), pack(b"EXISTS", waiting)]
    clock, *replies = yield Several.of(requests)
    now = [int(part) for part in checked(clock)]
    lines = [replies[at : at + 4] for at in range(0, len(replies), 4)]
    found = [_seen(name, line, now[0] + now[1] / 1e6) for name, line in zip(names, lines, strict=True)]
    return [one for one in found if one is not None and (others or one.holder.fence is not None)]


def _seen(key: str, replies: list[Any], now: float) -> Seen | None:
    token, left, said, waiting = replies
    if isinstance(token, ServerError) and "WRONGTYPE" in token.args[0]:
        return None  # other data
    token = checked(token)
    if token is None:
        return None
    info = info_of(token, said)
    remaining = left / 1000 if left >= 0 else None
    text = token.decode("utf-8", "replace")
    if info is None:
        return Seen(key, Holder(None, text, None, remaining))
    age = max(0.0, now - info.fence / 1e6)  # the fence is the server's clock at the grant
    return Seen(key, Holder(info.owner, text, info.fence, remaining), age, awaited=waiting == 1)


def diagnose(backend: RedisBackend) -> Steps[list[Finding]]:
    info = _facts(checked((yield pack(b"INFO"))).decode("utf-8", "replace"))
    fsync = yield from _config("appendfsync")
    saves = yield from _config("save")
    return [*_server(info), *_memory(info), *_persistence(info, fsync, saves), *_replication(info, backend._replicas)]


def _facts(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {key: value for key, _, value in pairs}


def _config(name: str) -> Steps[str | None]:
    """A setting, or `None` where it may not be asked for, as with many hosted servers."""
    reply = yield pack(b"CONFIG", b"GET", name.encode())
    if isinstance(reply, ServerError) or len(reply) < 2:
        return None
    return str(reply[1].decode("utf-8", "replace"))


def _server(info: dict[str, str]) -> list[Finding]:
    version = info.get("valkey_version") or info.get("redis_version", "")
    name = "Valkey" if "valkey_version" in info else "Redis"
    found = [Finding("ok", f"{name} {version}, up for {int(info.get('uptime_in_seconds', 0)) / 86400:.1f} days")]
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < 6:
        found = [Finding("bad", f"{name} {version} is too old", "locks need 6.0 or newer")]
    if info.get("cluster_enabled") == "1":
        found.append(
            Finding("warn", "it is a node of a cluster, which redis:// does not follow", "use a single server")
        )
    return found


def _memory(info: dict[str, str]) -> list[Finding]:
    policy, limit = info.get("maxmemory_policy", "unknown"), info.get("maxmemory", "0")
    evicted = int(info.get("evicted_keys", "0"))
    text = f"maxmemory-policy {policy}, maxmemory {info.get('maxmemory_human', limit) if limit != '0' else 'unlimited'}"
    if policy == "noeviction":
        found = [Finding("ok", text)]
    else:
        advice = "CONFIG SET maxmemory-policy noeviction, or give locks a server of their own"
        found = [Finding("warn", f"{text}: a lock may be evicted when memory is full", advice)]
    if evicted:
        found.append(
            Finding("warn", f"{evicted} keys were evicted since it was started", "locks may have been of them")
        )
    return found


def _persistence(info: dict[str, str], fsync: str | None, saves: str | None) -> list[Finding]:
    if info.get("aof_enabled") == "1":
        sure = fsync == "always"
        text = f"append-only file is on, appendfsync {fsync or 'unknown'}"
        advice = "" if sure else "a power cut may lose the last second; appendfsync always does not"
        found = [Finding("ok" if sure else "note", text, advice)]
    elif saves:
        text = "only snapshots are saved: a restart brings back old locks and forgets new ones"
        found = [Finding("warn", text, "CONFIG SET appendonly yes, or check the fence where you write")]
    else:
        text = "nothing is saved: a restart forgets all locks, and others get in"
        found = [Finding("warn", text, "CONFIG SET appendonly yes, or check the fence where you write")]
    if info.get("aof_last_write_status", "ok") != "ok" or info.get("rdb_last_bgsave_status", "ok") != "ok":
        found.append(
            Finding("bad", "the last save failed: Redis may refuse writes", "look into its log and at its disk")
        )
    return found


def _replication(info: dict[str, str], wanted: int) -> list[Finding]:
    if info.get("role") != "master":
        return [Finding("bad", "it is a replica, which takes no locks", "give the URL of the primary")]
    replicas = int(info.get("connected_slaves", "0"))
    if replicas < wanted:
        text = f"{replicas} replicas are connected, where replicas={wanted} must have a lock: none can be acquired"
        return [Finding("bad", text, "start those that are missing, or ask for fewer")]
    if not replicas:
        return [Finding("ok", "no replicas: no failover can give a lock to two")]
    text = f"{replicas} replicas: one that is promoted may not have the latest locks, so two may hold one"
    return [Finding("warn", text, "check the fence where you write, or use etcd://")]
