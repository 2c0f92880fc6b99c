"""`celery -A proj locks`: what is held, by whom, and how to end it. Celery finds it by its entry point."""

from __future__ import annotations

import json
from typing import Any

import click

from .._api import manager_for
from .._manager import LockManager
from .._process import clock
from ..backends import Unknown
from ..errors import LockError
from ._rules import Rules, of_configuration

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
@as_json
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """Who has the lock NAME, such as import_feed:https://example.org/rss. The exit code is 1 if nobody has."""
    manager, namespace = _store(context)
    holder = _try(lambda: manager.holder(name, namespace=namespace))
    if as_json:
        click.echo(json.dumps(None if holder is None else holder._asdict()))
    elif holder is None:
        click.echo(f"nobody has {name}", err=True)
    else:
        left = "for ever" if holder.remaining is None else f"for {holder.remaining:.1f} s unless it is renewed"
        click.echo(f"{name}: {holder.owner or 'other software'}, {left}, fence {holder.fence}, token {holder.token}")
    context.exit(0 if holder is not None else 1)


@locks.command("break")
@click.argument("name")
@click.option("--token", help="Only if this is the holder's token, as `show` prints it.")
@click.option("--force", is_flag=True, help="Whoever has it.")
@click.pass_context
def break_(context: click.Context, name: str, token: str | None, force: bool) -> None:
    """End the lock NAME of a holder that is known to be dead. A living one learns of it at its next renewal."""
    if (token is None) is not force:
        raise click.UsageError("say --token TOKEN, or --force")
    manager, namespace = _store(context)
    holder = _try(lambda: manager.holder(name, namespace=namespace))
    if holder is None:
        raise click.ClickException(f"nobody has {name}")
    if token is not None and token != holder.token:
        raise click.ClickException(f"{name} has another token by now, and was left alone")
    given: dict[str, Any] = {} if namespace is None else {"namespace": namespace}
    hold = manager._adopt(name, holder.token, given)
    if not _try(lambda: manager._remove_token(hold, clock() + manager._core.terms.bound)):
        raise click.ClickException(f"{name} has just changed hands, and was left alone")
    click.echo(f"{name} is free; {holder.owner or 'other software'} had it")


def _app(context: click.Context) -> Any:
    return context.obj.app


def _store(context: click.Context) -> tuple[LockManager, str | None]:
    rules = Rules().with_(of_configuration(_app(context).conf), "Celery's setting atomiclock_")
    return manager_for(rules.url), rules.namespace


def _try(ask: Any) -> Any:
    try:
        return ask()
    except (LockError, Unknown) as error:
        raise click.ClickException(str(error)) from error
