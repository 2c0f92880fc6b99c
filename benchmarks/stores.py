"""The servers of a run, what they count, and what is left in them."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import servers


class Stores:
    """Servers of our own on free ports. One that is missing is named, and its store left out."""

    def __init__(self, folder: Path, files: Path, wanted: Sequence[str]) -> None:
        self.folder = folder
        self.files = files
        self.missing: dict[str, str] = {}
        self._servers: dict[str, Any] = {}
        classes = {"redis": "RedisServer", "memcached": "MemcachedServer", "etcd": "EtcdServer"}
        for store, name in classes.items():
            if store in wanted:
                self._start(store, name)
        if "memcached" in self._servers:
            time.sleep(4)  # locks on a memcached that has just started wait until it is old enough

    def _start(self, store: str, name: str) -> None:
        place = self.folder / store
        place.mkdir()
        options = ["-c", "4096"] if store == "memcached" else []
        try:
            self._servers[store] = getattr(servers, name)(place, *options).start()
        except Exception as error:
            self.missing[store] = f"{type(error).__name__}: {error}"

    @property
    def ports(self) -> dict[str, int]:
        return {store: server.port for store, server in self._servers.items()}

    def requests(self, store: str, sends: Sequence[str]) -> int | None:
        """How many requests the server of a store has had, or `None` for a store without one."""
        server = self._servers.get(store)
        if server is None:
            return None
        counted: int = getattr(self, f"_{store}_requests")(server, sends)
        return counted

    def left(self, store: str) -> dict[str, int]:
        """What is in a store: keys, leases, files or rows."""
        server = self._servers.get(store)
        if store == "redis":
            return {"keys": int(server.command("DBSIZE"))}
        if store == "memcached":
            return {"items": int(server.stats()["curr_items"])}
        if store == "etcd":
            return {"keys": len(server.keys()), "leases": len(server.leases())}
        if store == "file":
            return {"files": len(list(self.files.iterdir())), "rows": _rows(self.files / "ours.db")}
        return {}

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    @staticmethod
    def _redis_requests(server: Any, sends: Sequence[str]) -> int:
        """Calls of the commands that the contestant sends itself: the server also counts those inside scripts."""
        counts = {}
        for line in server.command("INFO", "commandstats").splitlines():
            if line.startswith("cmdstat_"):
                name, _, rest = line.removeprefix("cmdstat_").partition(":calls=")
                counts[name.partition("|")[0]] = counts.get(name.partition("|")[0], 0) + int(rest.partition(",")[0])
        return sum(counts.get(command, 0) for command in sends)

    @staticmethod
    def _memcached_requests(server: Any, _: Sequence[str]) -> int:
        """Meta commands are counted with the classic ones whose work they do, except `mn`."""
        stats = server.stats()
        counted = ("cmd_get", "cmd_set", "cmd_touch", "delete_hits", "delete_misses", "incr_hits", "incr_misses")
        return sum(int(stats[name]) for name in counted)

    @staticmethod
    def _etcd_requests(server: Any, _: Sequence[str]) -> int:
        """Messages to the server: a call is one, and each message of a stream."""
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(
            int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("grpc_server_msg_received_total{")
        )


def _rows(path: Path) -> int:
    if not path.exists():
        return 0
    db = sqlite3.connect(path)
    try:
        tables = [
            name
            for (name,) in db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        ]
        return sum(db.execute(f'SELECT COUNT(*) FROM "{table}"').fetchone()[0] for table in tables)
    finally:
        db.close()


def new_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="atomiclock-bench-")
