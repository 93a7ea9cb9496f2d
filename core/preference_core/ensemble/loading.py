"""Reads a configuration file, and the file that it includes: each is parsed once."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preference_core.ensemble.settings import Config
from preference_core.errors import ConfigError
from preference_core.structure import structure

_INCLUDED = ", which `combine.include` names", "`preference-train weights CONFIG` writes it."


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file as it stands: its table is not checked yet.

    `[combine] include = "weights.toml"` (relative to the file itself) takes the keys of `[combine]` from another file.
    """

    path: Path
    table: Mapping[str, Any]

    @property
    def included(self) -> Path | None:
        """The file that `[combine] include` names, whether it exists or not."""
        name = self._combine.get("include")
        return None if name is None else self.path.parent / str(name)

    @property
    def own_keys(self) -> frozenset[str]:
        """The keys that `[combine]` gives itself, and does not take from the included file."""
        return frozenset(self._combine) - {"include"}

    def config(self, *, include_may_be_missing: bool = False) -> Config:
        """The checked configuration. `include_may_be_missing` is for what runs before that file can be written."""
        table = dict(self.table)
        if self.included is not None:
            missing = include_may_be_missing and not self.included.exists()
            extra = {} if missing else _toml(self.included, *_INCLUDED)
            both = sorted(self.own_keys & extra.keys())
            if both:
                raise ConfigError(f"{self.path}: `combine.{both[0]}` is given here and in {self.included}")
            table["combine"] = {key: value for key, value in self._combine.items() if key != "include"} | extra
        try:
            return structure(Config, table)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error.message}", error.hint) from error

    @property
    def _combine(self) -> Mapping[str, Any]:
        combine = self.table.get("combine")
        return combine if isinstance(combine, dict) else {}


def read_config_file(path: str | Path) -> ConfigFile:
    """The configuration file at `path`. Relative paths in it are relative to the working directory."""
    return ConfigFile(Path(path), _toml(Path(path)))


def load_config(path: str | Path, *, include_may_be_missing: bool = False) -> Config:
    """The checked configuration of a file; see `ConfigFile.config`."""
    return read_config_file(path).config(include_may_be_missing=include_may_be_missing)


def _toml(path: Path, named_by: str = "", hint: str | None = None) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file `{path}`{named_by}", hint) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read: {error}") from error
