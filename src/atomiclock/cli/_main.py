"""The commands and their options. Every error ends as one line on stderr and a code."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import click

from .. import __version__
from .._options import configured_url
from .._url import mask
from ..backends._admin import CannotList
from ..errors import LockError
from ._codes import BUSY, INTERNAL, NO, OK, OUTPUT, SIGNAL, USAGE, Fail, code_of, next_step
from ._look import as_json, break_lock, in_store, ls, show, watch
from ._show import colours, one_line, seconds, warn, write_json
from ._store import Store

MARKS = {"ok": "ok  ", "note": "note", "warn": "WARN", "bad": "BAD "}
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
COLOURS = {"ok": "green", "note": "cyan", "warn": "yellow", "bad": "red"}


def run(words: Sequence[str]) -> int:
    """The exit code of the command line `words`."""
    _fill_closed_streams()
    logging.getLogger("atomiclock").addHandler(logging.NullHandler())  # what matters is said here in one line
    try:
        code = app.main(list(words), prog_name="atomiclock", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "atomiclock"
        foreign = path.endswith(" run") and isinstance(error, click.NoSuchOption)
        where = " Those of the command come after `--`." if foreign else ""
        warn(f"{error.format_message()}{where} Try: {path} --help")
        return USAGE
    except (LockError, CannotList) as error:
        warn(f"{str(error).rstrip('.')}{next_step(error)}")
        return code_of(error)
    except Fail as error:
        warn(str(error))
        return error.code
    except (KeyboardInterrupt, click.Abort):
        return SIGNAL + 2
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in UNWRITABLE:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would try to write it once more
            warn(f"the output cannot be written: {error.strerror}")
            return OUTPUT
        if os.environ.get("ATOMICLOCK_DEBUG"):
            raise
        warn(f"a bug: {type(error).__name__}: {error}; please report what ATOMICLOCK_DEBUG=1 shows")
        return INTERNAL


def _fill_closed_streams() -> None:
    """Have nobody mind a standard stream that is closed, and no file or connection of ours taken for one."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # not inheritable: a command that is run finds it closed again
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


class Commands(click.Group):
    """Ours, in their order. A pipe that nobody reads any more is not 1, as with click: that means something here."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `| head`: who reads has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return SIGNAL + 13


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(__version__, message="atomiclock %(version)s")
@click.pass_context
def app(context: click.Context) -> int | None:
    """Locks on the command line: for cron, deploys, and to see who holds what.

    The store is --url, else the environment's ATOMICLOCK_URL, else sqlite:// (this user's on this machine).
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        return USAGE
    return None


@app.command("run", short_help="Run COMMAND while holding the lock NAME.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@in_store
@click.option("--ttl", type=float, metavar="SECONDS", help="How long a dead holder blocks the others. [default: 30]")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long to wait for it. [default: for ever]")
@click.option("--no-wait", is_flag=True, help="Do not wait: the same as --timeout 0.")
@click.option("--max-hold", type=float, metavar="SECONDS", help="End the command after this time at the latest.")
@click.option("--owner", metavar="TEXT", help="What others are shown as the holder. [default: host:pid:command]")
@click.option(
    "--on-lost",
    type=click.Choice(["term", "kill", "ignore"]),
    default="term",
    show_default=True,
    help="What becomes of the command when its lock is lost.",
)
@click.option(
    "--grace", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds from SIGTERM to SIGKILL."
)
@click.option(
    "--busy-code",
    type=click.IntRange(0, 255),
    default=BUSY,
    show_default=True,
    help="Exit code if it is not free; with 0 nothing is said.",
)
def run_command(name: str, command: Sequence[str], **options: Any) -> int:
    """Run COMMAND while holding the lock NAME: atomiclock run NAME -- COMMAND ARGS...

    Its exit code is that of COMMAND (128 + N if signal N killed it). Else: 64 wrong use, 69 the store does not
    answer, 75 the lock is busy, 79 the lock was lost, 126 COMMAND cannot be run, 127 there is no such command.
    """
    from ._run import Job, run

    if options.pop("no_wait"):
        if options["timeout"] not in (None, 0.0):
            raise click.UsageError("--no-wait and --timeout contradict each other.")
        options["timeout"] = 0.0
    url, on_lost, grace, busy_code = (options.pop(key) for key in ("url", "on_lost", "grace", "busy_code"))
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return run(Job(name, command, url, given, on_lost, grace))
    except LockError as error:
        if code_of(error) != BUSY:
            raise
        if busy_code:  # else it is as it should be, and cron would send it by mail
            hint = next_step(error, waited=options["timeout"] != 0.0)
            warn(f"{error}{hint.replace('NAME', shlex.quote(name))}")
        return int(busy_code)


for command in (show, ls, watch, break_lock):
    app.add_command(command)


@app.command(short_help="Whether the store URL is fit for locks.")
@click.argument("url", required=False)
@as_json
def doctor(url: str | None, as_json: bool) -> int:
    """Whether the store URL is fit for locks: its speed, its settings, its promises, and a self-test.

    Takes a few seconds. Exit code 1 if something is bad.
    """
    from ._doctor import examine

    found = []
    with closing(Store(url)) as store:
        if not as_json:
            click.echo(f"{store.backend.place}")
        for finding in examine(store):
            found.append(finding)
            if not as_json:
                mark = click.style(MARKS[finding.level], fg=COLOURS[finding.level])
                advice = f" -> {finding.advice}" if finding.advice else ""
                click.echo(f"{mark}  {one_line(finding.text + advice)}", color=colours())
    bad = any(finding.level == "bad" for finding in found)
    if as_json:
        findings = [finding._asdict() for finding in found]
        write_json({"url": mask(url or configured_url()), "fit": not bad, "findings": findings})
    return NO if bad else OK


@app.command(short_help="How fast the store URL is from here.")
@click.argument("url", required=False)
@as_json
@click.option("--seconds", "duration", type=click.FloatRange(min=0.05), default=2.0, show_default=True)
@click.option("--threads", type=click.IntRange(2, 64), default=4, show_default=True)
def bench(url: str | None, as_json: bool, duration: float, threads: int) -> None:
    """How fast the store URL is from here, with locks that are free and with one that is contended."""
    from ._bench import contended, free

    with closing(Store(url)) as store:
        place = store.backend.place
        alone, together = free(store.manager, duration), contended(store.manager, duration, threads)
    if as_json:
        write_json({"place": place, "free": alone, "contended": together})
        return
    each, shared = (f"{taken['cycles_per_second']:>10,.0f} cycles/s" for taken in (alone, together))
    click.echo(f"{place}, {seconds(duration)} each")
    click.echo(f"free        {each}   p50 {alone['p50_ms']} ms   p95 {alone['p95_ms']} ms   p99 {alone['p99_ms']} ms")
    click.echo(f"contended   {shared}   {threads} threads, each from {together['least']} to {together['most']} times")


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """What completes these commands in SHELL. For bash: eval "$(atomiclock completion bash)"."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise Fail(f"this click completes nothing in {shell}: use bash, zsh or fish", USAGE)
    click.echo(made(app, {}, "atomiclock", "_ATOMICLOCK_COMPLETE").source())
