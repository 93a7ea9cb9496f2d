"""Writes docs/configuration.md from the dataclasses that configurations are read into; `make docs` runs it.

What a key means stands once, as a `#:` comment at its field (behind it, or in the lines above). Units come from the
ends of names.
"""

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from preference_core.ensemble.settings import Classifier, Config, LengthBaseline
from preference_core.structure import key_of
from preference_training.fit.recipe import Recipe
from preference_training.synthetic.generate import Generation

OUTPUT = Path(__file__).with_name("configuration.md")

INTRODUCTION = """# Configuration

Written by `make docs` from the code; a test fails when it is stale.

One TOML file describes one ensemble. Unknown keys are errors, and relative paths start at the working directory. The
files in [configs/](../configs) are complete examples. A key without a default is required; a default `-` means that
the key is absent.
"""

#: Plain tables in core that only training reads.
ONLY_TRAINING = {(Classifier, "training"): Recipe, (Config, "training"): Generation}
#: A key that the loader takes out before anything else sees it.
INCLUDE = (
    "| `include` | text | - | | a file with further keys of `[combine]`, relative to this one; "
    "`preference-train weights` writes it |"
)

SCALARS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
UNITS = {
    "_tokens": "tokens",
    "_bytes": "bytes",
    "_mebibytes": "MiB",
    "_microseconds": "µs",
    "_milliseconds": "ms",
    "_turns": "turns",
    "_battles": "battles",
    "_ratio": "share",
    "_probability": "share",
    "dropout": "share",
    "label_smoothing": "share",
    "batch_size": "battles",
    "max_queue_size": "battles",
    "max_positions": "tokens",
    "sliding_window": "tokens",
}


@dataclass(frozen=True)
class Table:
    """A table of the file, and the dataclass that it is read into."""

    path: str
    kind: type


def tables(table: Table) -> Iterator[Table]:
    """`table` and all below it, in the order of their keys."""
    yield table
    hints = get_type_hints(table.kind)
    for entry in fields(table.kind):
        for kind in kinds_of(hints[entry.name], table.kind, entry.name):
            yield from tables(Table(path_below(table, entry, kind, hints[entry.name]), kind))


def kinds_of(hint: Any, owner: type, name: str) -> list[type]:
    """The dataclasses that a field may hold."""
    if (owner, name) in ONLY_TRAINING:
        return [ONLY_TRAINING[owner, name]]
    if is_dataclass(hint):
        return [hint]
    return [kind for argument in get_args(hint) for kind in kinds_of(argument, owner, name)]


def path_below(table: Table, entry: "Field[Any]", kind: type, hint: Any) -> str:
    """`[[member]]`, `[member.truncation]`, ...; members of the second kind say so."""
    above = table.path.partition(" with ")[0].strip("[]")
    name = f"{above}.{key_of(entry)}" if above else key_of(entry)
    if get_origin(hint) is tuple:
        return f"[[{name}]]" + (' with `kind = "length_buckets"`' if kind is LengthBaseline else "")
    is_by_name = get_origin(hint) is Mapping and (table.kind, entry.name) not in ONLY_TRAINING
    return f"[{name}.NAME]" if is_by_name else f"[{name}]"


def meanings(kind: type) -> dict[str, str]:
    """What each field means, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        source = dedent(inspect.getsource(each))
        lines = source.splitlines()
        (tree,) = ast.parse(source).body
        assert isinstance(tree, ast.ClassDef)
        for node in tree.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno is not None:
                found[node.target.id] = _comment(lines, node.lineno - 1, node.end_lineno - 1, node.end_col_offset or 0)
    return found


def _comment(lines: list[str], first: int, last: int, column: int) -> str:
    behind = re.fullmatch(r"\s*#: (.*)", lines[last].encode()[column:].decode())
    if behind:
        return behind[1]
    above: list[str] = []
    while (comment := re.fullmatch(r"\s*#: (.*)", lines[first - 1])) is not None:
        above.insert(0, comment[1])
        first -= 1
    return " ".join(above)


def type_of(hint: Any) -> str:
    """A type as a reader of TOML knows it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_of(kind) for kind in arguments if kind is not types.NoneType))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {type_of(arguments[0])}s"
    if origin is Mapping:
        return "table" if arguments[1] is Any else f"table of {type_of(arguments[1]).partition(' ')[0]}s"
    return "table" if is_dataclass(hint) else SCALARS[hint]


def default_of(entry: "Field[Any]") -> str:
    """A default as TOML has it; nothing where a key is required."""
    if entry.default_factory is not MISSING:
        return "-"
    if entry.default is MISSING:
        return ""
    if entry.default in (None, (), ""):
        return "-"
    return f"`{_toml(entry.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\n", "\\n") + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


def unit_of(entry: "Field[Any]", hint: Any) -> str:
    """The unit that the end of a number's name tells."""
    is_number = {int, float} & {hint, *get_args(hint)}
    return next((unit for end, unit in UNITS.items() if is_number and entry.name.endswith(end)), "")


def section(table: Table) -> str:
    """One table of the file as Markdown."""
    hints, texts = get_type_hints(table.kind), meanings(table.kind)
    heading, _, condition = table.path.partition(" with ")
    summary = (inspect.getdoc(table.kind) or "").partition("\n\n")[0].replace("\n", " ")
    lines = [f"## {f'`{heading}`' if heading else 'Top level'}{f' with {condition}' if condition else ''}", "", summary]
    lines += ["", "| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    for entry in fields(table.kind):
        if not texts.get(entry.name):
            raise SystemExit(f"error: `{table.kind.__name__}.{entry.name}` has no `#:` comment that says what it means")
        cells = (type_of(hints[entry.name]), default_of(entry), unit_of(entry, hints[entry.name]), texts[entry.name])
        lines.append(f"| `{key_of(entry)}` | " + " | ".join(cells) + " |")
    if heading == "[combine]":
        lines.append(INCLUDE)
    return "\n".join(lines) + "\n"


def text() -> str:
    """The whole page."""
    return re.sub(" {2,}\\|", " |", "\n".join([INTRODUCTION, *dict.fromkeys(map(section, tables(Table("", Config))))]))


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{OUTPUT}: written\n")
