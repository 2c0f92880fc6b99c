"""The commands that look into a store: `show`, `ls`, `watch` and `break`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeVar

import click

from .._url import mask
from ..backends._admin import Seen
from ._codes import NO, OK, USAGE, Fail
from ._show import as_data, colours, console, one_line, sheet, table, warn, write_json
from ._store import Store

F = TypeVar("F", bound=Callable[..., Any])


def in_store(command: F) -> F:
    """The options of every command that looks into a store."""
    command = click.option("--namespace", metavar="TEXT", help='Prefix of the keys ("": none). [default: atomiclock]')(
        command
    )
    return click.option("--url", metavar="URL", help="The store, such as redis://localhost:6379/0.")(command)


as_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")


@contextmanager
def _opened(url: str | None, namespace: str | None) -> Iterator[Store]:
    with closing(Store(url, namespace)) as store:
        store.refuse_memory()
        yield store


@click.command()
@click.argument("name")
@in_store
@as_json
def show(name: str, url: str | None, namespace: str | None, as_json: bool) -> int:
    """Who holds NAME, how long it is left to them, and who waits. Exit code 1 if it is free."""
    with _opened(url, namespace) as store:
        seen = store.seen(name)
    if as_json:
        write_json({"name": name, "held": False} if seen is None else {"held": True, **as_data(seen)})
    elif seen is None:
        click.echo(f"{one_line(name)} is free")
    else:
        for key, text in sheet(seen):
            click.echo(click.style(f"{key:9}", bold=True, reset=True) + one_line(text), color=colours())
    return NO if seen is None else OK


@click.command()
@in_store
@as_json
def ls(url: str | None, namespace: str | None, as_json: bool) -> None:
    """All locks that are held."""
    with _opened(url, namespace) as store:
        locks = store.held()
        place = store.backend.place
    if as_json:
        write_json([as_data(seen) for seen in locks])
    elif locks:
        console().print(table(locks))
    else:
        click.echo(f"no lock is held in {place}", err=True)


@click.command()
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


@click.command("break", short_help="Take NAME away from the holder with TOKEN.")
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
        now = store.seen(name)
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
