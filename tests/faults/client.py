"""A process that takes one lock again and again, and writes down what it sees; run as a script, orders in JSON."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from atomiclock import BackendUnavailable, LockLost, LockTimeout

LOOK = 0.004
"""Seconds between two looks whether it still holds."""
Orders = dict[str, Any]


class Log:
    """Lines of JSON, each written in one go: what was written before a SIGKILL stays."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, what: str, at: float | None = None, **facts: Any) -> None:
        line = {"what": what, "at": time.monotonic() if at is None else at, **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Client:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.log = Log(orders["log"])
        self.rng = random.Random(orders["seed"])
        self.unknown: tuple[type[Exception], ...] = (BackendUnavailable, OSError)
        if orders["toy"]:
            import redis
            import toys

            self.unknown = (redis.RedisError, OSError)
            self.locks: Any = toys.TOYS[orders["toy"]](orders["url"])
        else:
            from atomiclock.testing._facade import open_locks

            self.locks = open_locks(orders["colour"], orders["url"])

    def run(self) -> None:
        self.log("ready")
        while not os.path.exists(self.orders["go"]):
            time.sleep(0.005)
        end = time.monotonic() + self.orders["seconds"]
        before = None
        while time.monotonic() < end:
            self.turn()
            before = before or self.has()
            time.sleep(self.rng.choice(self.orders["rests"]))
        assert before is not None
        self.log("rest", **{what: [count, self.has()[what]] for what, count in before.items()})
        self.locks.close()

    def has(self) -> dict[str, int]:
        return {"threads": threading.active_count(), "descriptors": len(os.listdir("/proc/self/fd"))}

    def turn(self) -> None:
        """One acquire, and, if it was granted, some work and a release."""
        orders = self.orders
        self.log("acquire")
        try:
            lease = self.locks.acquire(
                orders["name"], ttl=orders["ttl"], timeout=orders["timeout"], renew=self.rng.random() < orders["renew"]
            )
        except (LockTimeout, *self.unknown) as error:
            self.log("refused", outcome=type(error).__name__)
            return
        at = time.monotonic()
        self.log("got", at, believed=bool(lease), token=lease.token, fence=lease.fence)
        if self.work(lease, self.rng.choice(orders["works"])):
            self.release(lease)

    def work(self, lease: Any, seconds: float) -> bool:
        """Whether it is still held after so many seconds."""
        until = time.monotonic() + seconds
        while (at := time.monotonic()) < until:
            if not lease:
                self.log("lost")
                time.sleep(max(0.0, until - time.monotonic()) if self.orders["stubborn"] else 0.0)
                return bool(self.orders["stubborn"])
            self.log("held", at)
            time.sleep(min(LOOK, until - at))
        return True

    def release(self, lease: Any) -> None:
        try:
            lease.release()
            self.log("released")
        except LockLost:
            self.log("lost")
        except self.unknown:
            self.log("unknown")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    Client(json.loads(sys.argv[1])).run()
