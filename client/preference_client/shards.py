"""The command `preference-score-shards`: a folder of battles in, a folder of predictions out, on the workers of Ray.

Each shard is one run of `preference-score` with a journal of its own, so a worker that dies costs no row. A finished
shard is not scored again while its input, its options and the served ensemble are the same. Only `_on_ray` knows Ray.
"""

import io
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from preference_client.app import EXIT_SOME_FAILED, ensemble_of, options_of
from preference_client.app import app as score_app
from preference_core.artefacts.manifest import sha256_of
from preference_core.command import TRACEBACK_HELP, run_command
from preference_core.errors import PreferenceError, SystemFailure, UserError, escape_control_characters
from preference_core.files.rows import format_of
from preference_core.structure import plain

DONE = ".preference-shards"
#: Of a worker that dies: every retry goes on after the rows that are kept.
MAX_RETRIES = 20
CONNECT_TIMEOUT_S = 5.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Shard:
    """One file of battles, and where its predictions go."""

    battles: Path
    output: Path

    @property
    def note(self) -> Path:
        """What is kept of it once it is done."""
        return self.output.parent / DONE / f"{self.output.name}.json"

    def arguments(self, options: Sequence[str]) -> list[str]:
        """What `preference-score` is given to score it."""
        return [str(self.battles), "--output", str(self.output), "--json", *options]


def main() -> None:
    """Runs the command."""
    run_command(app)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=f"Exit codes: 0 every row was scored. 1 a shard is not finished. 2 something given is wrong. 3 some rows "
    f"failed. The same command goes on from there. {TRACEBACK_HELP}",
)
def score_shards(
    context: typer.Context,
    battles: Annotated[Path, typer.Argument(help="Folder of CSV, TSV, JSON Lines or Parquet files.", metavar="FOLDER")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the predictions; every worker must see it.")
    ],
    ray: Annotated[str, typer.Option(help="Address of a running Ray; `auto` finds the one of this machine.")] = "auto",
    cpus: Annotated[float, typer.Option(help="Processors that Ray reserves for a shard under way.")] = 0.5,
) -> None:
    """Scores every file of a folder on the workers of a running Ray, each as `preference-score` does.

    All other options are handed to it: `--url` (as the workers reach the server), `--symmetric`, `--weights` and so on.
    """
    shards = shards_of(battles, output)
    options_of(shards[0].arguments(context.args))
    output.joinpath(DONE).mkdir(parents=True, exist_ok=True)
    failed_rows = unfinished = 0
    answered: dict[str, Shard] = {}
    for shard, result in _on_ray(shards, context.args, ray, cpus):
        failed_rows += result.get("failed", 0)
        unfinished += "error" in result
        answered.setdefault(str(result.get("ensemble")), shard)
        said = result.get("error") or f"{result['scored']:,} rows scored, {result['failed']:,} failed{result['note']}"
        sys.stdout.write(escape_control_characters(f"{shard.output}: {said}") + "\n")
    if unfinished:
        raise SystemFailure(f"{unfinished} of {len(shards)} shards are not finished", hint="The same command goes on.")
    if len(answered) > 1:
        one, other, *_ = (f"`{shard.output}`" for shard in answered.values())
        raise SystemFailure(
            f"{one} and {other} were answered by different ensembles", hint="Remove those of the old one."
        )
    raise typer.Exit(EXIT_SOME_FAILED if failed_rows else 0)


def shards_of(battles: Path, output: Path) -> list[Shard]:
    """The files of battles in a folder, by name; predictions of Parquet are Parquet, of anything else CSV.

    Names that begin with a dot or an underline are not battles. Raises `UserError` for a file of another kind.
    """
    battles, output = battles.resolve(), output.resolve()
    if not battles.is_dir():
        raise UserError(f"`{battles}` is not a folder", hint="`preference-score` scores a single file.")
    if output == battles:
        raise UserError("Battles and predictions are the same folder", hint="Choose another one for `--output`.")
    shards: dict[Path, Shard] = {}
    for path in sorted(path for path in battles.iterdir() if path.is_file() and path.name[0] not in "._"):
        suffix = ".parquet" if format_of(str(path)) == "parquet" else ".csv"
        target = output / f"{path.name.partition('.')[0]}{suffix}"
        if target in shards:
            raise UserError(f"`{shards[target].battles.name}` and `{path.name}` would both be written to `{target}`")
        shards[target] = Shard(path, target)
    if not shards:
        raise UserError(f"`{battles}` holds no files of battles", hint="Expected .csv, .tsv, .jsonl or .parquet.")
    return list(shards.values())


def score_shard(shard: Shard, options: Sequence[str], folder: str) -> dict[str, Any]:
    """Scores one shard in this process, unless that was done: the summary of `preference-score`, or its `error`.

    Relative paths among the options count from `folder`.
    """
    try:
        said = io.StringIO()
        line = shard.arguments(options)
        with chdir(folder), redirect_stdout(said):
            served = plain(ensemble_of(options_of(line)))
            run = {"options": list(options), "battles": sha256_of(shard.battles), "ensemble": served}
            if (done := _done(shard, run)) is not None:
                return done | {"note": ", up to date"}
            score_app(line, standalone_mode=False)
        summary: dict[str, Any] = json.loads(said.getvalue())
        note = {"run": run, "predictions": sha256_of(shard.output), "summary": summary}
        shard.note.write_text(json.dumps(note), encoding="utf-8")
    except PreferenceError as error:
        return {"error": f"{error.message} {error.hint or ''}".strip()}
    except (OSError, click.ClickException) as error:
        return {"error": str(error)}
    return summary | {"note": ""}


def _done(shard: Shard, run: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        note = json.loads(shard.note.read_text(encoding="utf-8"))
        is_same = note["run"] == run and note["predictions"] == sha256_of(shard.output)
    except (OSError, ValueError, KeyError, PreferenceError):
        return None
    return dict(note["summary"]) if is_same else None


def _on_ray(
    shards: Sequence[Shard], options: Sequence[str], address: str, cpus: float
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """The result of each shard, in the order in which they end."""
    try:
        import ray  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemFailure("Ray is not installed", hint="Install `preference-client[ray]`.") from error
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit():  # Ray itself tries for minutes.
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        ray.init(address=address, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemFailure(f"No Ray answers at `{address}`: {error}", hint="Start one: `ray start --head`.") from error
    try:
        remote = ray.remote(num_cpus=cpus, max_retries=MAX_RETRIES)(score_shard)
        under_way = {remote.remote(shard, list(options), os.getcwd()): shard for shard in shards}
        while under_way:
            (ended, *_), _ = ray.wait(list(under_way))
            shard = under_way.pop(ended)
            try:
                yield shard, ray.get(ended)
            except ray.exceptions.RayError as error:
                yield shard, {"error": str(error)}
    finally:
        ray.shutdown()
