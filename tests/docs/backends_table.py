"""The tables of backends in README.md and docs/urls.md, made from what each backend declares.

`python tests/docs/backends_table.py` prints them; with `--write` they go into the pages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from atomiclock import Traits
from atomiclock._options import IN_URL
from atomiclock._registry import ROWS
from atomiclock._url import URL, parse

ROOT = Path(__file__).parents[2]

SCOPES = {
    "process": "threads and tasks of one process",
    "machine": "processes of one machine",
    "network": "all clients of one server",
}
FENCES = {
    "none": "none",
    "process": "grows until the process ends",
    "clock": "grows, even if the server loses its data, while its clock does not go back",
    "durable": "grows for ever",
}
WAITS = {"wake": "woken by the release", "poll": "asks again and again"}

CULLING = "the cache's own `clear()` and culling"
SHAPES = {
    "memory": "memory:// memory://NAME",
    "sqlite": "sqlite:// sqlite:///relative.db sqlite:////absolute.db",
    "redis": "redis://[user:password@]host[:6379][/0]",
    "redis+unix": "redis+unix:///path[?db=0]",
    "memcached": "memcached://host[:11211]",
    "memcached+unix": "memcached+unix:///path",
    "etcd": "etcd://[user:password@]host:2379[,host:2379]",
    "django": "django://ALIAS",
}
"""How a URL looks: the one thing that no code says. `rediss` looks as `redis` does, and so on."""
LIKE = {"rediss": "redis", "valkey": "redis", "valkeys": "redis", "etcds": "etcd"}


def backends() -> Iterator[tuple[list[str], str | None, Any]]:
    """The schemes, the extra and the class of each backend."""
    schemes: dict[str, list[str]] = {}
    for scheme, row in ROWS.items():
        schemes.setdefault(row.path, []).append(scheme)
    for path, names in schemes.items():
        module, _, backend = path.partition(":")
        yield names, ROWS[names[0]].extra, getattr(import_module(module), backend)


def overview() -> str:
    """One row for each backend."""
    lines = ["| URL | excludes | fence | what loses the lock |", "|---|---|---|---|"]
    for names, _, backend in backends():
        traits: Traits = backend.traits
        urls = " ".join(f"`{name}://`" for name in names)
        if names == ["django"]:  # its traits are those of each cache; the class has the weakest
            lines.append(f"| {urls} | as the store behind the cache | as there | as there; {CULLING} |")
            continue
        lines.append(f"| {urls} | {SCOPES[traits.scope]} | {FENCES[traits.fence]} | {traits.loses} |")
    return "\n".join(lines) + "\n"


def urls() -> str:
    """One row for each backend: how its URLs look, its own options, and what to install."""
    lines = ["| URL | options of its own | install |", "|---|---|---|"]
    for names, extra, backend in backends():
        shapes = [SHAPES.get(name) or SHAPES[LIKE[name]].replace(LIKE[name], name, 1) for name in names]
        looks = "<br>".join(f"`{one}`" for shape in shapes for one in shape.split())
        own = " ".join(f"`{option}`" for option in sorted({*chain(*(options(backend, name) for name in names))}))
        install = f"`atomiclock[{extra}]`" if extra else "nothing more"
        lines.append(f"| {looks} | {own or 'none'} | {install} |")
    return "\n".join(lines) + "\n"


class _Asked(Exception):
    pass


class _Asking(URL):
    """A URL that wants to know which options the backend takes from it."""

    def take(self, **known: Any) -> NoReturn:
        raise _Asked(*known)


def options(backend: Any, scheme: str) -> list[str]:
    """The options that a URL of `scheme` may have beside those of every lock."""
    host = {"memory": "", "sqlite": "", "django": "default"}.get(scheme, "/sock" if "unix" in scheme else "host:1234")
    url = parse(f"{scheme}://{host}")
    try:
        backend.from_url(_Asking(*url))
    except _Asked as asked:
        return sorted(asked.args)
    raise TypeError(f"{scheme}:// looks at no options")


def promises() -> str:
    """One row for each trait, one column for each backend."""
    columns = [(names[0], backend.traits) for names, _, backend in backends() if names != ["django"]]
    columns = list(dict(columns).items())
    rows: list[tuple[str, Callable[[Traits], str]]] = [
        ("excludes", lambda traits: SCOPES[traits.scope]),
        ("fence", lambda traits: FENCES[traits.fence]),
        ("a waiter", lambda traits: WAITS[traits.waits]),
        ("a held lock survives a restart of the store", lambda traits: traits.survives_restart),
        (
            "the store counts a `ttl` in steps of",
            lambda traits: f"{traits.ttl_step:g} s" if traits.ttl_step else "none",
        ),
        ("longest `ttl`", lambda traits: f"{traits.longest_ttl / 86_400:.0f} days"),
        ("what loses the lock", lambda traits: traits.loses),
    ]
    lines = ["| | " + " | ".join(f"`{name}://`" for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join([label, *(show(traits) for _, traits in columns)]) + " |" for label, show in rows]
    return "\n".join(lines) + "\n"


def common() -> str:
    """The options of every URL."""
    return f"Every URL may also set {', '.join(f'`{option}`' for option in IN_URL)}.\n"


PLACES: list[tuple[Path, str, Callable[[], str]]] = [
    (ROOT / "README.md", "backends", overview),
    (ROOT / "docs" / "urls.md", "urls", urls),
    (ROOT / "docs" / "urls.md", "common options", common),
    (ROOT / "docs" / "urls.md", "promises", promises),
]


def parts(page: Path, mark: str) -> tuple[str, str, str]:
    """What `page` has before the marked table, the table, and what is after it."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    body, end, tail = rest.partition(f"<!-- end of {mark} -->\n")
    if not (begin and end):
        raise ValueError(f"{page} has no <!-- {mark} --> ... <!-- end of {mark} -->")
    return head + begin, body, end + tail


if __name__ == "__main__":
    for page, mark, made in PLACES:
        sys.stdout.write(made() + "\n")
        if "--write" in sys.argv:
            head, _, tail = parts(page, mark)
            page.write_text(head + made() + tail, encoding="utf-8")
