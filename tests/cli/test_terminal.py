"""`atomiclock run` in a terminal, under a real shell with job control."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator

import pytest
from program import Program, Terminal
from servers import wait_until


@pytest.fixture
def shell(program: Program) -> Iterator[Terminal]:
    """An interactive bash, where `lock` is our program."""
    made = program.terminal("bash", "--norc", "--noprofile", "-i")
    made.type("PS1=; PS2=; stty -echo; bind 'set enable-bracketed-paste off' 2>/dev/null; echo be''gun\n")
    made.expect("begun\r\n")
    made.type(f'lock() {{ {shlex.join(program.words)} "$@"; }}\n')
    yield made
    made.type("\nexit\nexit\n")
    made.wait()


def test_the_command_has_the_terminal_and_gives_it_back(shell: Terminal) -> None:
    script = "import os; print('in front:', os.tcgetpgrp(0) == os.getpgrp(), input())"
    shell.type(f'lock run x -- {sys.executable} -c "{script}"; echo code=$?\n')
    shell.type("hello\n")
    shell.expect("in front: True hello\r\n")
    shell.expect("code=0\r\n")
    shell.type("echo sh''ell\n")
    shell.expect("shell\r\n")


def test_a_script_can_read_after_it(program: Program) -> None:
    """A shell without job control, which takes no terminal back by itself."""
    run = shlex.join([*program.words, "run", "x", "--", "sh", "-c", "read line; echo first $line"])
    terminal = program.terminal("sh", "-c", f"{run}; read line; echo second $line")
    terminal.type("one\n")
    terminal.expect("first one")
    terminal.type("two\n")
    terminal.expect("second two")
    assert terminal.wait() == 0


def test_ctrl_c_is_for_the_command(shell: Terminal) -> None:
    shell.type(
        """lock run x -- sh -c 'trap "echo ca""ught; exit 3" INT; echo re""ady; while :; do sleep 0.05; done'\n"""
    )
    shell.expect("ready")
    shell.type("\x03")
    shell.expect("caught")
    shell.type("echo code=$?\n")
    shell.expect("code=3\r\n")


def test_ctrl_c_ends_a_command_and_the_shell_has_the_terminal_again(shell: Terminal) -> None:
    shell.type("lock run x -- sh -c 'echo re\"\"ady; sleep 60'\n")
    shell.expect("ready")
    shell.type("\x03")
    shell.type("\necho code=$?\n")
    shell.expect("code=130\r\n")


def test_ctrl_c_ends_the_script_that_runs_us_too(shell: Terminal, program: Program) -> None:
    script = program.folder / "script.sh"
    script.write_text(f"{shlex.join(program.words)} run x -- sh -c 'echo ready; sleep 60'\necho went on\n")
    shell.type(f"bash {script}\n")
    shell.expect("ready")
    shell.type("\x03")
    shell.type("\necho code=$?\n")
    assert "went on" not in shell.expect("(?s).*code=130\r\n")


def test_ctrl_z_stops_the_job_and_fg_continues_it(shell: Terminal, program: Program) -> None:
    shell.type("lock run x -- sh -c 'echo re\"\"ady; read line; echo got $line; exit 5'\n")
    shell.expect("ready")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.type("echo sh''ell\n")
    shell.expect("shell\r\n")
    assert program("show", "x").returncode == 0
    shell.type("fg\n")
    shell.type("hello\n")
    shell.expect("got hello\r\n")
    shell.type("echo code=$?\n")
    shell.expect("code=5\r\n")


def test_ctrl_z_stops_a_script_that_runs_us_too(shell: Terminal, program: Program) -> None:
    script = program.folder / "script.sh"
    script.write_text(
        f"{shlex.join(program.words)} run x -- sh -c 'echo ready; read line; echo got $line'\necho next\n"
    )
    shell.type(f"bash {script}\n")
    shell.expect("ready")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.type("fg\n")
    shell.type("hello\n")
    shell.expect("got hello\r\nnext\r\n")


def test_what_was_stopped_for_longer_than_its_ttl_does_not_go_on(shell: Terminal, program: Program) -> None:
    shell.type("lock run x --ttl 1 -- sh -c 'echo re\"\"ady; read line; echo went on'\n")
    shell.expect("ready")
    shell.type("\x1a")
    shell.expect("Stopped")
    wait_until(lambda: program("show", "x").returncode == 1, what="its ttl is over")
    shell.type("fg\n")
    assert "went on" not in shell.expect("(?s).*the command was ended\r\n")
    shell.type("echo code=$?\n")
    shell.expect("code=79\r\n")


def test_in_the_background_it_has_no_terminal(shell: Terminal, program: Program) -> None:
    """Who reads from the terminal there is stopped, and reads when it is brought to the front."""
    shell.type("lock run x -- sh -c 'read line; echo got $line' &\n")
    wait_until(lambda: program("show", "x").returncode == 0, what="it has the lock")
    shell.type("sleep 0.3; echo sh''ell\n")
    shell.expect("shell\r\n")
    shell.type("fg\n")
    shell.expect("lock run[^\n]*\n")
    shell.type("hello\n")
    shell.expect("got hello\r\n")


def test_a_signal_that_kills_the_command_leaves_a_terminal_that_echoes(program: Program) -> None:
    """The command switched the echo off and could not switch it on again."""
    script = f"stty sane; {shlex.join(program.words)} run x -- sh -c 'stty -echo; kill -9 $$'; stty -a"
    terminal = program.terminal("sh", "-c", script)
    assert terminal.expect(r"\s-?echo\b").strip() == "echo"
    terminal.wait()


@pytest.mark.parametrize(("variable", "coloured"), [("COLUMNS=80", True), ("NO_COLOR=1", False), ("TERM=dumb", False)])
def test_colours_are_for_terminals_whose_user_wants_them(program: Program, variable: str, coloured: bool) -> None:
    words = [
        *program.words,
        "run",
        "x",
        "--",
        "sh",
        "-c",
        f"{shlex.join(program.words)} ls; {shlex.join(program.words)} show x",
    ]
    terminal = program.terminal("env", variable, *words)
    terminal.wait()
    assert "NAME" in terminal.seen
    assert ("\x1b[" in terminal.seen) == coloured


def test_a_table_is_drawn_again_and_again_on_a_terminal(program: Program) -> None:
    watch = shlex.join([*program.words, "watch", "--interval", "0.1", "--count", "3"])
    terminal = program.terminal(*program.words, "run", "x", "--", "sh", "-c", watch)
    assert terminal.wait() == 0
    assert terminal.seen.count("NAME") >= 3
