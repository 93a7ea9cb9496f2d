"""The text of small configurations: what a test does not name has a value that fits."""

import json
from collections.abc import Mapping
from typing import Any


def classifier_member(name: str, **keys: Any) -> str:
    """A `[[member]]`; a table among the keys (`training`) becomes one of the member's."""
    base = {
        "name": name,
        "base": f"bases/{name}",
        "template": name,
        "special_tokens": "template",
        "max_tokens": 96,
    }
    return _tables("[member]", base | keys)


def length_buckets_member(folder: str) -> str:
    """The length baseline as a member."""
    return _tables("[member]", {"name": "length", "kind": "length_buckets", "base": folder})


def configuration(*members: str, name: str = "small", **tables: Any) -> str:
    """A configuration of some members; the other keywords are further keys and tables of the file."""
    keys = {key: value for key, value in tables.items() if not isinstance(value, Mapping)}
    below = "".join(_tables(key, value) for key, value in tables.items() if isinstance(value, Mapping))
    return _lines({"name": name} | keys) + "\n" + "\n".join(members) + "\n" + below


def _tables(path: str, keys: Mapping[str, Any]) -> str:
    """A table and those in it, one level deep."""
    flat = {key: value for key, value in keys.items() if not isinstance(value, Mapping)}
    deep = {key: value for key, value in keys.items() if isinstance(value, Mapping)}
    inner = path.strip("[]")
    return f"[{path}]\n{_lines(flat)}" + "".join(f"[{inner}.{key}]\n{_lines(value)}" for key, value in deep.items())


def _lines(keys: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in keys.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
