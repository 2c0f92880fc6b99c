"""S5: what an import costs, and the first lock of a process. Fresh processes, in turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from contest import Place
from scenarios import Run, say

TIMED = """
import time
begun = time.perf_counter()
{code}
print(1000 * (time.perf_counter() - begun))
"""
IMPORTS = (
    "threading", "asyncio", "atomiclock", "filelock", "portalocker", "fasteners", "redis", "redis_lock", "sherlock",
    "pottery", "tooz.coordination", "pymemcache", "pylibmc", "grpc", "etcd3", "aetcd",
)  # fmt: skip


def _first_locks(place: Place, stores: Sequence[str]) -> dict[str, str]:
    """Code that gets and gives back one lock, import included."""
    folder, ports = place.folder, place.ports
    ours = "from atomiclock import acquire_lock\nwith acquire_lock('first', {url!r}): pass"
    code = {
        "memory: atomiclock": ours.format(url="memory://"),
        "file: atomiclock": ours.format(url=f"sqlite:///{folder}/first.db"),
        "file: filelock": f"import filelock\nwith filelock.FileLock('{folder}/first.lock'): pass",
        "file: portalocker": f"import portalocker\nwith portalocker.Lock('{folder}/first.portalocker'): pass",
    }
    if port := ports.get("redis"):
        client = f"import redis\nclient = redis.Redis(port={port})\n"
        code["redis: atomiclock"] = ours.format(url=f"redis://127.0.0.1:{port}/0")
        code["redis: redis-py Lock"] = client + "with client.lock('first-1', timeout=30): pass"
        code["redis: python-redis-lock"] = (
            client + "import redis_lock\nwith redis_lock.Lock(client, 'first-2', expire=30): pass"
        )
        code["redis: sherlock"] = client + "import sherlock\nwith sherlock.RedisLock('first-3', client=client): pass"
    if port := ports.get("memcached"):
        code["memcached: atomiclock"] = ours.format(url=f"memcached://127.0.0.1:{port}")
        client = f"import pylibmc\nclient = pylibmc.Client(['127.0.0.1:{port}'], binary=True)\n"
        code["memcached: sherlock"] = client + "import sherlock\nwith sherlock.MCLock('first-1', client=client): pass"
    if port := ports.get("etcd"):
        code["etcd: atomiclock"] = ours.format(url=f"etcd://127.0.0.1:{port}")
        code["etcd: python-etcd3"] = f"import etcd3\nwith etcd3.client(port={port}).lock('first-1', ttl=30): pass"
    return {title: text for title, text in code.items() if title.partition(":")[0] in stores}


def start_up(run: Run, stores: Sequence[str]) -> None:
    imports = {"interpreter alone": "pass"} | {name: f"import {name}" for name in IMPORTS}
    _in_turns(run, "S5, import", imports)
    _in_turns(run, "S5, first lock, import included", _first_locks(run.hall.place, stores))


def _in_turns(run: Run, title: str, codes: dict[str, str]) -> None:
    say(title)
    table = run.found.setdefault(title, {}).setdefault("", {})
    for number in range(run.effort.starts + 1):  # the first round fills the caches of the disk
        for name, code in codes.items():
            done = subprocess.run(
                [sys.executable, "-c", TIMED.format(code=code)], capture_output=True, text=True, timeout=60, check=False
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["?"])[-1]
                known = {"scenario": title, "group": "", "name": name, "what": last[:200]}
                if known not in run.troubles:
                    run.troubles.append(known)
            elif number:
                table.setdefault(name, []).append(float(done.stdout.split()[-1]))
