"""The application that the tests' workers run: `celery -A lockproj worker`. Where things are, the environment says."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from celery import Celery, current_task
from kombu.transport import redis

from atomiclock.celery import LockedTask, current_lease, exclusive, install, unique

QUICK = {"delay": (0.1, 0.4), "ttl": 3}


def make_app(env: dict[str, str] | os._Environ[str]) -> Celery:
    """The application for one broker, result backend and store of locks."""
    app = Celery("lockproj", broker=env["BROKER"], backend=env.get("RESULTS") or None, set_as_current=False)
    app.conf.update(
        json.loads(env.get("SETTINGS", "{}")),
        atomiclock_url=env["LOCKS"],
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        result_chord_join_timeout=20,
    )
    app.conf.broker_transport_options = json.loads(env.get("TRANSPORT", "{}"))
    if "NO_INSTALL" not in env:
        install(app)
    return app


def _look_each_second() -> None:
    """For kombu before 5.6, which has no `unacked_restore_interval`: it would deliver again after up to 100 s."""
    if hasattr(redis.Channel, "unacked_restore_interval"):
        return
    restore, register = redis.QoS.restore_visible, redis.Transport.register_with_event_loop

    def restored(self: Any, **options: Any) -> Any:
        return restore(self, **{**options, "interval": 1})

    def registered(self: Any, connection: Any, loop: Any) -> None:
        register(self, connection, loop)
        loop.call_repeatedly(1, self.cycle.maybe_restore_messages)

    redis.QoS.restore_visible, redis.Transport.register_with_event_loop = restored, registered


def note(event: str, key: str, **facts: Any) -> None:
    """One line in the journal, whole also if the next thing is a SIGKILL."""
    who = {"id": current_task.request.id, "pid": os.getpid()} if current_task else {}
    line = json.dumps({"event": event, "key": key, "at": time.monotonic(), **who, **facts}) + "\n"
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)


@contextmanager
def noted(key: str) -> Iterator[None]:
    """Marks of begin and end, from which overlaps are computed; the lock is not asked."""
    note("begin", key)
    try:
        yield
    except BaseException as error:
        note("end", key, error=type(error).__name__)
        raise
    note("end", key, error=None)


def hold_the_interpreter(seconds: float) -> None:
    """Sleep in C without letting go of the GIL: no other thread of this process runs meanwhile."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def work(key: str, seconds: float = 0.0) -> str:
    """What most tasks do."""
    with noted(key):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
    return key


def fails_so_often(key: str, fails: int) -> str:
    """Note the lease, and fail in the first `fails` attempts."""
    lease = current_lease()
    assert lease is not None
    with noted(key):
        note("lease", key, fence=lease.fence, token=lease.token)
        if current_task.request.retries < fails:
            raise ValueError(key)
    return f"{key} after {current_task.request.retries}"


def _chooses(conflict: Any) -> str:
    note("asked", conflict.name.split(":")[1], holder=conflict.holder, tries=conflict.tries)
    return "retry" if conflict.tries < 2 else "skip"


def define(app: Celery) -> SimpleNamespace:  # noqa: C901  # a list of tasks, not a decision
    """The tasks, on `app`."""
    made: dict[str, Any] = {}

    def task(name: str, **options: Any) -> Any:
        def decorate(function: Any) -> Any:
            made[name] = app.task(name=name, **options)(function)
            return function

        return decorate

    for name, rules in {
        "skip": {"on_conflict": "skip"},
        "retry": {"on_conflict": "retry"},
        "impatient": {"on_conflict": "retry", "give_up": 0.5},
        "coalesce": {"on_conflict": "coalesce"},
        "wait": {"on_conflict": "wait", "wait": 10},
        "raises": {"on_conflict": "raise"},
        "chosen": {"on_conflict": _chooses},
    }.items():

        @task(name)
        @exclusive("{key}", **{**QUICK, **rules})
        def plain(key: str, seconds: float = 0.0) -> str:
            return work(key, seconds)

    @task("late", acks_late=True)
    @exclusive("{key}", **{**QUICK, "ttl": 2})
    def late(key: str, seconds: float = 0.0) -> str:
        return work(key, seconds)

    @task("stubborn", acks_late=True, reject_on_worker_lost=True)
    @exclusive("{key}", **QUICK)
    def stubborn(key: str, seconds: float = 0.0) -> str:
        return work(key, seconds)

    @task("deaf")
    @exclusive("{key}", ttl=1.5, on_conflict="skip")
    def deaf(key: str, seconds: float = 0.0) -> bool:
        with noted(key):
            hold_the_interpreter(seconds)
        lease = current_lease()
        return bool(lease)

    for name, how in {"aborted": "abort", "failed": "fail", "warned": "warn"}.items():

        @task(name)
        @exclusive("{key}", ttl=1, on_lost=how)
        def losing(key: str, seconds: float = 0.0) -> str:
            return work(key, seconds)

    @task("patient", time_limit=None)
    @exclusive("{key}", ttl=30, on_conflict="skip")
    def patient(key: str, seconds: float = 0.0) -> str:
        return work(key, seconds)

    @task("elsewhere")
    @exclusive("{key}", ttl=30, url=f"{app.conf.atomiclock_url}?namespace=elsewhere")
    def elsewhere(key: str, seconds: float = 0.0) -> str:
        return work(key, seconds)

    @task("again", bind=True, max_retries=2)
    @exclusive("{key}", **QUICK)
    def again(self: Any, key: str) -> str:
        with noted(key):
            if self.request.retries < 2:
                raise self.retry(countdown=0.2)
        return f"{key} after {self.request.retries}"

    @task("calm", bind=True, max_retries=2)
    @exclusive("{key}", **{**QUICK, "on_conflict": "retry", "give_up": 2.5})
    def calm(self: Any, key: str, again: bool = False, seconds: float = 0.0) -> str:
        work(key, seconds)
        if again and not self.request.retries:
            raise self.retry(countdown=3)
        return key

    @task("kept", bind=True, max_retries=2)
    @exclusive("{key}", ttl=20, delay=0.2, hold_on_retry=True)
    def kept(self: Any, key: str, pauses: tuple[float, ...] = (), seconds: float = 0.0, after: float = 0.0) -> str:
        lease = current_lease()
        with noted(key):
            note("lease", key, fence=lease.fence, token=lease.token)
            if self.request.retries < len(pauses):
                again = self.retry(countdown=pauses[self.request.retries], throw=False)
                time.sleep(after)
                raise again
            time.sleep(seconds)
        return f"{key} after {self.request.retries}"

    @task("kept_auto", autoretry_for=(ValueError,), max_retries=2, retry_kwargs={"countdown": 1})
    @exclusive("{key}", ttl=20, delay=0.2, hold_on_retry=True)
    def kept_auto(key: str, fails: int = 0) -> str:
        return fails_so_often(key, fails)

    @task("kept_outside", base=LockedTask, lock=exclusive("{key}", ttl=20, delay=0.2, hold_on_retry=True),
          autoretry_for=(ValueError,), max_retries=2, retry_kwargs={"countdown": 1})  # fmt: skip
    def kept_outside(key: str, fails: int = 0) -> str:
        return fails_so_often(key, fails)

    @task("kept_late", bind=True, acks_late=True, max_retries=2)
    @exclusive("{key}", ttl=2, delay=0.2, hold_on_retry=True)
    def kept_late(self: Any, key: str, seconds: float) -> str:
        with noted(key):
            if not self.request.retries:
                raise self.retry(countdown=0.3)
            time.sleep(seconds)
        return f"{key} after {self.request.retries}"

    @task("long")
    @exclusive("{key}", ttl=5, delay=0.2, min_hold=4)
    def long(key: str, seconds: float = 0.0, fails: bool = False) -> str:
        with noted(key):
            time.sleep(seconds)
            assert not fails, "it was told to fail"
        return key

    @task("narrow")
    @exclusive("{key}", url="memory://")
    def narrow(key: str) -> str:
        return work(key)

    @task("auto", autoretry_for=(ValueError,), max_retries=1, retry_backoff=False, default_retry_delay=0)
    @exclusive("{key}", **{**QUICK, "on_conflict": "retry"})
    def auto(key: str, seconds: float = 0.0) -> str:
        with noted(key):
            time.sleep(seconds)
            if current_task.request.retries < 1:
                raise ValueError("the first time")
        return key

    @task("fence")
    @exclusive("{key}", **QUICK)
    def fence(key: str) -> Any:
        lease = current_lease()
        return None if lease is None else [lease.name, lease.fence, bool(lease)]

    @task("one", base=LockedTask, unique=unique("{key}", ttl=30))
    def one(key: str, seconds: float = 0.0) -> str:
        return work(key, seconds)

    @task("one_again", base=LockedTask, unique=unique("{key}", ttl=30), bind=True, max_retries=1)
    def one_again(self: Any, key: str, again: bool = True) -> str:
        work(key, 0.5)
        if again and not self.request.retries:
            raise self.retry(countdown=0)
        return key

    @task("one_done", base=LockedTask, unique=unique("{key}", ttl=30, until="done"), bind=True, max_retries=1)
    def one_done(self: Any, key: str, seconds: float = 0.0, again: bool = False) -> str:
        work(key, seconds)
        if again and not self.request.retries:
            raise self.retry(countdown=0.2)
        return key

    @task("outside", base=LockedTask, lock=exclusive("{key}", **{**QUICK, "on_conflict": "raise"}), bind=True,
          autoretry_for=(Exception,), retry_kwargs={"countdown": 0}, max_retries=3)  # fmt: skip
    def outside(self: Any, key: str, seconds: float = 0.0, fails: int = 0) -> str:
        work(key, seconds)
        if self.request.retries < fails:
            raise ValueError(key)
        return f"{key} after {self.request.retries}"

    @task(
        "both", base=LockedTask, unique=unique("{key}", ttl=30), lock=exclusive("{key}", **QUICK, on_conflict="retry")
    )
    def both(key: str, seconds: float = 0.0) -> str:
        return work(key, seconds)

    @task("total")
    def total(values: list[Any]) -> list[Any]:
        return values

    @task("broken")
    def broken(key: str) -> None:
        time.sleep(0.1)
        raise ValueError(key)

    @task("told")
    def told(key: str) -> str:
        note("told", key)
        return key

    return SimpleNamespace(**made)


if "BROKER" in os.environ:
    if "unacked_restore_interval" in os.environ.get("TRANSPORT", ""):
        _look_each_second()
    app = make_app(os.environ)
    tasks = define(app)
