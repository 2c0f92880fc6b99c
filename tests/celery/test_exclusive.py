"""`exclusive` on tasks: eager, called directly, and in a real worker with several threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from atomiclock import ConfigurationError, LockLost, LockManager
from atomiclock.celery import LockBusy, current_lease, exclusive

URL = "https://example.org/rss"


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/locks.db"


@pytest.fixture
def app(store: str) -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=True)
    app.conf.update(atomiclock_url=store, task_always_eager=True, task_eager_propagates=True)
    app.conf.task_default_queue = store  # all apps of this process have one memory
    yield app
    app.close()


def held(store: str, task: str, key: str) -> Any:
    return LockManager(store).acquire(f"{task}:{key}", timeout=0)


def test_the_work_is_done_with_the_lock_held_and_released_afterwards(app: Celery, store: str) -> None:
    @app.task(name="import_feed")
    @exclusive("{feed_url}")
    def import_feed(feed_url: str) -> Any:
        return LockManager(store).holder(f"import_feed:{feed_url}") is not None

    assert import_feed.delay(URL).get() is True
    assert LockManager(store).holder(f"import_feed:{URL}") is None


def test_the_work_knows_its_lease_and_the_innermost_of_several(app: Celery) -> None:
    @app.task(name="inner")
    @exclusive()
    def inner() -> Any:
        return current_lease().name

    @app.task(name="outer")
    @exclusive()
    def outer(fails: bool) -> Any:
        names = [current_lease().name, inner(), current_lease().name]
        assert (current_lease().fence or 0) > 0
        assert not fails
        return names

    one, two, three = outer.delay(False).get()
    assert one.startswith("outer:")
    assert two.startswith("inner:")
    assert three == one
    assert current_lease() is None
    with pytest.raises(AssertionError):
        outer.delay(True).get()
    assert current_lease() is None


def test_a_duplicate_is_logged_and_skipped(app: Celery, store: str, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(name="import_feed")
    @exclusive("{feed_url}", ttl=60, on_conflict="skip")
    def import_feed(feed_url: str) -> str:
        return f"done {feed_url}"

    with held(store, "import_feed", URL), caplog.at_level(logging.INFO):
        assert import_feed.delay(URL).get() is None
        assert import_feed.delay("https://example.org/other").get().startswith("done")
    assert "already being imported by another worker" in caplog.text
    assert import_feed.delay(URL).get().startswith("done")


def test_raise_fails_the_duplicate(app: Celery, store: str) -> None:
    @app.task(name="report")
    @exclusive(on_conflict="raise", ttl=5)
    def report() -> str:
        return "done"

    @app.task(name="nested")
    @exclusive("one", on_conflict="raise")
    def nested() -> str:
        with pytest.raises(LockBusy):
            nested()
        return "refused"

    assert report.delay().get() == "done"
    assert nested.delay().get() == "refused"


def test_eagerly_or_directly_a_call_stands_for_the_lock_as_long_as_it_was_told(app: Celery, store: str) -> None:
    @app.task(name="standing")
    @exclusive("{x}", on_conflict="retry", wait=20)
    def standing(x: int) -> str:
        return f"done {x}"

    @app.task(name="waiting")
    @exclusive("{x}", on_conflict="wait", wait=0.1, then="skip", skip_result="nothing")
    def waiting(x: int) -> None: ...

    for call in (standing, lambda x: standing.delay(x).get()):
        lease = held(store, "standing", "1")
        letting_go = threading.Timer(0.5, lease.release)
        letting_go.start()
        assert call(1) == "done 1"
        letting_go.join()
    with held(store, "standing", "2"), pytest.raises(LockBusy, match="is held by"):
        standing.apply((2,), headers={"atomiclock": {"wait": 0.1}}, throw=True)
    with held(store, "waiting", "1"):
        assert waiting(1) == waiting.delay(1).get() == "nothing"


def test_a_direct_call_and_a_call_by_another_task_use_the_tasks_own_name(app: Celery, store: str) -> None:
    @app.task(name="inner")
    @exclusive("{x}")
    def inner(x: int) -> bool:
        return LockManager(store).holder(f"inner:{x}") is not None

    @app.task(name="outer")
    def outer() -> bool:
        return bool(inner(1))

    assert inner(1) is True
    assert outer.delay().get() is True


def test_the_default_key_is_the_same_however_the_arguments_are_passed(app: Celery, store: str) -> None:
    seen = []

    @app.task(name="work", bind=True)
    @exclusive()
    def work(self: Any, x: int, y: str = "a") -> str:
        seen.append([row for row in _names(store) if row.startswith("work:")])
        return "ok"

    work.delay(1)
    work.delay(x=1)
    work.delay(1, "a")
    work.delay(2)
    names = [row[0] for row in seen]
    assert names[0] == names[1] == names[2] != names[3]


def _names(store: str) -> list[str]:
    import sqlite3

    with sqlite3.connect(store.removeprefix("sqlite:///")) as db:
        rows = [key.decode().removeprefix("atomiclock:") for (key,) in db.execute("SELECT key FROM locks")]
    db.close()
    return rows


def test_a_task_that_lost_its_lock_fails(app: Celery, store: str) -> None:
    @app.task(name="slow")
    @exclusive("k", ttl=0.3)
    def slow() -> str:
        import sqlite3

        with sqlite3.connect(store.removeprefix("sqlite:///")) as db:
            db.execute("DELETE FROM locks")
        db.close()
        return "done"

    with pytest.raises(LockLost):
        slow.delay().get()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"key": "{url}"}, "names 'url', which is no parameter"),
        ({"key": "{feed_url"}, "not a format string"),
        ({"key": 5}, "key is a template"),
        ({"ttl": 0}, "ttl must be a finite number"),
        ({"on_conflict": "explode"}, "on_conflict is"),
    ],
)
def test_mistakes_are_refused_when_decorating(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):

        @exclusive(**arguments)
        def import_feed(feed_url: str) -> None: ...


def test_decorating_the_wrong_thing_says_what_to_do(app: Celery) -> None:
    with pytest.raises(ConfigurationError, match=r"below @app\.task"):

        @exclusive("{x}")
        @app.task
        def work(x: int) -> None: ...

    with pytest.raises(AttributeError, match="write @exclusive"):

        @app.task(lazy=False, name="uncalled")
        @exclusive
        def uncalled(x: int) -> None: ...

    with pytest.raises(ConfigurationError, match="no others"):

        @exclusive("{x}")
        async def later(x: int) -> None: ...


def test_an_argument_without_a_stable_form_is_refused_at_the_call(app: Celery) -> None:
    @app.task
    @exclusive()
    def work(x: object) -> None: ...

    with pytest.raises(ConfigurationError, match="no form that is the same in every process"):
        work(object())


def test_celery_still_checks_the_arguments_of_a_call(app: Celery) -> None:
    app.conf.task_always_eager = False

    @app.task
    @exclusive("{x}")
    def work(x: int) -> None: ...

    with pytest.raises(TypeError):
        work.delay(1, 2, 3)


@pytest.mark.filterwarnings("ignore")  # of Celery's worker, which runs inside this process here
def test_a_worker_never_runs_two_of_one_key_at_once(app: Celery) -> None:
    app.conf.task_always_eager = False
    running, most, done = set(), [0], []
    mutex = threading.Lock()

    @app.task(name="counted")  # Celery shares tasks between apps: a name of its own
    @exclusive("{x}", ttl=10)
    def work(x: int) -> int:
        with mutex:
            assert x not in running
            running.add(x)
            most[0] = max(most[0], len(running))
        time.sleep(0.2)
        with mutex:
            running.discard(x)
            done.append(x)
        return x

    with start_worker(app, pool="threads", concurrency=6, perform_ping_check=False, shutdown_timeout=30):
        results = [work.delay(number % 2) for number in range(6)]
        answers = [result.get(timeout=30) for result in results]
    assert set(answers) == {0, 1, None}
    assert most[0] == 2
