"""`show`, `ls`, `watch` and `break`, on the stores that tell different things."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import SOURCES, Program
from servers import MemcachedServer, RedisServer, wait_until

from atomiclock import LockLost, LockManager


@pytest.fixture(params=["sqlite", "redis", "etcd", "memcached"])
def url(request: pytest.FixtureRequest, program: Program) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{program.folder}/locks.db"
    server: Any = request.getfixturevalue(f"{request.param}_server")
    return str(server.url)


@pytest.fixture
def locks(url: str) -> Iterator[LockManager]:
    with LockManager(url, owner="the test") as made:
        yield made


def test_show_tells_the_holder_and_then_that_it_is_free(program: Program, url: str, locks: LockManager) -> None:
    with locks.acquire("a name", ttl=20) as lease:
        shown = program.json("show", "a name", "--url", url)
        text = program("show", "a name", "--url", url)
    assert (shown["held"], shown["name"], shown["owner"], shown["token"]) == (True, "a name", "the test", lease.token)
    assert shown["fence"] == lease.fence
    assert 0 < shown["remaining"] <= 23
    assert text.returncode == 0
    for word in ("a name", "the test", lease.token):
        assert word in text.stdout
    assert program.json("show", "a name", "--url", url) == {"name": "a name", "held": False}
    assert program("show", "a name", "--url", url).returncode == 1


def test_ls_lists_the_locks_of_the_namespace_and_no_other(program: Program, url: str, locks: LockManager) -> None:
    if url.startswith("memcached"):
        done = program("ls", "--url", url)
        assert (done.returncode, done.stderr.count("\n")) == (64, 1)
        assert "name the locks" in done.stderr
        return
    assert program.json("ls", "--url", url) == []
    with LockManager(url, namespace="shop*[x]") as others, others.acquire("three"), others.acquire("with space"):
        with locks.acquire("one"), locks.acquire("two"):
            mine = program.json("ls", "--url", url)
            table = program("ls", "--url", url).stdout
        theirs = program.json("ls", "--url", url, "--namespace", "shop*[x]")
    assert [one["name"] for one in mine] == ["one", "two"]
    assert {one["owner"] for one in mine} == {"the test"}
    assert [line.split()[0] for line in table.splitlines()] == ["NAME", "one", "two"]
    assert theirs[0]["name"] == "three"
    assert len(theirs) == 2


def test_without_a_namespace_only_locks_are_listed(program: Program, redis_server: RedisServer) -> None:
    redis_server.command("SET", "other", "data")
    redis_server.command("RPUSH", "atomiclock:a-list", "data")
    with LockManager(redis_server.url, namespace="") as locks, locks.acquire("bare"), locks.acquire("{in}braces"):
        bare = program.json("ls", "--url", redis_server.url, "--namespace", "")
    assert [one["name"] for one in bare] == ["bare", "{in}braces"]
    assert program.json("ls", "--url", redis_server.url) == []


def put_for_ever(server: Any) -> None:
    """As somebody does by hand who knows of no ttl."""
    if isinstance(server, RedisServer):
        server.command("SET", "atomiclock:x", "foreign")
    elif isinstance(server, MemcachedServer):
        server.command("set atomiclock:x 0 0 7\r\nforeign")
    else:
        server.ctl("put", "atomiclock:x/1", "foreign")


@pytest.mark.parametrize("backend", ["redis", "memcached", "etcd"])
def test_a_lock_that_would_stay_for_ever_is_shown_as_such_and_can_be_broken(
    program: Program, backend: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(f"{backend}_server")
    put_for_ever(server)
    text = program("show", "x", "--url", server.url).stdout
    assert "other software" in text
    assert "for ever" in text
    shown = program.json("show", "x", "--url", server.url)
    assert shown["remaining"] is None
    assert program("break", "x", "--token", shown["token"], "--url", server.url).returncode == 0
    assert program("show", "x", "--url", server.url).returncode == 1


def test_many_locks_are_all_listed(program: Program, redis_server: RedisServer) -> None:
    with LockManager(redis_server.url) as locks:
        leases = [locks.acquire(f"many:{number}") for number in range(450)]
        found = program.json("ls", "--url", redis_server.url)
        for lease in leases:
            lease.release()
    assert sorted(one["name"] for one in found) == sorted(f"many:{number}" for number in range(450))


def test_who_waits_is_shown_where_the_store_knows(program: Program, url: str, locks: LockManager) -> None:
    with LockManager(url, owner="the waiter") as others, locks.acquire("x") as lease:
        waiter = threading.Thread(target=lambda: others.acquire("x").release())
        waiter.start()
        if url.startswith("memcached"):
            shown = program.json("show", "x", "--url", url)
            assert (shown["waiting"], shown["awaited"]) == (None, None)
        else:
            wait_until(lambda: program.json("show", "x", "--url", url)["awaited"], what="somebody waits")
            waiting = program.json("show", "x", "--url", url)["waiting"]
            if url.startswith("etcd"):
                assert [one["owner"] for one in waiting] == ["the waiter"]
            elif url.startswith("sqlite"):
                assert [one["owner"] for one in waiting] == [f"pid {os.getpid()}"]
                assert waiting[0]["since"] >= 0
            else:
                assert waiting is None  # Redis tells that somebody does, not who
        lease.release()
        waiter.join(20)


def test_redis_knows_since_when(program: Program, redis_server: RedisServer) -> None:
    with LockManager(redis_server.url) as locks, locks.acquire("x"):
        first = program.json("show", "x", "--url", redis_server.url)["held_for"]
        second = program.json("show", "x", "--url", redis_server.url)["held_for"]
    assert 0 <= first < second < 30


def test_other_softwares_lock_is_shown_as_that(program: Program, redis_server: RedisServer) -> None:
    redis_server.command("SET", "x", "theirs")
    words = ["--url", redis_server.url, "--namespace", ""]
    shown = program.json("show", "x", *words)
    assert (shown["owner"], shown["token"], shown["remaining"]) == (None, "theirs", None)
    assert "other software" in program("show", "x", *words).stdout


def test_a_label_cannot_write_to_the_terminal(program: Program, redis_server: RedisServer) -> None:
    with LockManager(redis_server.url, owner="evil\x1b[2J\nname  free") as locks, locks.acquire("x\x1b[31m"):
        for words in (["show", "x\x1b[31m"], ["ls"], ["break", "x\x1b[31m"]):
            done = program(*words, "--url", redis_server.url)
            assert "\x1b" not in done.stdout + done.stderr
            assert "\nname  free" not in done.stdout


def test_watch_looks_again_and_again(program: Program, url: str, locks: LockManager) -> None:
    with locks.acquire("x"):
        words = [] if not url.startswith("memcached") else ["x"]
        done = program("watch", *words, "--url", url, "--interval", "0.05", "--count", "3", "--json")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [[one["name"] for one in look] for look in looks] == [["x"]] * 3


# break


def test_break_needs_the_token_and_says_how(program: Program, url: str, locks: LockManager) -> None:
    lease = locks.acquire("a name", ttl=6)  # of which a busy machine cannot miss a renewal
    done = program("break", "a name", "--url", url)
    assert (done.returncode, done.stdout) == (64, "")
    assert lease
    command = shlex.split(done.stderr.rpartition(": ")[2])
    assert command[:2] == ["atomiclock", "break"]
    assert program(*command[1:]).returncode == 0
    wait_until(lambda: lease.lost, what="the holder is told")
    assert "removed" in str(lease.lost_reason) or "over" in str(lease.lost_reason)
    with LockManager(url) as others:
        others.acquire("a name", timeout=10).release()
    with pytest.raises(LockLost):
        lease.release()


def test_break_breaks_only_the_holder_that_was_looked_at(program: Program, url: str, locks: LockManager) -> None:
    first = locks.acquire("x")
    token = first.token
    first.release()
    with locks.acquire("x") as second:
        done = program("break", "x", "--token", token, "--url", url)
        assert done.returncode == 1
        assert second.token in done.stderr
        assert program.json("show", "x", "--url", url)["token"] == second.token
        second.extend()
        assert program.json("break", "x", "--token", token, "--url", url)["broken"] is False
    assert program("break", "x", "--token", token, "--url", url).returncode == 1
    assert program("break", "x", "--url", url).returncode == 1


def test_who_waited_gets_what_was_broken(program: Program, url: str, locks: LockManager) -> None:
    lease = locks.acquire("x", ttl=30)
    waiter = program.start("run", "x", "--url", url, "--", "echo", "mine")
    if not url.startswith("memcached"):
        wait_until(lambda: program.json("show", "x", "--url", url)["awaited"], what="it waits")
    assert program("break", "x", "--token", lease.token, "--url", url).returncode == 0
    out, _ = waiter.communicate(timeout=20)
    assert (waiter.returncode, out) == (0, "mine\n")
    with pytest.raises(LockLost):
        lease.release()


# The program itself


def test_without_the_extra_it_says_what_to_install(program: Program) -> None:
    code = "import sys; sys.modules['click'] = None; from atomiclock.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ls"], env=program.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'atomiclock[cli]'" in done.stderr


def test_the_library_loads_nothing_of_the_command_line() -> None:
    code = "import sys, atomiclock; atomiclock.LockManager('memory://').acquire('x').release(); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"click", "rich", "opentelemetry", "prometheus_client"} == set()
    assert "atomiclock.cli" not in done.stdout


def test_a_command_loads_no_tables_before_it_runs(program: Program) -> None:
    code = "import sys; from atomiclock.cli._main import run; run(['show', 'x']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=program.environment, capture_output=True, text=True, check=True
    )
    assert "rich.table" not in done.stdout


def test_version_help_and_completion(program: Program) -> None:
    import atomiclock

    assert program("--version").stdout == f"atomiclock {atomiclock.__version__}\n"
    for words in ([], ["run"], ["show"], ["ls"], ["watch"], ["break"], ["doctor"], ["bench"], ["completion"]):
        done = program(*words, "--help")
        assert (done.returncode, done.stderr) == (0, "")
    for shell in ("bash", "zsh", "fish"):
        assert "atomiclock" in program("completion", shell).stdout
    done = program(_ATOMICLOCK_COMPLETE="bash_complete", COMP_WORDS="atomiclock do", COMP_CWORD="1")
    assert "doctor" in done.stdout


def test_who_says_nothing_is_shown_what_there_is_in_lines_of_its_own(program: Program) -> None:
    done = program()
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("Usage: atomiclock [OPTIONS] COMMAND [ARGS]...\n")
    listed = done.stderr.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed][:2] == ["run", "show"]
    assert not [line for line in listed if line.endswith("...")], "each fits"


@pytest.mark.parametrize("form", [["--json"], []])
def test_who_stops_reading_gets_no_traceback(program: Program, form: list[str]) -> None:
    words = shlex.join([*program.words, "watch", "--count", "50", "--interval", "0.05", *form])
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1; echo ${{PIPESTATUS[0]}}"],
        env=program.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    first, code = done.stdout.splitlines()
    assert (first.startswith("[]" if form else "NAME"), code, done.stderr) == (True, "141", "")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_stream_that_is_closed_is_one_that_nobody_reads(program: Program, closed: str) -> None:
    for words in (["show", "x", "--json"], ["ls"], ["doctor"], ["--help"]):
        line = f"{shlex.join([*program.words, *words])} {closed}"
        done = subprocess.run(
            ["sh", "-c", line], env=program.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert "bug" not in done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == (1 if words[0] == "show" else 0), line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", [["show", "x", "--json"], ["--help"], ["doctor"]])
def test_a_full_disk_is_no_bug_of_ours(program: Program, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        process = program.start(*words, stdout=full)
        said = process.communicate(timeout=60)[1]
    assert said == "atomiclock: the output cannot be written: No space left on device\n"
    assert process.returncode == 74


def test_an_interrupt_while_the_program_loads_gets_no_traceback(program: Program, tmp_path: Path) -> None:
    """It loads for longer than most of its work takes, so that is when an impatient Ctrl-C comes."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = f"{tmp_path}{os.pathsep}{program.environment['PYTHONPATH']}"
    done = program("show", "x", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
