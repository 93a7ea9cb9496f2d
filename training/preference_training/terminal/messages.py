"""What commands print: results on stdout, and on stderr one line about each stage they make.

Paths and names are printed as they are: nothing in them is markup.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from preference_core.structure import plain
from preference_training.stages import Stage

notes = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def show_result(result: Any, tables: Iterable[Table], as_json: bool) -> None:
    """Prints a result on stdout: the `tables` that show it, or itself as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(plain(result), indent=1, allow_nan=False) + "\n")
        return
    console = Console(highlight=False, markup=False, emoji=False)
    for table in tables:
        console.print(table)


def make_stage(stage: Stage, make: Callable[[Path], Mapping[str, Any]]) -> None:
    """Makes a stage that is not up to date, and says so."""
    if not is_up_to_date(stage):
        say(stage, stage.run(make))


def is_up_to_date(stage: Stage) -> bool:
    """Whether a stage is up to date; says so if it is."""
    if not stage.is_up_to_date():
        return False
    notes.print(f"{stage.folder}: up to date")
    return True


def say(stage: Stage, details: Mapping[str, Any]) -> None:
    """One line about what a stage made."""
    notes.print(f"{stage.folder}: {', '.join(f'{key} {_short(value)}' for key, value in details.items())}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) else str(value)
