"""Every way to reach a memcached: URLs, sockets, passwords, TLS, and clients that the application has already."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcproxy import proxy_to
from pymemcache.client.base import Client, KeepaliveOpts, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.retrying import RetryingClient
from servers import MemcachedServer, RedisServer, free_port, wait_until

from atomiclock import BackendUnavailable, ConfigurationError, LockManager
from atomiclock.errors import BackendRefused

SECRET = "hunter2-and/more:"


def works(locks: Any) -> None:
    with locks.acquire("a", timeout=5) as lease:
        assert lease
        assert lease.fence > 0
        assert locks.try_acquire("a") is None
        lease.extend(60)
    locks.acquire("a", timeout=5).release()


@contextlib.contextmanager
def started(folder: Path, *options: str) -> Iterator[MemcachedServer]:
    server = MemcachedServer(folder, *options).start()
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_by_host(make: Callable[..., Any], memcached_server: MemcachedServer, host: str) -> None:
    works(make(f"memcached://{host}:{memcached_server.port}?io_timeout=2&ttl=20"))


def test_a_lock_for_threads_loads_nothing_for_tasks(memcached_server: MemcachedServer) -> None:
    code = f"""if True:
        import sys, atomiclock
        with atomiclock.acquire_lock("x", "memcached://127.0.0.1:{memcached_server.port}"): pass
        print(sys.modules.keys() & {{"asyncio", "dataclasses", "inspect"}})"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_each_address_of_a_host_is_tried(
    make: Callable[..., Any], memcached_server: MemcachedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of localhost, whose first is often ::1, where the server does not listen. pymemcache tries one."""
    stale = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", free_port()))
    real = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", memcached_server.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [stale, real])
    works(make("memcached://two.example"))


@pytest.fixture(scope="module")
def by_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("unix")
    with started(folder, "-s", str(folder / "memcached.sock")):
        yield folder / "memcached.sock"


def test_by_unix_socket(make: Callable[..., Any], by_socket: Path) -> None:
    works(make(f"memcached+unix://{by_socket}"))
    works(make(Client(str(by_socket))))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memcached://", "needs a host"),
        ("memcached://a:1,b:2", "takes one server: with several"),
        ("memcached://a:0", "port is from 1"),
        ("memcached://a/0", "no databases"),
        ("memcached://ann@a", "user and password"),
        ("memcached+unix://a/b", "absolute path"),
        ("memcached+unix://", "absolute path"),
        ("memcached://a?io_timeout=0", "above 0"),
        ("memcached://a?io_timeout=x", "number of seconds"),
        ("memcached://a?protocol=binary", "auto or classic"),
        ("memcached://a?tls=yes", "no option"),
    ],
)
def test_a_url_that_is_wrong_says_why(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LockManager(url)


@pytest.mark.parametrize(
    "client",
    [
        lambda server: Client(server),
        lambda server: Client(server, timeout=0.0001, connect_timeout=0.0001, ignore_exc=True, default_noreply=True),
        lambda server: Client(server, socket_keepalive=KeepaliveOpts(), key_prefix=b"shop:"),
        lambda server: PooledClient(server, max_pool_size=1),
        lambda server: RetryingClient(Client(server), attempts=3),
        lambda server: HashClient([server]),
        lambda server: HashClient([server], use_pooling=True, key_prefix=b"shop:"),
    ],
    ids=["plain", "hasty", "prefix", "pooled", "retrying", "hash", "hash pooled"],
)
def test_an_existing_client(make: Callable[..., Any], memcached_server: MemcachedServer, client: Any) -> None:
    existing = client(("127.0.0.1", memcached_server.port))
    works(make(existing))
    # One of them gives a reply 0.1 ms.
    wait_until(lambda: existing.set("theirs", b"1", noreply=False) and existing.get("theirs") == b"1", 5, "it works")
    existing.close()


def test_a_client_of_several_servers_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="takes one server"):
        make(HashClient([("127.0.0.1", 1), ("127.0.0.1", 2)]))


@pytest.mark.parametrize("protocol", ["auto", "classic"])
def test_a_cache_add_lock_and_ours_exclude_each_other(
    make: Callable[..., Any], memcached_server: MemcachedServer, protocol: str
) -> None:
    locks = make(f"{memcached_server.url}?protocol={protocol}", namespace="")
    with contextlib.closing(Client(("127.0.0.1", memcached_server.port))) as cache:
        assert cache.add("lock-id", "worker-1", expire=60, noreply=False)
        assert locks.try_acquire("lock-id") is None
        holder = locks.holder("lock-id")
        assert (holder.owner, holder.token, holder.fence) == (None, "worker-1", None)
        assert cache.set("lock-id", b"\x80\x04pickled\n", noreply=False)
        assert locks.try_acquire("lock-id") is None
        token = locks.holder("lock-id").token
        assert token.startswith("~")
        assert token == locks.holder("lock-id").token
        assert cache.delete("lock-id", noreply=False)
        with locks.acquire("lock-id", timeout=5):
            assert not cache.add("lock-id", "worker-2", expire=60, noreply=False)
        assert cache.add("lock-id", "worker-2", expire=60, noreply=False)


def test_the_key_prefix_of_a_client_is_used(make: Callable[..., Any], memcached_server: MemcachedServer) -> None:
    with contextlib.closing(Client(("127.0.0.1", memcached_server.port), key_prefix=b"shop:")) as cache:
        locks = make(cache, namespace="")
        with locks.acquire("lock-id", timeout=5):
            assert not cache.add("lock-id", "worker", expire=60, noreply=False)
            assert memcached_server.keys() == ["shop%3Alock-id"]


@pytest.mark.parametrize("name", ["é", "\x01", "x" * 250, "a:b%20c", "{}"])
def test_a_name_that_memcached_can_hold_is_the_key_itself(
    make: Callable[..., Any], memcached_server: MemcachedServer, name: str
) -> None:
    with contextlib.closing(Client(("127.0.0.1", memcached_server.port), allow_unicode_keys=True)) as cache:
        with make(memcached_server.url, namespace="").acquire(name, timeout=5):
            assert not cache.add(name, "worker", expire=60, noreply=False)


def test_names_that_memcached_cannot_hold_are_distinct_and_inject_nothing(
    make: Callable[..., Any], memcached_server: MemcachedServer
) -> None:
    names = ["a b", "a\tb", "a\r\nset x 0 0 1\r\n1\r\n", "a\nb", "\0", " ", "x" * 251, "é" * 126, "x" * 5000, "\ud800 "]
    locks = make(memcached_server.url, namespace="")
    leases = [locks.acquire(name, timeout=5) for name in names]
    assert len(memcached_server.keys()) == len(names)
    for lease in leases:
        lease.release()
    assert memcached_server.keys() == []


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemcachedServer]:
    users = tmp_path_factory.mktemp("guarded") / "users"
    users.write_text(f"ann:{SECRET}\n")
    with started(users.parent, "-Y", str(users)) as server:
        yield server


def test_user_and_password(make: Callable[..., Any], guarded: MemcachedServer) -> None:
    from urllib.parse import quote

    works(make(f"memcached://ann:{quote(SECRET, safe='')}@127.0.0.1:{guarded.port}"))


def test_a_refusal_says_what_to_do_and_never_the_password(make: Callable[..., Any], guarded: MemcachedServer) -> None:
    for user in ("", "ann:guess-me@"):
        locks = make(f"memcached://{user}127.0.0.1:{guarded.port}")
        begun = time.monotonic()
        with pytest.raises(BackendRefused, match=r"authenticat.*give user and password") as caught:
            locks.acquire("a", timeout=5)
        assert time.monotonic() - begun < 3
        assert caught.value.name == "a"
        assert "guess-me" not in f"{caught.value!r} {caught.value.__cause__!r} {locks.manager!r}"


def test_a_password_is_not_stored_by_a_server_that_wants_none(
    make: Callable[..., Any], memcached_server: MemcachedServer
) -> None:
    works(make(memcached_server.url.replace("//", "//ann:secret@")))
    assert memcached_server.keys() == []


@pytest.fixture(scope="module")
def without_versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemcachedServer]:
    with started(tmp_path_factory.mktemp("no-cas"), "-C") as server:
        server.wait_until_old_enough()
        yield server


def test_a_server_without_versions_is_refused(make: Callable[..., Any], without_versions: MemcachedServer) -> None:
    with proxy_to(without_versions.port) as proxy:
        locks = make(proxy.url)
        for _ in range(3):
            with pytest.raises(BackendRefused, match="without CAS"):
                locks.acquire("a", timeout=5)
        assert without_versions.keys() == []
        wait_until(lambda: int(without_versions.stats()["curr_connections"]) <= 3, 5, "no connection is left open")


@pytest.fixture
def web_server() -> Iterator[int]:
    """Something that is not memcached: answers every line as a web server does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as client:
                        client.recv(65536)
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_what_is_no_memcached_is_unavailable_and_says_so(
    make: Callable[..., Any], web_server: int, redis_server: RedisServer
) -> None:
    for port in (web_server, redis_server.port):
        locks = make(f"memcached://127.0.0.1:{port}")
        begun = time.monotonic()
        with pytest.raises(BackendUnavailable, match="does not speak memcached's protocol"):
            locks.acquire("a", timeout=0.5)
        assert time.monotonic() - begun < 2.5
        with pytest.raises(BackendUnavailable):
            locks.holder("a")


def test_nothing_at_the_port_is_unavailable_within_the_deadline(make: Callable[..., Any]) -> None:
    locks = make(f"memcached://127.0.0.1:{free_port()}")
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable, match="not reachable"):
        locks.acquire("a", timeout=0.3)
    assert time.monotonic() - begun < 2.3


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority and a server's certificate for localhost, made by openssl."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    use = ("-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test ca", "-days", "2", *use)
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "ext").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.crt")
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


@pytest.fixture
def tls_front(memcached_server: MemcachedServer, certificates: Path) -> Iterator[int]:
    """A port that speaks TLS before the memcached, which may have been built without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pipe(client: socket.socket) -> None:
            with contextlib.suppress(OSError, ssl.SSLError), context.wrap_socket(client, server_side=True) as secure:
                with socket.create_connection(("127.0.0.1", memcached_server.port)) as server:
                    while data := secure.recv(65536):
                        server.sendall(data)
                        secure.sendall(server.recv(65536))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=pipe, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_the_tls_context_of_a_client_is_used(make: Callable[..., Any], tls_front: int, certificates: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    works(make(Client(("localhost", tls_front), tls_context=trusting)))
    with pytest.raises(BackendRefused, match="certificate is not trusted"):
        make(Client(("localhost", tls_front), tls_context=ssl.create_default_context())).acquire("a", timeout=2)


def test_digests_do_not_change_from_version_to_version() -> None:
    from atomiclock._url import parse
    from atomiclock.backends.memcached import MemcachedBackend

    backend = MemcachedBackend.from_url(parse("memcached://localhost"))
    expected = hashlib.blake2b(b"a b", digest_size=16).hexdigest().encode()
    assert backend._key("a b") == b"a_b~" + expected
