"""Fixtures for all tests: real servers, one of each for the session, emptied before each test that uses it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tally
from servers import EtcdServer, MemcachedServer, RedisServer

# Under `nohup`, or in the background of a script, these are ignored, and by every program that a test starts, too.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long form tries five to ten times as much in a test, so that takes as much longer before it is stuck."""
    for item in items if tally.LONG else ():
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several that pytest-xdist runs
        session.config.workeroutput["counted"] = tally.LINES


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    tally.LINES.extend(getattr(node, "workeroutput", {}).get("counted", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tally.LINES:
        terminalreporter.section("counted")
        for line in tally.LINES:
            terminalreporter.write_line(line)
    tried_again = terminalreporter.getreports("rerun")
    if tried_again:
        terminalreporter.section("tried again")
    for report in tried_again:
        terminalreporter.write_line(f"{report.nodeid} after {report.when}:")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture(scope="session")
def redis_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(redis_session: RedisServer) -> RedisServer:
    """The session's Redis, empty. A test that kills or freezes one takes `own_redis`."""
    redis_session.command("FLUSHALL")
    return redis_session


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for this test alone."""
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def etcd_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd")).start()
    yield server
    server.stop()


@pytest.fixture
def etcd_server(etcd_session: EtcdServer) -> EtcdServer:
    """The session's etcd, without keys and leases. A test that kills or freezes one takes `own_etcd`."""
    etcd_session.ctl("del", "", "--from-key")
    for lease in etcd_session.leases():
        with suppress(subprocess.CalledProcessError):  # it ended meanwhile
            etcd_session.ctl("lease", "revoke", lease)
    return etcd_session


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd for this test alone."""
    server = EtcdServer(tmp_path).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def memcached_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemcachedServer]:
    server = MemcachedServer(tmp_path_factory.mktemp("memcached")).start()
    server.wait_until_old_enough()
    yield server
    server.stop()


@pytest.fixture
def memcached_server(memcached_session: MemcachedServer) -> MemcachedServer:
    """The session's memcached, empty. A test that kills or freezes one takes `own_memcached`."""
    memcached_session.command("flush_all")
    return memcached_session


@pytest.fixture
def own_memcached(tmp_path: Path) -> Iterator[MemcachedServer]:
    """A memcached for this test alone."""
    server = MemcachedServer(tmp_path).start()
    server.wait_until_old_enough()
    yield server
    server.stop()
