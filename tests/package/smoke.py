"""Does the installed package work? smoke.py EXTRA KIND=URL...: run where nothing but the wheel is to be found."""

from __future__ import annotations

import asyncio
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import atomiclock
from atomiclock import BackendUnavailable, ConfigurationError, LockManager, acquire_lock, try_lock

URLS = dict(pair.partition("=")[::2] for pair in sys.argv[2:])
DRIVERS = {"redis": "redis", "memcached": "pymemcache", "etcd": "hpack", "django": "django"}


def core() -> None:
    """What works without any extra."""
    home = Path(atomiclock.__file__).parent
    assert home.is_relative_to(sys.prefix), f"{home} is not what was installed into {sys.prefix}"
    assert atomiclock.__version__ == version("atomiclock")
    assert (home / "py.typed").exists()
    for url in (None, "memory://"):
        locked(url)
    for name in atomiclock.__all__:
        getattr(atomiclock, name)


def locked(url: str | None) -> None:
    """Take and give back a lock of `url`, as a thread and as a task."""

    async def task() -> None:
        async with acquire_lock("smoke", url, timeout=20) as lease:
            assert lease

    with acquire_lock("smoke", url, timeout=20) as lease:
        assert lease
        with try_lock("smoke", url) as second:
            assert second is None
    asyncio.run(task())


def stores_that_lack_their_driver() -> None:
    """Each names the extra to install, and is not taken for a store that is down."""
    for extra, package in DRIVERS.items():
        try:
            import_module(package)
        except ModuleNotFoundError:
            url = URLS.get(extra, "django://default")
            said = refusal(url)
            assert f"pip install 'atomiclock[{extra}]'" in said, f"{url}: {said}"


def refusal(url: str) -> str:
    """What a manager says that cannot be made."""
    try:
        LockManager(url)
    except BackendUnavailable:
        raise
    except ConfigurationError as error:
        return str(error)
    return "nothing"


def celery() -> None:
    from celery import Celery

    from atomiclock.celery import exclusive

    app = Celery("smoke", broker="memory://")
    app.conf.task_always_eager = True

    @app.task
    @exclusive("{feed_url}", ttl=60)
    def import_feed(feed_url: str) -> str:
        return feed_url

    assert import_feed.delay("x").get() == "x"


def django() -> None:
    from django.conf import settings

    settings.configure(CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is told that this cache is one process's
        locked("django://default")


def cli() -> None:
    inside = [sys.executable, "-c", "import os; assert os.environ['ATOMICLOCK_NAME'] == 'smoke'"]
    assert subprocess.run(["atomiclock", "run", "smoke", "--", *inside], check=False).returncode == 0
    assert subprocess.run(["atomiclock", "show", "smoke"], check=False, capture_output=True).returncode == 1
    said = subprocess.run(["atomiclock", "--version"], check=True, capture_output=True, text=True).stdout
    assert atomiclock.__version__ in said, said


def otel() -> None:
    import atomiclock.opentelemetry

    stop = atomiclock.opentelemetry.instrument()
    locked("memory://")
    stop()


def prometheus() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    import atomiclock.prometheus

    registry = CollectorRegistry()
    stop = atomiclock.prometheus.export(registry)
    locked("memory://")
    stop()
    assert b"atomiclock_acquires_total{" in generate_latest(registry)


SMOKES: dict[str, Callable[[], None]] = {
    "redis": lambda: locked(URLS["redis"]),
    "memcached": lambda: locked(URLS["memcached"]),
    "etcd": lambda: locked(URLS["etcd"]),
    "celery": celery,
    "django": django,
    "cli": cli,
    "otel": otel,
    "prometheus": prometheus,
}


def main() -> None:
    """Try what the environment should have, and what it should say of the rest."""
    extra = sys.argv[1]
    core()
    stores_that_lack_their_driver()
    for smoke in SMOKES.values() if extra == "all" else [SMOKES[extra]] if extra in SMOKES else []:
        smoke()
    print(f"Python {platform.python_version()}, extra {extra}: well")


if __name__ == "__main__":
    main()
