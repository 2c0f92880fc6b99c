"""The commands and their options. Every error ends as one line on stderr and a code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeVar

import click

from .. import __version__
from .._options import configured_url
from .._url import mask
from ..backends._admin import CannotList, Seen
from ..errors import LockError
from ._codes import BUSY, INTERNAL, NO, OK, SIGNAL, USAGE, Fail, code_of, next_step
from ._show import as_data, colours, console, one_line, seconds, sheet, table, warn, write_json
from ._store import Store

F = TypeVar("F", bound=Callable[..., Any])

MARKS = {"ok": "ok  ", "note": "note", "warn": "WARN", "bad": "BAD "}
COLOURS = {"ok": "green", "note": "cyan", "warn": "yellow", "bad": "red"}


def run(words: Sequence[str]) -> int:
    """The exit code of the command line `words`."""
    logging.getLogger("atomiclock").addHandler(logging.NullHandler())  # what matters is said here in one line
    try:
        code = app.main(list(words), prog_name="atomiclock", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "atomiclock"
        warn(f"{error.format_message()} Try: {path} --help")
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
        if os.environ.get("ATOMICLOCK_DEBUG"):
            raise
        warn(f"a bug: {type(error).__name__}: {error}; please report what ATOMICLOCK_DEBUG=1 shows")
        return INTERNAL


class Commands(click.Group):
    """Ours, but for a pipe that nobody reads any more: click would make 1 of it, which means something here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `| head`: who reads has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return SIGNAL + 13


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, message="atomiclock %(version)s")
def app() -> None:
    """Locks on the command line: for cron, deploys, and to see who holds what.

    The store is --url, else the environment's ATOMICLOCK_URL, else sqlite:// (this user's on this machine).
    """


def in_store(command: F) -> F:
    """The options of every command that looks into a store."""
    command = click.option("--namespace", metavar="TEXT", help='Prefix of the keys ("": none). [default: atomiclock]')(
        command
    )
    return click.option("--url", metavar="URL", help="The store, such as redis://localhost:6379/0.")(command)


as_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")


@app.command("run")
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
    "--busy-code", type=click.IntRange(0, 255), default=BUSY, show_default=True, help="Exit code if it is not free."
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
        warn(f"{error}{next_step(error).replace('NAME', shlex.quote(name))}")
        return int(busy_code)


@contextmanager
def _opened(url: str | None, namespace: str | None) -> Any:
    with closing(Store(url, namespace)) as store:
        store.refuse_memory()
        yield store


@app.command()
@click.argument("name")
@in_store
@as_json
def show(name: str, url: str | None, namespace: str | None, as_json: bool) -> int:
    """Who holds NAME, how long it is left to them, and who waits. Exit code 1 if it is free."""
    with _opened(url, namespace) as store:
        seen: Seen | None = store.seen(name)
    if as_json:
        write_json({"name": name, "held": False} if seen is None else {"held": True, **as_data(seen)})
    elif seen is None:
        click.echo(f"{one_line(name)} is free")
    else:
        for key, text in sheet(seen):
            click.echo(click.style(f"{key:9}", bold=True, reset=True) + one_line(text), color=colours())
    return NO if seen is None else OK


@app.command()
@in_store
@as_json
def ls(url: str | None, namespace: str | None, as_json: bool) -> None:
    """All locks that are held."""
    with _opened(url, namespace) as store:
        locks: list[Seen] = store.held()
        place = store.backend.place
    if as_json:
        write_json([as_data(seen) for seen in locks])
    elif locks:
        console().print(table(locks))
    else:
        click.echo(f"no lock is held in {place}", err=True)


@app.command()
@click.argument("names", nargs=-1)
@in_store
@as_json
@click.option("--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks. [default: Ctrl-C]")
def watch(
    names: Sequence[str], url: str | None, namespace: str | None, as_json: bool, interval: float, count: int | None
) -> None:
    """All locks that are held, or those of NAMES, again and again."""
    with _opened(url, namespace) as store, ExitStack() as after:
        show = _write_lines if as_json else _painter(after)
        _look_again_and_again(store, names, interval, count, show)


def _painter(after: ExitStack) -> Callable[[list[Seen]], None]:
    """What shows a table: on a terminal in the place of the one before."""
    printer = console()
    if not sys.stdout.isatty():
        return lambda locks: printer.print(table(locks))
    from rich.live import Live

    live = after.enter_context(Live(console=printer, auto_refresh=False))
    return lambda locks: live.update(table(locks), refresh=True)


def _look_again_and_again(
    store: Store, names: Sequence[str], interval: float, count: int | None, show: Callable[[list[Seen]], None]
) -> None:
    looks = 0
    while True:
        found = [store.seen(name) for name in names] if names else store.held()
        show([seen for seen in found if seen is not None])
        looks += 1
        if looks == count:
            return
        time.sleep(interval)


def _write_lines(locks: list[Seen]) -> None:
    write_json([as_data(seen) for seen in locks])


@app.command("break")
@click.argument("name")
@click.option("--token", metavar="TOKEN", help="Of the holder that you looked at: nobody else loses the lock.")
@in_store
@as_json
def break_lock(name: str, token: str | None, url: str | None, namespace: str | None, as_json: bool) -> int:
    """Take NAME away from the holder with TOKEN, whom `atomiclock show NAME` tells.

    The holder learns of it at its next renewal, and goes on until then: make sure that it is dead, or that its work
    may be done twice. Exit code 1 if TOKEN does not hold it.
    """
    with _opened(url, namespace) as store:
        if token is None:
            raise Fail(*_without_token(store, name, url, namespace))
        broken = store.remove(name, token)
        now: Seen | None = store.seen(name)
    if as_json:
        write_json({"name": name, "broken": broken, "holder": None if now is None else as_data(now)})
    elif broken:
        click.echo(
            f"{one_line(name)} was taken away from {one_line(token)}" + ("" if now is None else _next_holder(now))
        )
    else:
        warn(
            f"{token} does not hold {name!r}: "
            + ("nobody does" if now is None else f"{_who(now)} does")
            + "; look again"
        )
    return OK if broken else NO


def _without_token(store: Store, name: str, url: str | None, namespace: str | None) -> tuple[str, int]:
    seen = store.seen(name)
    if seen is None:
        return f"{name!r} is free: there is nothing to break", NO
    words = ["atomiclock", "break", *([name] if not name.startswith("-") else []), "--token", seen.holder.token]
    words += [] if url is None else ["--url", mask(url)]
    words += [] if namespace is None else ["--namespace", namespace]
    words += [] if not name.startswith("-") else ["--", name]
    return f"{_who(seen)} holds {name!r}. To take it away from that holder: {shlex.join(words)}", USAGE


def _who(seen: Seen) -> str:
    return f"{seen.holder.owner or 'other software'} (token {seen.holder.token})"


def _next_holder(seen: Seen) -> str:
    return one_line(f"; {_who(seen)} holds it now")


@app.command()
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


@app.command()
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
    click.echo(f"{place}, {seconds(duration)} each")
    click.echo(
        f"free        {alone['cycles_per_second']:>10} cycles/s   p50 {alone['p50_ms']} ms   p95 {alone['p95_ms']} ms"
        f"   p99 {alone['p99_ms']} ms"
    )
    click.echo(
        f"contended   {together['cycles_per_second']:>10} cycles/s   {threads} threads, each from {together['least']}"
        f" to {together['most']} times"
    )


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """What completes these commands in SHELL. For bash: eval "$(atomiclock completion bash)"."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise Fail(f"this click completes nothing in {shell}: use bash, zsh or fish", USAGE)
    click.echo(made(app, {}, "atomiclock", "_ATOMICLOCK_COMPLETE").source())
