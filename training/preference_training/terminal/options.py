"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The ensemble's TOML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
