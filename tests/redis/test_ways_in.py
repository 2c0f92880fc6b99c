"""Every way to reach a Redis: schemes, passwords, TLS, sockets, and client objects that the application has already."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from servers import RedisServer, free_port

from atomiclock import AsyncLockManager, BackendRefused, BackendUnavailable, ConfigurationError, LockManager
from atomiclock._names import key_of
from atomiclock._process import clock
from atomiclock._url import parse
from atomiclock.backends._redis_scripts import keys_of
from atomiclock.backends._resp import Reader, pack
from atomiclock.backends._wire import Several
from atomiclock.backends.redis import RedisBackend

PASSWORD = "s3cret/with:odd@chars"


def works(locks: LockManager) -> None:
    with locks, locks.acquire("a", timeout=1) as lease:
        assert lease
        assert locks.try_acquire("a") is None
    with locks, locks.acquire("a", timeout=1):
        pass


def works_async(locks: AsyncLockManager) -> None:
    async def main() -> None:
        async with locks, locks.acquire("a", timeout=1) as lease:
            assert lease
            assert await locks.try_acquire("a") is None

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_by_host(redis_server: RedisServer, scheme: str) -> None:
    url = redis_server.url.replace("redis:", f"{scheme}:")
    works(LockManager(url))
    works_async(AsyncLockManager(url))


def test_by_unix_socket(redis_server: RedisServer) -> None:
    url = f"redis+unix://{redis_server.socket}?db=3"
    works(LockManager(url))
    works_async(AsyncLockManager(url))
    with LockManager(url).acquire("b"):
        assert "keys=2" in redis_server.command("INFO", "keyspace").split("db3:")[1]


def test_the_database_is_part_of_the_url(redis_server: RedisServer) -> None:
    here, there = (LockManager(redis_server.url.replace("/0", path)) for path in ("/1", "/2"))
    with here.acquire("a"), there.acquire("a", timeout=0):
        pass


@pytest.fixture
def locked_redis(tmp_path: Path) -> Iterator[RedisServer]:
    acl = tmp_path / "users.acl"
    acl.write_text(f"user default off\nuser shop on >{PASSWORD} ~* +@all\nuser poor on >{PASSWORD} ~* +get\n")
    server = RedisServer(tmp_path, "--aclfile", str(acl)).start()
    yield server
    server.stop()


def with_user(server: RedisServer, user: str, password: str) -> str:
    from urllib.parse import quote

    return server.url.replace("//", f"//{user}:{quote(password, safe='')}@")


def test_user_and_password(locked_redis: RedisServer) -> None:
    works(LockManager(with_user(locked_redis, "shop", PASSWORD)))
    works_async(AsyncLockManager(with_user(locked_redis, "shop", PASSWORD)))


@pytest.mark.parametrize(
    ("user", "password", "words"), [("shop", "guess-me", "password"), ("poor", PASSWORD, "needs EVALSHA")]
)
def test_a_refusal_says_what_to_do_and_never_the_password(
    locked_redis: RedisServer, user: str, password: str, words: str
) -> None:
    locks = LockManager(with_user(locked_redis, user, password))
    with pytest.raises(BackendRefused, match=words) as caught:
        locks.acquire("a", timeout=2)
    assert isinstance(caught.value, BackendUnavailable)
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.name == "a"
    assert password not in f"{caught.value!r} {caught.value.__cause__!r} {locks!r}"
    with pytest.raises(BackendRefused):
        asyncio.run(_acquire(AsyncLockManager(with_user(locked_redis, user, password))))


async def _acquire(locks: AsyncLockManager) -> None:
    await locks.acquire("a", timeout=2)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority and a server's certificate for 127.0.0.1, made by openssl."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    use = ("-addext", "keyUsage=critical,keyCertSign")  # without which Python 3.13 trusts no authority
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test ca", "-days", "2", *use)
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.crt")
    return folder


@pytest.fixture
def tls_redis(tmp_path: Path, certificates: Path) -> Iterator[int]:
    port = free_port()
    tls = ("--tls-cert-file", str(certificates / "server.crt"), "--tls-key-file", str(certificates / "server.key"))
    more = ("--tls-port", str(port), "--tls-ca-cert-file", str(certificates / "ca.crt"), "--tls-auth-clients", "no")
    server = RedisServer(tmp_path, *tls, *more).start()
    yield port
    server.stop()


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_over_tls(tls_redis: int, certificates: Path, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{tls_redis}/0?ssl_ca_certs={certificates}/ca.crt"
    works(LockManager(url))
    works_async(AsyncLockManager(url))


def test_what_comes_over_tls_in_several_records_is_read_whole(tls_redis: int, certificates: Path) -> None:
    """A busy loop finds them at once, and puts each behind the one before."""
    url = f"rediss://127.0.0.1:{tls_redis}/0?ssl_ca_certs={certificates}/ca.crt"

    async def main() -> list[Any]:
        channel = RedisBackend.from_url(parse(url)).async_channel()
        request = Several(pack(b"SUBSCRIBE", b"news"))
        request.number = 4
        replies = asyncio.ensure_future(channel.call(request, clock() + 5))
        with redis.Redis.from_url(url) as others:
            while not others.publish("news", "one"):  # noqa: ASYNC110 - the server knows when it has us
                await asyncio.sleep(0.01)
            others.publish("news", "two")
            others.publish("news", "three")
        try:
            return [reply[2] for reply in await replies]
        finally:
            channel.close()

    assert asyncio.run(main()) == [1, b"one", b"two", b"three"]


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_redis: int) -> None:
    with pytest.raises(BackendRefused, match="certificate is not trusted"):
        LockManager(f"rediss://127.0.0.1:{tls_redis}").acquire("a", timeout=2)
    with pytest.raises(BackendRefused, match="certificate is not trusted"):
        asyncio.run(_acquire(AsyncLockManager(f"rediss://127.0.0.1:{tls_redis}")))


def test_a_certificate_for_another_host_is_refused(tls_redis: int, certificates: Path) -> None:
    url = f"rediss://localhost:{tls_redis}/0?ssl_ca_certs={certificates}/ca.crt"
    with pytest.raises(BackendRefused, match="certificate is not trusted"):
        LockManager(url).acquire("a", timeout=2)
    with pytest.raises(BackendRefused, match="certificate is not trusted"):
        asyncio.run(_acquire(AsyncLockManager(url)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decode_responses": True},
        {"protocol": 3},
        {"socket_timeout": 0.001},
        {"health_check_interval": 1},
        {"db": 4},
    ],
    ids=str,
)
def test_an_existing_client(redis_server: RedisServer, settings: dict[str, Any]) -> None:
    with redis.Redis(port=redis_server.port, **settings) as client:
        works(LockManager(client))
        works(LockManager(client=client))


def test_an_existing_client_of_a_socket_or_a_blocking_pool(redis_server: RedisServer) -> None:
    pool = redis.BlockingConnectionPool.from_url(redis_server.url)
    for client in (redis.Redis(unix_socket_path=str(redis_server.socket)), redis.Redis(connection_pool=pool)):
        works(LockManager(client=client))
        client.close()
    pool.disconnect()


def test_an_existing_client_keeps_its_own_connections_to_itself(redis_server: RedisServer) -> None:
    with redis.Redis(port=redis_server.port, max_connections=1) as client:
        client.ping()
        works(LockManager(client=client))
        assert client.ping()
        assert client.connection_pool.get_encoder().decode_responses is False


def test_an_existing_asyncio_client(redis_server: RedisServer) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis(port=redis_server.port, decode_responses=True) as client:
            async with AsyncLockManager(client=client) as locks, locks.acquire("a") as lease:
                assert lease
            assert await client.ping()

    asyncio.run(main())


def test_a_client_of_the_other_colour_or_kind_is_refused(redis_server: RedisServer) -> None:
    with pytest.raises(ConfigurationError, match=r"takes a redis.Redis client"):
        LockManager(client=redis.asyncio.Redis())
    with pytest.raises(ConfigurationError, match=r"takes a redis.asyncio.Redis client"):
        AsyncLockManager(client=redis.Redis())
    with pytest.raises(ConfigurationError, match="no backend takes"):
        LockManager(client=object())
    with pytest.raises(ConfigurationError, match="not both"):
        LockManager("memory://", client=redis.Redis())


def test_all_keys_of_a_lock_are_in_one_slot(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port())).start()
    try:
        for key in ("plain", "with {a tag} inside", "{x", "ns:invoice:42", key_of("ns", "a}b{}")):
            keys, reader = keys_of(key), Reader()
            before, between, after = keys.around(5)
            said = keys.four + before + b"token" + between + b"token" + after
            parts = reader.take(said, Several.of([b""] * 6))
            slots = {server.command("CLUSTER", "KEYSLOT", part.decode()) for part in parts[:5]}
            assert parts[5] == b"token"
            assert not reader.rest
            assert len(slots) == 1, key
    finally:
        server.stop()


def test_a_fence_grows_over_flush_and_restart(own_redis: RedisServer) -> None:
    locks = LockManager(own_redis.url)
    fences = []
    for trouble in (lambda: None, lambda: own_redis.command("FLUSHALL"), own_redis.restart):
        trouble()
        with locks.acquire("a", timeout=5) as lease:
            fences.append(lease.fence)
    assert fences == sorted(set(fences))


def test_names_used_once_leave_no_keys(redis_server: RedisServer) -> None:
    locks = LockManager(redis_server.url)
    for number in range(20_000):
        locks.acquire(f"name:{number}").release()
    assert len(redis_server.keys()) <= 5
