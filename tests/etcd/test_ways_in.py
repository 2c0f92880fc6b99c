"""Every way to reach an etcd: URLs, passwords, TLS, and client objects that the application has already."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import etcd3
import pytest
from servers import EtcdServer, wait_until

from atomiclock import AsyncLockManager, BackendRefused, BackendUnavailable, ConfigurationError, LockManager
from atomiclock._registry import backend_for

PASSWORD = "s3cret/with:odd@chars"


def works(locks: LockManager) -> None:
    with locks, locks.acquire("a", timeout=2) as lease:
        assert lease
        assert locks.try_acquire("a") is None
    with locks, locks.acquire("a", timeout=2):
        pass


def works_async(locks: AsyncLockManager) -> None:
    async def main() -> None:
        async with locks, locks.acquire("a", timeout=2) as lease:
            assert lease
            assert await locks.try_acquire("a") is None

    asyncio.run(main())


async def acquire(locks: AsyncLockManager) -> None:
    await locks.acquire("a", timeout=2)


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("etcd://localhost", ("localhost:2379",)),
        ("etcd://h1:1,h2,10.0.0.3:65535", ("h1:1", "h2:2379", "10.0.0.3:65535")),
        ("etcd://[::1]:4,[fe80::1]", ("[::1]:4", "[fe80::1]:2379")),
        ("etcds://u:p%40@h1,h2:5", ("h1:2379", "h2:5")),
    ],
)
def test_a_url_names_its_endpoints(url: str, endpoints: tuple[str, ...]) -> None:
    backend, _ = backend_for(url)
    assert backend._target.endpoints == endpoints  # type: ignore[attr-defined]  # it is an EtcdBackend


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("etcd://", "needs hosts"),
        ("etcd://h1,", "needs hosts"),
        ("etcd://h1:0", "from 1 to 65535"),
        ("etcd://h1,h2:99999", "from 1 to 65535"),
        ("etcd://h1,h2:x", "needs hosts"),
        ("etcd://h1/prefix", "namespace="),
        ("etcd://user@h1", "half of user:password"),
        ("etcd://h1?ca=/x", "etcds://"),
        ("etcds://h1?ca=/does/not/exist", "ca=/does/not/exist cannot be read"),
        ("etcds://h1?cert=/etc/hosts", "cert and key go together"),
        ("etcd://h1?certificate=x", "cert"),
        ("etcd://h1?io_timeout=0", "above 0"),
        ("etcd://u:sesame@h1,h2:x", "needs hosts"),
    ],
)
def test_a_bad_url_is_refused_before_anything_is_sent(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        LockManager(url)
    assert "sesame" not in str(caught.value)


def test_by_host(etcd_server: EtcdServer) -> None:
    works(LockManager(etcd_server.url))
    works_async(AsyncLockManager(etcd_server.url))
    works(LockManager(etcd_server.url.replace("127.0.0.1", "localhost")))


# Users


def enable_users(server: EtcdServer) -> None:
    for words in (
        "role add locker", "role grant-permission locker readwrite atomiclock: --prefix",
        f"user add root:{PASSWORD}", f"user add shop:{PASSWORD}", f"user add poor:{PASSWORD}",
        "user grant-role root root", "user grant-role shop locker", "auth enable",
    ):  # fmt: skip
        server.ctl(*words.split())
    server.flags = ("--user", f"root:{PASSWORD}")


@pytest.fixture
def locked_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path, "--auth-token-ttl", "1", "--bcrypt-cost", "4").start()
    enable_users(server)
    yield server
    server.stop()


def with_user(server: EtcdServer, user: str, password: str = PASSWORD) -> str:
    return server.url.replace("//", f"//{user}:{quote(password, safe='')}@")


def test_user_and_password(locked_etcd: EtcdServer) -> None:
    works(LockManager(with_user(locked_etcd, "shop")))
    works_async(AsyncLockManager(with_user(locked_etcd, "shop")))


@pytest.mark.parametrize(
    ("user", "password", "words"),
    [("shop", "guess-me", "check user and password"), ("poor", PASSWORD, "readwrite on the prefix"), ("", "", "user")],
)
def test_a_refusal_says_what_to_do_and_never_the_password(
    locked_etcd: EtcdServer, user: str, password: str, words: str
) -> None:
    url = with_user(locked_etcd, user, password) if user else locked_etcd.url
    locks = LockManager(url)
    with pytest.raises(BackendRefused, match=words) as caught:
        locks.acquire("a", timeout=2)
    assert isinstance(caught.value, BackendUnavailable)
    assert caught.value.name == "a"
    if password:
        assert password not in f"{caught.value!r} {caught.value.__cause__!r} {locks!r}"
        assert quote(password, safe="") not in f"{caught.value!r} {caught.value.__cause__!r} {locks!r}"
    with pytest.raises(BackendRefused, match=words):
        locks.try_acquire("a")
    with pytest.raises(BackendRefused, match=words):
        asyncio.run(acquire(AsyncLockManager(url)))
    locks.close()
    assert locked_etcd.leases() == []


@pytest.mark.parametrize("trouble", ["expired", "restart", "roles"])
def test_a_token_that_is_valid_no_more_is_replaced(locked_etcd: EtcdServer, trouble: str) -> None:
    """Also by a waiter, and for a lease, whose streams carried the old one."""
    from threading import Thread

    locks, others = LockManager(with_user(locked_etcd, "shop")), LockManager(with_user(locked_etcd, "shop"))
    with others, locks, locks.acquire("held", renew=False) as lease:
        got: list[Any] = []
        waiter = Thread(target=lambda: got.append(others.acquire("held", timeout=20)), daemon=True)
        waiter.start()
        wait_until(lambda: len(locked_etcd.keys()) == 2, what="it waits")
        if trouble == "restart":
            locked_etcd.restart()
        elif trouble == "roles":
            locked_etcd.ctl("user", "add", "another:x")
        else:
            time.sleep(3.5)  # simple tokens are swept every second
        with locks.acquire("a", timeout=5):
            pass
        lease.extend()
        lease.release()
        waiter.join(10)
        got[0].release()
    assert locked_etcd.leases() == []


def test_a_password_where_none_is_wanted_does_no_harm(etcd_server: EtcdServer) -> None:
    works(LockManager(with_user(etcd_server, "anybody")))


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and certificates for a server at 127.0.0.1 and for a client, made by openssl."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    use = ("-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test ca", "-days", "2", *use)
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
    for who in ("server", "client"):
        openssl("req", *key, "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        openssl("x509", "-req", "-in", f"{who}.csr", *signed, "-out", f"{who}.crt")
    return folder


def tls_server(folder: Path, certificates: Path, *options: str) -> EtcdServer:
    files = ("--cert-file", str(certificates / "server.crt"), "--key-file", str(certificates / "server.key"))
    server = EtcdServer(folder, *files, *options, scheme="https")
    ca, key, cert = (str(certificates / name) for name in ("ca.crt", "client.key", "client.crt"))
    server.flags = ("--cacert", ca, "--key", key, "--cert", cert)
    return server.start()


@pytest.fixture(scope="module")
def tls_etcd(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[EtcdServer]:
    server = tls_server(tmp_path_factory.mktemp("tls-etcd"), certificates)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def mutual_etcd(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[EtcdServer]:
    trusted = ("--client-cert-auth", "--trusted-ca-file", str(certificates / "ca.crt"))
    server = tls_server(tmp_path_factory.mktemp("mtls-etcd"), certificates, *trusted)
    yield server
    server.stop()


def test_over_tls(tls_etcd: EtcdServer, certificates: Path) -> None:
    url = f"etcds://127.0.0.1:{tls_etcd.port}?ca={certificates}/ca.crt"
    works(LockManager(url))
    works_async(AsyncLockManager(url))


def test_over_mutual_tls(mutual_etcd: EtcdServer, certificates: Path) -> None:
    url = f"etcds://127.0.0.1:{mutual_etcd.port}?ca={certificates}/ca.crt"
    works(LockManager(f"{url}&cert={certificates}/client.crt&key={certificates}/client.key"))
    with pytest.raises(BackendUnavailable) as caught:  # TLS 1.3 tells it after the handshake, so it may look cut off
        LockManager(url).acquire("a", timeout=2)
    assert caught.value.name == "a"


@pytest.mark.parametrize("query", ["", "?ca={}/ca.crt"])
def test_a_certificate_that_is_not_the_servers_is_refused(tls_etcd: EtcdServer, certificates: Path, query: str) -> None:
    """Without ca= nobody vouches for it; with it, it is for another host."""
    url = f"etcds://{'localhost' if query else '127.0.0.1'}:{tls_etcd.port}{query.format(certificates)}"
    with pytest.raises(BackendRefused, match="certificate is not trusted"):
        LockManager(url).acquire("a", timeout=5)
    with pytest.raises(BackendRefused, match="certificate is not trusted"):
        asyncio.run(acquire(AsyncLockManager(url)))


def test_tls_to_a_server_without_and_without_to_one_with_it(etcd_server: EtcdServer, tls_etcd: EtcdServer) -> None:
    for url in (etcd_server.url.replace("etcd:", "etcds:"), f"etcd://127.0.0.1:{tls_etcd.port}"):
        begun = time.monotonic()
        with pytest.raises(BackendUnavailable):
            LockManager(url).acquire("a", timeout=1)
        assert time.monotonic() - begun < 3


# Client objects


def test_an_existing_python_etcd3_client(etcd_server: EtcdServer) -> None:
    with etcd3.client(port=etcd_server.port) as client:
        works(LockManager(client))
        works(LockManager(client=client))
        client.put("x", "y")
    works(LockManager(client=client))  # its connections are not ours


def test_a_python_etcd3_client_with_tls(tls_etcd: EtcdServer, certificates: Path) -> None:
    with etcd3.client("127.0.0.1", tls_etcd.port, ca_cert=str(certificates / "ca.crt")) as client:
        works(LockManager(client=client))


def test_a_python_etcd3_client_with_a_password(locked_etcd: EtcdServer) -> None:
    """It keeps the token only: we go on until that expires, and say so then."""
    with etcd3.client(port=locked_etcd.port, user="shop", password=PASSWORD) as client:
        locks = LockManager(client=client)
        works(locks)
        time.sleep(3)  # tokens live for 1 s here, and are swept once a second
        with pytest.raises(BackendRefused, match=r"token has expired.*URL"):
            locks.acquire("a", timeout=2)


def test_a_python_etcd3_client_with_several_endpoints(etcd_server: EtcdServer) -> None:
    dead, good = (etcd3.Endpoint("127.0.0.1", port, secure=False) for port in (1, etcd_server.port))
    with etcd3.MultiEndpointEtcd3Client(endpoints=(dead, good), failover=True) as client:
        works(LockManager(client=client))


def test_a_client_of_the_other_colour_or_kind_is_refused(etcd_server: EtcdServer) -> None:
    with etcd3.client(port=etcd_server.port) as client:
        with pytest.raises(ConfigurationError, match="takes an aetcd"):
            AsyncLockManager(client=client)


AETCD = """
    import asyncio, aetcd
    from atomiclock import AsyncLockManager, ConfigurationError, LockManager

    async def main():
        async with aetcd.Client(port={port}) as client:
            async with AsyncLockManager(client=client) as locks, locks.acquire("a", timeout=5) as lease:
                assert lease
                assert await locks.try_acquire("a") is None
                assert (await client.get_prefix(b"atomiclock:a/"))
        async with AsyncLockManager(client=aetcd.Client(port={port})) as locks, locks.acquire("a", timeout=5):
            pass
        try:
            LockManager(client=client)
        except ConfigurationError as error:
            print(error)

    asyncio.run(main())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_an_existing_aetcd_client(etcd_server: EtcdServer) -> None:
    """In a process of its own: aetcd and etcd3 cannot be imported into one."""
    done = run_python(AETCD.format(port=etcd_server.port))
    assert done.returncode == 0, done.stderr
    assert "takes an etcd3.client()" in done.stdout
    assert done.stderr == ""
