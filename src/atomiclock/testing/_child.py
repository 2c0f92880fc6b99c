"""What the child processes of the laws do; run as a script, with its orders as JSON in the first argument.

It says what it has to say in lines of JSON, and goes on when a line comes in.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Orders = dict[str, Any]


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def heard(seconds: float = 60.0) -> None:
    """Wait for a line, or for the end of the parent."""
    select.select([sys.stdin], [], [], seconds)


def count(locks: Any, orders: Orders) -> None:
    """Step a counter in a file that nobody protects, and count how often somebody else was in it."""
    folder, overlaps = Path(orders["folder"]), 0
    say(ready=True)
    heard()
    for _ in range(orders["rounds"]):
        with locks.acquire(orders["name"], ttl=20, timeout=40):
            overlaps += step(folder)
    say(overlaps=overlaps)


def step(folder: Path) -> int:
    marker, counter = folder / "inside", folder / "count"
    overlap = 0
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        overlap = 1
    seen = int(counter.read_text()) if counter.exists() else 0
    time.sleep(0.0005)
    counter.write_text(str(seen + 1))
    with contextlib.suppress(FileNotFoundError):
        marker.unlink()
    return overlap


def hold(locks: Any, orders: Orders) -> None:
    """Hold a lock until told to release it."""
    lease = locks.acquire(orders["name"], timeout=20, **orders.get("options", {}))
    say(token=lease.token, fence=lease.fence)
    heard()
    lease.release()
    say(released=True)


def in_fork(work: Callable[[], dict[str, object]]) -> dict[str, object]:
    """What `work` finds in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found: dict[str, object] = work()
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return dict(json.loads(text))


def fork(locks: Any, orders: Orders) -> None:
    """Fork while holding, and tell what the child and then the parent find."""
    name = orders["name"]
    lease = locks.acquire(name, ttl=20)
    other = locks.acquire(name + "-left-in-child", ttl=20)

    def in_child() -> dict[str, object]:
        locks.reopen()
        mine = locks.acquire(name + "-of-child", timeout=10)
        found = {
            "holds": bool(lease),
            "lost": lease.lost,
            "reason": lease.lost_reason,
            "release": raised(lease.release),
            "extend": raised(lease.extend),
            "left": raised(lambda: other.__exit__(None, None, None)),
            "own": bool(mine),
        }
        mine.release()
        if orders["shared"]:
            found["try"] = locks.try_acquire(name) is not None
        return found

    child = in_fork(in_child)
    holder = locks.holder(name)
    say(
        child=child,
        holds=bool(lease) and bool(other),
        stored=holder is not None and holder.token == lease.token,
        own=locks.try_acquire(name + "-of-child") is not None,
        release=raised(lease.release) or raised(other.release),
    )


def raised(call: Callable[[], object]) -> str | None:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


def orphan(locks: Any, orders: Orders) -> None:
    """Leave a forked child behind, and hold on until killed."""
    lease = locks.acquire(orders["name"], **orders["options"])
    if os.fork() == 0:
        heard()
        os._exit(0)
    say(token=lease.token)
    heard()


def main() -> None:
    orders: Orders = json.loads(sys.argv[1])
    exec(orders["preload"], {})  # noqa: S102  # the suite's own words
    from atomiclock.testing._facade import open_locks

    locks = open_locks(orders["colour"], orders["url"])
    {"count": count, "hold": hold, "fork": fork, "orphan": orphan}[orders["do"]](locks, orders)
    locks.close()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are nobody's top-level modules
    main()
