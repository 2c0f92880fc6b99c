"""A lock's name from the arguments of a call: the same in every process, hash seed and Python version."""

from __future__ import annotations

import datetime
import enum
import inspect
import json
import string
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from ._names import digest
from .errors import ConfigurationError

_SCALARS = (str, int, bool, type(None), uuid.UUID, datetime.date, datetime.time, enum.Enum, Decimal)


class Key:
    """Makes names from a function's bound arguments, defaults applied: f(1) and f(x=1) give the same.

    `template` is a format string over the parameters, a callable that is given them by name, or `None` for a
    digest of all of them. `skip` parameters (a bound task's `self`) do not count.
    Raises `ConfigurationError` here for a template that names no parameter, and at the call for a value that has
    no stable form.
    """

    def __init__(self, function: Callable[..., Any], template: str | Callable[..., str] | None) -> None:
        self.signature = inspect.signature(function)
        self.template = template
        self._called = getattr(function, "__qualname__", repr(function))
        if isinstance(template, str):
            self._check(template)
        elif template is not None and not callable(template):
            raise ConfigurationError(f"key is a template such as '{{feed_url}}', a callable, or None, not {template!r}")

    def _check(self, template: str) -> None:
        try:
            used = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise ConfigurationError(f"the key {template!r} is not a format string: {error}") from None
        for field in used:
            if field not in self.signature.parameters:
                raise ConfigurationError(
                    f"the key {template!r} names {field!r}, which is no parameter of "
                    f"{self._called}{self.signature}: use {', '.join(self.signature.parameters) or 'none'}"
                )
            kind = self.signature.parameters[field].kind
            if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                raise ConfigurationError(
                    f"the key {template!r} uses *{field}, which has no one value: use key=callable"
                )

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], skip: frozenset[str] = frozenset()) -> str:
        """The name for a call. `TypeError`, as the call itself would raise, for arguments that do not fit."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {name: value for name, value in bound.arguments.items() if name not in skip}
        if self.template is None:
            return digest(json.dumps(self._plain(values, "its arguments"), sort_keys=True, ensure_ascii=True))
        if isinstance(self.template, str):
            return string.Formatter().vformat(self.template, (), _Texts(self, values))
        name = self.template(**values)
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"the key of {self._called} must be a non-empty str, not {name!r}")
        return name

    def text(self, name: str, value: Any) -> Any:
        """`value` as it may stand in a name."""
        if isinstance(value, enum.Enum):
            return self.text(name, value.value)
        if isinstance(value, _SCALARS):
            return value
        raise self._unstable(name, value)

    def _plain(self, value: Any, where: str) -> Any:
        """`value` in JSON's types, as a broker would deliver it: a tuple is a list there."""
        if isinstance(value, enum.Enum):
            return self._plain(value.value, where)
        if isinstance(value, (str, int, bool, type(None))):
            return value
        if isinstance(value, float):
            return {"float": value.hex()}
        if isinstance(value, (list, tuple)):
            return [self._plain(item, where) for item in value]
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise self._unstable(where, value)
            return {key: self._plain(item, key) for key, item in value.items()}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value).hex()}
        if isinstance(value, _SCALARS):
            return str(value)  # what JSON makes of a UUID, a date or a Decimal
        raise self._unstable(where, value)

    def _unstable(self, where: str, value: Any) -> ConfigurationError:
        return ConfigurationError(
            f"{self._called}: {where} has a {type(value).__qualname__}, which has no form that is the same in every "
            "process: pass a str or number that identifies it, or key=callable"
        )


class _Texts(dict[str, Any]):
    """Looks up parameters for a template, refusing values that have no stable text."""

    def __init__(self, key: Key, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._key = key

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise ConfigurationError(f"the key names {name!r}, which is not counted for a bound task")
        return self._key.text(name, super().__getitem__(name))
