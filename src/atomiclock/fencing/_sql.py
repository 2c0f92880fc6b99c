"""Guards for SQL, over any DB-API 2.0 driver (PEP 249)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigurationError
from ._number import Fenced, Number, number_of

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)
_MARKS = {"qmark": "?", "numeric": ":{0}", "named": ":{1}", "format": "%s", "pyformat": "%({1})s"}


def fence_predicate(
    fence: int | Fenced, *, column: str = "fence", paramstyle: str = "qmark", position: int = 1
) -> tuple[str, Sequence[int] | Mapping[str, int]]:
    """A condition for your own UPDATE, and its parameters: the row has seen no later fence.

    The statement has to set `column` to the fence as well, and it was refused if its `rowcount` is 0 although the row
    is there. `paramstyle` is the driver's; "named" and "pyformat" call the parameter `fence`, and `position` is its
    number for "numeric". A NULL in the column is a row that nobody has guarded yet.

    >>> fence_predicate(7)
    ('(fence IS NULL OR fence <= ?)', (7,))
    """
    value = number_of(fence).value
    mark = _mark(paramstyle, position, "fence")
    predicate = f"({_name(column)} IS NULL OR {column} <= {mark})"
    return predicate, {"fence": value} if paramstyle in ("named", "pyformat") else (value,)


def fenced_update(
    cursor: Any,
    table: str,
    values: Mapping[str, Any],
    where: Mapping[str, Any],
    *,
    fence: int | Fenced,
    column: str = "fence",
    paramstyle: str = "qmark",
) -> bool:
    """Update the one row of `table` that `where` names, unless it has seen a later fence: then raise `StaleFence`.

    `values` and `where` map columns to values. False if there is no such row: insert it, with the fence in `column`,
    and let a unique key decide who is first; who is second calls this again. The row's fence is compared and set in the
    UPDATE itself. Nothing is committed. Names of tables and columns are plain ones, since they cannot be parameters.

    The driver's `rowcount` has to count the rows that were found. MySQL's counts those that changed, unless connected
    with CLIENT.FOUND_ROWS: without it a second, equal write is refused.
    """
    number = number_of(fence)
    marks = _Marks(paramstyle)
    assigned = ", ".join(
        f"{_name(key)} = {marks.next(value)}" for key, value in {**values, column: number.value}.items()
    )
    named = " AND ".join(f"{_name(key)} = {marks.next(value)}" for key, value in where.items())
    if not where or column in values:
        raise ConfigurationError(f"say which row in where=, and leave {column!r} out of the values: the guard sets it")
    allowed = f"({_name(column)} IS NULL OR {column} <= {marks.next(number.value)})"
    update = f"UPDATE {_name(table)} SET {assigned} WHERE {named} AND {allowed}"  # noqa: S608  # names were checked
    cursor.execute(update, marks.params)
    if cursor.rowcount > 0:
        return True
    if cursor.rowcount < 0:
        raise ConfigurationError("this driver does not tell how many rows an UPDATE found, so it cannot be guarded")
    seen = _Look(table, column, where, paramstyle)
    if not seen.at(cursor):
        return False
    if seen.fence is None or seen.fence <= number.value:  # it was inserted in between
        cursor.execute(update, marks.params)
        if cursor.rowcount > 0:
            return True
    raise _stale(number, table, where, seen.fence)


class _Look:
    """What fence a row has."""

    def __init__(self, table: str, column: str, where: Mapping[str, Any], paramstyle: str) -> None:
        self._marks = _Marks(paramstyle)
        named = " AND ".join(f"{key} = {self._marks.next(value)}" for key, value in where.items())
        self._select = f"SELECT {column} FROM {table} WHERE {named}"  # noqa: S608  # names were checked
        self.fence: int | None = None

    def at(self, cursor: Any) -> bool:
        """Whether the row is there."""
        cursor.execute(self._select, self._marks.params)
        found = cursor.fetchone()
        self.fence = None if found is None or found[0] is None else int(found[0])
        return found is not None


class _Marks:
    """Placeholders of one statement, in order, and the parameters for them."""

    def __init__(self, paramstyle: str) -> None:
        self._style = paramstyle
        self._values: list[Any] = []

    def next(self, value: Any) -> str:
        self._values.append(value)
        return _mark(self._style, len(self._values), f"p{len(self._values)}")

    @property
    def params(self) -> Any:
        if self._style in ("named", "pyformat"):
            return {f"p{number}": value for number, value in enumerate(self._values, 1)}
        return tuple(self._values)


def _mark(paramstyle: str, position: int, name: str) -> str:
    if paramstyle not in _MARKS:
        raise ConfigurationError(f"paramstyle is one of {', '.join(_MARKS)}, as PEP 249 has them, not {paramstyle!r}")
    return _MARKS[paramstyle].format(position, name)


def _name(text: str) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise ConfigurationError(f"{text!r} is no plain name of a table or column")
    return text


def _stale(number: Number, table: str, where: Mapping[str, Any], seen: int | None) -> Exception:
    row = ", ".join(f"{key}={value!r}" for key, value in where.items())[:200]
    return number.stale(f"{table} ({row})", seen if seen is not None and seen > number.value else None)
