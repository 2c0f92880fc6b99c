"""`celery -A proj locks`: what is held, by whom, and how to end it. Celery finds it by its entry point."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import click

from .._api import manager_for
from .._manager import LockManager
from .._process import clock
from ..backends import Holder, Unknown
from ..errors import LockError
from ._names import within
from ._rules import Rules, of_configuration
from ._task import locks_of

T = TypeVar("T")
Store = tuple[LockManager, "str | None"]
"""Where to look, and under which namespace."""

in_store = click.option("--url", help="The store to look in, instead of those of the tasks and of the configuration.")
as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(name="locks")
def locks() -> None:
    """Locks of tasks."""


@locks.command("ls")
@click.option("--timeout", default=2.0, show_default=True, help="Seconds that workers have to answer.")
@as_json
@click.pass_context
def list_(context: click.Context, timeout: float, as_json: bool) -> None:
    """What the tasks of all workers that answer hold now. The exit code is 1 if one of them does not know."""
    answers = _app(context).control.inspect(timeout=timeout)._request("atomiclock_locks")
    if not answers:
        raise click.ClickException(f"no worker has answered within {timeout:g} s")
    silent = {worker: held["error"] for worker, held in sorted(answers.items()) if isinstance(held, dict)}
    for worker, error in silent.items():
        click.echo(f"{worker}: {error}", err=True)
    known = sorted(set(answers) - set(silent))
    rows = [{"worker": worker, **row} for worker in known for row in answers[worker]]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        _print(rows)
    if silent:
        context.exit(1)
    if not rows and not as_json:
        click.echo(f"nothing is held ({len(answers)} workers have answered)", err=True)


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        click.echo(f"{row['name']}  {row['task']}[{row['id']}]  {row['worker']} pid {row['pid']}")


@locks.command()
@click.argument("name")
@in_store
@as_json
@click.pass_context
def show(context: click.Context, name: str, url: str | None, as_json: bool) -> None:
    """Who has the lock NAME, such as import_feed:https://example.org/rss. The exit code is 1 if nobody has."""
    found = next(_held(_stores(_app(context), name, url), name), None)
    if found is None:
        click.echo("null" if as_json else f"nobody has {name}", err=not as_json)
        context.exit(1)
    (manager, _), holder = found
    place = manager._core.backend.place
    if as_json:
        click.echo(json.dumps({**holder._asdict(), "store": place}))
        return
    left = "for ever" if holder.remaining is None else f"for {holder.remaining:.1f} s unless it is renewed"
    who = holder.owner or "other software"
    click.echo(f"{name}: {who}, {left}, fence {holder.fence}, token {holder.token}, in {place}")


@locks.command("break")
@click.argument("name")
@click.option("--token", help="Only if this is the holder's token, as `show` prints it.")
@click.option("--force", is_flag=True, help="Whoever has it.")
@in_store
@click.pass_context
def break_(context: click.Context, name: str, token: str | None, force: bool, url: str | None) -> None:
    """End the lock NAME of a holder that is known to be dead. A living one learns of it at its next renewal."""
    if (token is None) is not force:
        raise click.UsageError("say --token TOKEN, or --force")
    (manager, namespace), holder = _meant(_held(_stores(_app(context), name, url), name), name, token)
    hold = manager._adopt(name, holder.token, within(namespace))
    if not _try(lambda: manager._remove_token(hold, clock() + manager._core.terms.bound)):
        raise click.ClickException(f"{name} has just changed hands, and was left alone")
    click.echo(f"{name} is free; {holder.owner or 'other software'} had it")


def _meant(held: Iterator[tuple[Store, Holder]], name: str, token: str | None) -> tuple[Store, Holder]:
    """The one that has the token, or the only one."""
    found = []
    for each in held:
        if token == each[1].token:
            return each
        found.append(each)
    if not found:
        raise click.ClickException(f"nobody has {name}")
    if token is not None:
        raise click.ClickException(f"{name} has another token by now, and was left alone")
    if len(found) > 1:
        places = " and ".join(manager._core.backend.place for (manager, _), _ in found)
        raise click.ClickException(f"{name} is held in {places}, and was left alone: say which by --url or --token")
    return found[0]


def _app(context: click.Context) -> Any:
    return context.obj.app


def _stores(app: Any, name: str, url: str | None) -> list[Store]:
    """Where the lock `name` may be: in the store of the task that it is named for, the usual one, and any other's."""
    usual = Rules().with_(of_configuration(app.conf), "Celery's setting atomiclock_")
    if url is not None:
        return [(_try(partial(manager_for, url)), usual.namespace)]
    _try(app.loader.import_default_modules)
    locks = [(task.name, lock) for task in app.tasks.values() for lock in locks_of(task)]
    known = [(task, lock.shared, lock.rules(app.conf, None)) for task, lock in locks]
    own = [rules for task, shared, rules in known if not shared and name.startswith(f"{task}:")]
    places = [(rules.url, rules.namespace) for rules in (*own, usual, *(rules for _, _, rules in known))]
    return [(_try(partial(manager_for, each)), namespace) for each, namespace in dict.fromkeys(places)]


def _held(stores: list[Store], name: str) -> Iterator[tuple[Store, Holder]]:
    """The stores that have it, with who holds it. "Nobody" is only said when each of them has answered."""
    error: Exception | None = None
    for manager, namespace in stores:
        try:
            holder = manager.holder(name, **within(namespace))
        except (LockError, Unknown) as trouble:
            error = trouble
            continue
        if holder is not None:
            yield (manager, namespace), holder
    if error is not None:
        raise click.ClickException(str(error)) from error


def _try(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except (LockError, Unknown) as error:
        raise click.ClickException(str(error)) from error
