"""Turns tables (parsed TOML or JSON) into frozen dataclasses, strictly.

Unknown keys, missing keys and wrong types are errors that name the key, the value and what was expected. It knows
nothing of what the dataclasses mean; they check their own values in `__post_init__` by raising `ConfigError`.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from preference_core.errors import ConfigError, UserError, nearest, shortened

T = TypeVar("T")


def key_of(field: "dataclasses.Field[Any]") -> str:
    """The key of a field in the file: its name, unless its metadata says otherwise (`{"key": "member"}`)."""
    return str(field.metadata.get("key", field.name))


def structure(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Builds the dataclass `kind` from a table. `where` is the dotted path shown in errors."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{_at(where)} is {_show(table)}, expected a table")
    hints = get_type_hints(kind)
    fields = {key_of(f): f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise ConfigError(f"Unknown key `{_join(where, key)}`", hint=nearest(key, fields))
    values = {}
    for key, field in fields.items():
        if key in table:
            values[field.name] = _value(hints[field.name], table[key], _join(where, key))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"`{_join(where, key)}` is missing")
    try:
        return kind(**values)
    except UserError as error:
        raise ConfigError(f"{_at(where)}: {error.message}" if where else error.message, error.hint) from error


def plain(value: Any) -> Any:
    """The inverse of `structure`: dataclasses and tuples as dicts and lists, ready for JSON. None is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((key_of(f), getattr(value, f.name)) for f in dataclasses.fields(value))
        return {key: plain(v) for key, v in pairs if v is not None}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def at_least(key: str, value: float, least: float) -> None:
    """Raises `ConfigError` unless `value` is finite and not below `least`."""
    if not math.isfinite(value) or value < least:
        raise ConfigError(f"`{key}` is {value}, expected at least {least}")


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        lists = [kind for kind in kinds if get_origin(kind) is tuple]
        tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if len(tables) > 1:
            return _of_its_kind(tables, value, where)
        chosen = lists if isinstance(value, list) else tables if isinstance(value, Mapping) else []
        return _value((chosen or kinds)[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{_at(where)} is {_show(value)}", hint=nearest(str(value), map(str, arguments)))
        return value
    if dataclasses.is_dataclass(hint):
        return structure(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{_at(where)} is {_show(value)}, expected a list")
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{_at(where)} is {_show(value)}, expected a table")
        return {str(k): _value(arguments[1], v, _join(where, str(k))) for k, v in value.items()}
    return _scalar(hint, value, where)


def _of_its_kind(classes: Sequence[Any], table: Any, where: str) -> Any:
    """One of several dataclasses: the one that has the `kind` of the table, or the first where it names none."""
    kinds = {each.kind: each for each in classes}
    if not isinstance(table, Mapping):
        return structure(classes[0], table, where)
    named = table.get("kind", classes[0].kind)
    if named not in tuple(kinds):
        raise ConfigError(f"{_at(_join(where, 'kind'))} is {_show(named)}", hint=nearest(str(named), kinds))
    keys = {each: set(map(key_of, dataclasses.fields(each))) for each in classes}
    for key in table:
        if key in set().union(*keys.values()) - keys[kinds[named]]:
            raise ConfigError(f"`{_join(where, key)}` has no meaning for the kind `{named}`", hint="Remove it.")
    return structure(kinds[named], table, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise ConfigError(f"{_at(where)} is {_show(value)}, expected {names.get(hint, hint.__name__)}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _at(where: str) -> str:
    return f"`{where}`" if where else "The configuration"


def _show(value: Any) -> str:
    return f"`{shortened(repr(value))}`"
