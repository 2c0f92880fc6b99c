"""URLs of backends, and the registry: what is understood, what is refused, and what is never shown."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from atomiclock import AsyncLockManager, ConfigurationError, LockError, LockManager, _registry
from atomiclock._url import mask, parse
from atomiclock.backends.memory import MemoryBackend

SECRET = "hunter2"


def test_the_parts_of_a_url() -> None:
    url = parse("redis://us%40er:p%2Fw@Example.org:7000/3?ttl=5&db=2&namespace=a%3Ab")
    assert (url.scheme, url.host, url.port, url.path) == ("redis", "example.org", 7000, "/3")
    assert (url.username, url.password) == ("us@er", "p/w")
    assert (url.options, url.query) == ({"ttl": 5.0, "namespace": "a:b"}, {"db": "2"})


def test_a_scheme_may_be_written_in_capitals() -> None:
    assert "memory://" in repr(LockManager("MEMORY://x"))


@pytest.mark.parametrize(
    "text",
    ["", "redis", "redis:", "redis:/x", "://x", "1x://y", "redis://h:port", "redis://h:99999", "redis://[::1", "redis://h/#1",
     "redis://h /0", "redis://h\n/0", "redis://h\x00/0", "memory://?ttl=1&ttl=2", "redis://h?db=1&db=2"],
)  # fmt: skip
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        LockManager(text)


@pytest.mark.parametrize("url", [5, 5.0, b"redis://h", ["redis://h"], {}])
def test_what_is_no_text_is_refused(url: Any) -> None:
    for manager in (LockManager, AsyncLockManager):
        with pytest.raises(ConfigurationError):
            manager(url)


@pytest.mark.parametrize("url", ["redis://a,b", "valkey://a:6379,b:6380/0", "memcached://a:1,b:2"])
def test_several_servers_are_refused_where_a_lock_must_live_on_one(url: str) -> None:
    with pytest.raises(ConfigurationError, match="takes one server"):
        LockManager(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss+unix://x", "redis+unix"),
        ("sqlit://", "sqlite"),
        ("reddis://h", "redis"),
        ("memory://?tll=5", "ttl"),
        ("redis://h?io_timeot=5", "io_timeout"),
        ("sqlite://?durabel=1", "durable"),
        ("qqq://h", "memory"),
    ],
)
def test_an_unknown_word_names_the_nearest_known_one(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        LockManager(url)


def test_an_option_that_is_said_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        LockManager("memory://?ttl=5&ttl=6")


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@127.0.0.1:1/0",
        f"redis://:{SECRET}@127.0.0.1:1/0",
        f"redis://user:{SECRET}@127.0.0.1:1/x",
        f"redis://user:{SECRET}@127.0.0.1:port/0",
        f"redis://user:{SECRET}@127.0.0.1:1/0?unknown=1",
        f"redis://user:{SECRET}@127.0.0.1:1/0?password={SECRET}",
        f"redis://user:{SECRET}@127.0.0.1:1/0#x",
        f"redis://user:a:{SECRET}@127.0.0.1:1/0",
        f"redis://user:a@{SECRET}@127.0.0.1:1/0",
        f"redis://user:a/{SECRET}@127.0.0.1:1/0",
        f"redis://user:a?{SECRET}@127.0.0.1:1/0",
        f"redis://user:a#{SECRET}@127.0.0.1:1/0",
        f"redis://user:{SECRET} @127.0.0.1:1/0",
        f"redis://user:{SECRET}@127.0.0.1:1,127.0.0.1:2/0",
        f"redi://user:{SECRET}@127.0.0.1:1/0",
        f"memory://user:{SECRET}@name",
        f"sqlite://user:{SECRET}@host/x",
        f"redis+unix://user:{SECRET}@host/x.sock",
        f"redis://user:{SECRET}@[::1",
        f"redis://user:{SECRET}@exa\u2100mple.org",
        f"user:{SECRET}@127.0.0.1:1",
        f"redis:/user:{SECRET}@127.0.0.1:1",
        f"redis://user://{SECRET}@127.0.0.1:1/0",
        f"redis://user:12/{SECRET}@127.0.0.1:1/0",
        f"redis://user:12?{SECRET}@127.0.0.1:1/0",
        f"etcd://user:12/{SECRET}@127.0.0.1:1",
        f"redis://{SECRET}@127.0.0.1:1/0",
    ],
)
def test_a_password_is_never_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    try:
        locks = LockManager(url)
        shown += [repr(locks), str(locks)]
        locks.try_acquire("name")
    except LockError as error:
        cause: BaseException | None = error
        while cause is not None:
            shown += [repr(cause), str(cause)]
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    else:
        pytest.fail("nobody listens there")
    assert SECRET not in "\n".join([*shown, caplog.text, mask(url)])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@h/0", "redis://user:***@h/0"),
        ("redis://:secret@h", "redis://:***@h"),
        ("redis://user@h", "redis://***@h"),
        ("redis://h/0?namespace=a@b", "redis://h/0?namespace=a@b"),
        ("etcd://h1:2379,h2:2379", "etcd://h1:2379,h2:2379"),
    ],
)
def test_a_url_is_shown_whole_but_for_what_may_be_a_password(url: str, shown: str) -> None:
    assert mask(url) == shown


def test_spaces_in_memory_whose_names_differ_in_case_only_are_two() -> None:
    with LockManager("memory://Space").acquire("name"):
        assert LockManager("memory://Space").try_acquire("name") is None
        other = LockManager("memory://space").try_acquire("name")
        assert other is not None
        other.release()


def test_the_parts_do_not_show_the_password() -> None:
    assert SECRET not in repr(parse(f"redis://user:{SECRET}@h"))


@pytest.mark.parametrize(
    "url",
    ["memory://a/b", "memory://a:5", "sqlite://host/x", "sqlite:///x/", "sqlite:///:memory:", "redis://", "redis://h/x",
     "redis://h?ssl_certfile=x", "redis+unix://", "redis+unix://host/x", "redis://h1,h2/0", "redis://h?db=-1",
     "redis://h?io_timeout=0", "redis://h?io_timeout=nan", "sqlite://?durable=maybe"],
)  # fmt: skip
def test_what_a_backend_cannot_do_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError):
        LockManager(url)


class Mine(MemoryBackend):
    """A third party's backend."""


def test_a_third_partys_backend_joins_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", f"{__name__}:Mine", _registry.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda _: Mine)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: EntryPoints([entry]))
    with LockManager("mine://x?ttl=5").acquire("name") as lease:
        assert lease.ttl == 5
    with pytest.raises(ConfigurationError, match="'mine'"):
        LockManager("mime://x")


def test_a_missing_driver_names_the_extra_to_install() -> None:
    script = """
        import sys
        sys.modules["redis"] = None
        from atomiclock import ConfigurationError, LockManager
        try:
            LockManager("redis://localhost")
        except ConfigurationError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env={"PYTHONPATH": "src"}, capture_output=True, text=True
    )
    assert "pip install 'atomiclock[redis]'" in done.stdout, done.stderr
