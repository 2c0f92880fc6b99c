"""`atomiclock run`: what becomes of the command, of signals and of the lock."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from program import Program, is_running
from servers import RedisServer, free_port, wait_until

from atomiclock import LockManager

BEARS_TERM = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
CHILD_BEARS_TERM = f"sh -c {shlex.quote('echo $$; ' + BEARS_TERM)}"


def numbers_in(program: Program, process: subprocess.Popen[str], lines: int) -> list[int]:
    """The pids among its first lines, whose groups are killed after the test at the latest."""
    said = [first_line(process) for _ in range(lines)]
    pids = [int(line) for line in said if line != "ready"]
    program.groups += [os.getpgid(pid) for pid in pids]
    return pids


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 75", 75),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("kill -INT $$", 130),
    ],
)
def test_the_exit_code_is_the_commands(program: Program, script: str, code: int) -> None:
    done = program("run", "x", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (code, "")
    assert program("show", "x").returncode == 1  # free


def test_no_shell_comes_between(program: Program) -> None:
    words = ["$HOME", "*", "a b", ";", "--ttl", "-x", "--"]
    done = program("run", "x", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
    assert done.stdout == f"{words}\n"


def test_the_command_is_told_of_its_lock(program: Program, redis_server: RedisServer) -> None:
    show = [*program.words, "show", "a b", "--url", redis_server.url, "--json"]
    environ = "import os, json; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('ATOMIC')}))"
    script = f'{sys.executable} -c "{environ}"; exec "$@"'
    done = program("run", "a b", "--url", redis_server.url, "--", "sh", "-c", script, "sh", *show)
    told, shown = (json.loads(line) for line in done.stdout.splitlines())
    assert told == {
        "ATOMICLOCK_NAME": "a b",
        "ATOMICLOCK_TOKEN": shown["token"],
        "ATOMICLOCK_FENCE": str(shown["fence"]),
    }
    assert shown["owner"].endswith(":sh")


@pytest.mark.parametrize(
    ("command", "code"), [("no-such-command", 127), ("./no/such", 127), ("./data", 126), ("./", 126)]
)
def test_what_cannot_be_run_is_said_without_waiting_for_the_lock(program: Program, command: str, code: int) -> None:
    (program.folder / "data").write_text("x")
    with _held(program, "x"):
        done = program("run", "x", "--", command)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert command in done.stderr


def test_a_script_without_an_interpreter_cannot_be_run(program: Program) -> None:
    script = program.folder / "script"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    done = program("run", "x", "--", "./script")
    assert (done.returncode, done.stderr.count("\n")) == (126, 1)
    assert program("show", "x").returncode == 1


class _held:  # noqa: N801  # used as a word
    """The lock is held by another command meanwhile."""

    def __init__(self, program: Program, name: str) -> None:
        self._process = program.start("run", name, "--", "sh", "-c", "echo ready; sleep 60")
        assert first_line(self._process) == "ready"

    def __enter__(self) -> subprocess.Popen[str]:
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(10) == 143


def test_an_option_of_the_command_without_the_dashes_is_told_where_it_belongs(program: Program) -> None:
    done = program("run", "x", "ls", "-a")
    assert done.returncode == 64
    assert "'-a'. Those of the command come after `--`." in done.stderr
    assert "`--`" not in program("show", "x", "-a").stderr


def test_a_lock_that_is_busy_has_codes_of_its_own(program: Program) -> None:
    with _held(program, "x"):
        for words, code in [(["--no-wait"], 75), (["--timeout", "0.2"], 75), (["--no-wait", "--busy-code", "3"], 3)]:
            done = program("run", "x", *words, "--", "touch", "ran")
            assert done.returncode == code
            assert done.stderr.count("\n") == 1
            assert ":sh" in done.stderr
            assert ("without --no-wait it waits" if "--no-wait" in words else "a longer --timeout") in done.stderr
        done = program("run", "x", "--no-wait", "--busy-code", "0", "--", "touch", "ran")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "cron sends by mail what is said"
    assert not (program.folder / "ran").exists()


def test_who_waits_gets_it_when_it_is_released(program: Program) -> None:
    with _held(program, "x"):
        waiter = program.start("run", "x", "--", "echo", "mine")
        wait_until(lambda: program.json("show", "x")["waiting"], what="it waits")
    assert first_line(waiter) == "mine"
    assert waiter.wait(10) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["run", "x"],
        ["run", "x", "--no-wait", "--timeout", "3", "--", "true"],
        ["run", "x", "--ttl", "-1", "--", "true"],
        ["run", "x", "--ttl", "soon", "--", "true"],
        ["run", "x", "--url", "redsi://localhost", "--", "true"],
        ["run", "x", "--url", "memory://", "--", "true"],
        ["run", "", "--", "true"],
        ["run", "x", "--on-lost", "cry", "--", "true"],
        ["rum"],
        ["ls", "--url", "memory://"],
    ],
)
def test_wrong_use_is_one_line_and_64(program: Program, words: list[str]) -> None:
    done = program(*words)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("atomiclock: ")
    assert done.stderr.count("\n") == 1


def test_a_store_that_is_not_there_is_69_and_its_password_is_not_shown(program: Program) -> None:
    url = f"redis://:geheim@127.0.0.1:{free_port()}/0?io_timeout=0.3"
    for words in (
        ["run", "x", "--no-wait", "--url", url, "--", "touch", "ran"],
        ["show", "x", "--url", url],
        ["doctor", url],
    ):
        done = program(*words)
        assert done.returncode == 69
        assert done.stderr.count("\n") == 1
        assert "geheim" not in done.stdout + done.stderr
    assert not (program.folder / "ran").exists()


def test_signals_are_passed_on_to_the_commands_group(program: Program) -> None:
    names = ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"]
    numbers = {int(getattr(signal, f"SIG{name}")) for name in names}
    script = (  # waits for them, since a shell may miss one that comes between two commands
        f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {numbers}); print('ready', flush=True)\n"
        f"while True: print(signal.Signals(signal.sigwait({numbers})).name[3:], flush=True)"
    )
    process = program.start("run", "x", "--", sys.executable, "-c", script)
    assert first_line(process) == "ready"
    for name in names:
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert first_line(process) == name
    process.kill()


def test_a_signal_that_was_ignored_stays_ignored(program: Program) -> None:
    script = "trap '' HUP; exec \"$@\""
    words = ["sh", "-c", script, "sh", *program.words, "run", "x", "--", "sh", "-c", "echo ready; sleep 0.5; echo end"]
    process = subprocess.Popen(words, env=program.environment, stdout=subprocess.PIPE, text=True)
    assert first_line(process) == "ready"
    process.send_signal(signal.SIGHUP)
    assert first_line(process) == "end"
    assert process.wait(10) == 0
    process.communicate()


@pytest.mark.parametrize("closed", ["0<&-", "0<&- 1>&- 2>&-", "2>&-"])
def test_closed_standard_streams_do_no_harm(program: Program, closed: str) -> None:
    """A pipe of ours that was given the number of one of them would be closed as such."""
    words = shlex.join([*program.words, "run", "x", "--", "sh", "-c", "sleep 0.3; echo done >ran; exit 3"])
    done = subprocess.run(
        ["sh", "-c", f"{words} {closed}"], env=program.environment, cwd=program.folder, timeout=20, check=False
    )
    assert done.returncode == 3
    assert (program.folder / "ran").read_text() == "done\n"


def test_who_ignores_its_children_gets_the_code_all_the_same(program: Program) -> None:
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", code, *program.words, "run", "x", "--", "sh", "-c", "exit 5"]
    done = subprocess.run(words, env=program.environment, cwd=program.folder, timeout=20, check=False)
    assert done.returncode == 5


def test_a_stop_from_outside_stops_both_and_goes_on(program: Program) -> None:
    process = program.start("run", "x", "--", "sh", "-c", "echo $$; read x; sleep 0.2; exit 4", stdin=subprocess.PIPE)
    pid = int(first_line(process))

    def state(one: int) -> str:
        return Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0]

    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state(pid) == "T", what="the command is stopped")
    assert state(process.pid) != "T"  # its lock goes on to be renewed
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: state(pid) != "T", what="the command goes on")
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    assert process.wait(10) == 4


# The lock is lost


def lose(server: RedisServer, name: str) -> None:
    assert server.command("DEL", f"atomiclock:{name}") == "1"


def test_a_command_whose_lock_is_lost_is_told_to_end(program: Program, redis_server: RedisServer) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    process = program.start("run", "x", "--url", redis_server.url, "--ttl", "1", "--", "sh", "-c", script)
    assert first_line(process) == "ready"
    lose(redis_server, "x")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (79, "bye\n")
    assert "was lost" in err.splitlines()[-1]  # after what the shell has to say


@pytest.mark.parametrize("words", [["--grace", "0.3"], ["--on-lost", "kill"]])
def test_one_that_does_not_end_is_killed_with_all_its_children(
    program: Program, redis_server: RedisServer, words: list[str]
) -> None:
    script = f"trap '' TERM; {CHILD_BEARS_TERM} & {BEARS_TERM}"
    process = program.start("run", "x", "--url", redis_server.url, "--ttl", "1", *words, "--", "sh", "-c", script)
    (grandchild,) = numbers_in(program, process, 3)
    lose(redis_server, "x")
    assert process.wait(20) == 79
    wait_until(lambda: not is_running(grandchild), what="the grandchild is gone")


def test_what_its_leader_left_behind_gets_the_grace_and_not_more(program: Program, redis_server: RedisServer) -> None:
    script = f"{CHILD_BEARS_TERM} & sleep 60"
    process = program.start(
        "run", "x", "--url", redis_server.url, "--ttl", "1", "--grace", "0.3", "--", "sh", "-c", script
    )
    (grandchild,) = numbers_in(program, process, 2)
    lose(redis_server, "x")
    assert process.wait(20) == 79
    wait_until(lambda: not is_running(grandchild), what="the grandchild is gone")


def test_with_ignore_the_command_runs_on(program: Program, redis_server: RedisServer) -> None:
    script = "echo ready; read x; exit 3"
    words = ["--url", redis_server.url, "--ttl", "1", "--on-lost", "ignore", "--", "sh", "-c", script]
    process = program.start("run", "x", *words, stdin=subprocess.PIPE)
    assert first_line(process) == "ready"
    with LockManager(redis_server.url) as locks:
        lose(redis_server, "x")
        with locks.acquire("x", ttl=30):
            wait_until(lambda: process.poll() is None, what="it is there")
            _, err = process.communicate("\n", timeout=20)
    assert process.returncode == 3
    assert "--on-lost=ignore" in err


def test_max_hold_ends_the_command(program: Program) -> None:
    done = program("run", "x", "--ttl", "0.6", "--max-hold", "0.3", "--", "sleep", "60")
    assert done.returncode == 79
    assert "max_hold" in done.stderr


# We are killed


@pytest.mark.parametrize("watcher", ["lives", "is killed too"])
def test_nothing_is_left_when_we_are_killed(program: Program, watcher: str) -> None:
    """The watcher kills the whole group. Without it the kernel kills the command, if not its children."""
    script = f"{CHILD_BEARS_TERM} & echo $$; {BEARS_TERM}"
    process = program.start("run", "x", "--", "sh", "-c", script)
    pids = numbers_in(program, process, 4)
    assert all(is_running(pid) for pid in pids)
    leader = next(pid for pid in pids if os.getpgid(pid) == pid)
    if watcher != "lives":
        pids = [leader]
        for one in children_of(process.pid) - {leader}:
            os.kill(one, signal.SIGKILL)
    process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids), what="the command and its child are gone")
    assert process.stdout is not None
    if watcher == "lives":
        process.communicate(timeout=10)  # nobody keeps the pipes open
    else:
        os.killpg(leader, signal.SIGKILL)
    assert program("run", "x", "--no-wait", "--", "true").returncode == 0  # free at once: sqlite sees who is dead


def children_of(pid: int) -> set[int]:
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_the_lock_of_one_that_was_killed_ends_with_its_ttl(program: Program, redis_server: RedisServer) -> None:
    process = program.start("run", "x", "--url", redis_server.url, "--ttl", "1", "--", "sh", "-c", "echo $$; sleep 60")
    pid = int(first_line(process))
    process.kill()
    wait_until(lambda: not is_running(pid), what="the command is gone")
    assert program("run", "x", "--url", redis_server.url, "--timeout", "10", "--", "true").returncode == 0


def test_one_that_is_killed_while_it_waits_never_runs_its_command(program: Program) -> None:
    with _held(program, "x"):
        waiter = program.start("run", "x", "--", "touch", "ran")
        wait_until(lambda: program.json("show", "x")["waiting"], what="it waits")
        left = children_of(waiter.pid)
        waiter.kill()
        waiter.wait()
        wait_until(lambda: not any(is_running(pid) for pid in left), what="its processes are gone")
    assert len(left) == 2
    assert not (program.folder / "ran").exists()


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_while_it_waits_ends_it_and_leaves_nothing(
    program: Program, redis_server: RedisServer, name: str
) -> None:
    with LockManager(redis_server.url) as locks, locks.acquire("x"):
        waiter = program.start("run", "x", "--url", redis_server.url, "--", "touch", "ran")
        wait_until(lambda: program.json("show", "x", "--url", redis_server.url)["awaited"], what="it waits")
        number = getattr(signal, f"SIG{name}")
        waiter.send_signal(number)
        _, err = waiter.communicate(timeout=20)
    assert (waiter.returncode, err) == (128 + number, "")
    assert not (program.folder / "ran").exists()
    with LockManager(redis_server.url) as locks:
        locks.acquire("x", timeout=0).release()
