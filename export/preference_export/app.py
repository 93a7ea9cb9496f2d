"""The command `preference-export`: stages from configuration to model repository.

Results go to stdout, progress and errors to stderr. What the stages do is in `stages`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from preference_core.artefacts.manifest import hashed_once
from preference_core.command import TRACEBACK_HELP, run_command
from preference_core.ensemble.loading import load_config
from preference_core.errors import ParityError, UserError
from preference_export import stages
from preference_export.run import Run

app = typer.Typer(
    epilog=TRACEBACK_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The ensemble's TOML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and why; make nothing.")]
Unchecked = Annotated[
    bool, typer.Option("--unchecked", help="Serve what could not be compared with the original model here.")
]

Against = Annotated[
    Path | None,
    typer.Option(help="File of your own predictions: `id` and one column of probabilities for each label."),
]
Battles = Annotated[Path | None, typer.Option(help="The battles that were scored; without it, `data.sample`.")]
OneMember = Annotated[str | None, typer.Option("--member", help="This member alone.")]
AFTER_INIT = "Fill in what is left, and compare each line with GUESS with your training script; then"
NOTHING_FOUND = (
    "None of the usual causes explains it (text, special tokens, truncation, order of labels or responses). Compare "
    "the ids of one battle with those of your script: `preference-export check CONFIG` prints an example."
)


@app.callback()
def start(context: typer.Context) -> None:
    """From checkpoints to Triton."""
    context.with_resource(hashed_once())


def main() -> None:
    """Runs the command."""
    run_command(app)


@contextmanager
def started(config: Path, as_json: bool, member: str | None = None) -> Iterator[Run]:
    """A run with the configuration of a file, or one member of it; what it noted is printed when it ends well."""
    settings = load_config(config)
    run = Run(settings if member is None else settings.alone(member), as_json)
    try:
        yield run
    except KeyboardInterrupt as error:
        raise run.interrupted() from error
    run.finish()


@app.command()
def init(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The file to write.")] = Path("ensemble.toml"),
    adapter: Annotated[list[str] | None, typer.Option(help="Folder of an adapter; once for each member.")] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or hub id of the adapters' base: one for all, or one for each. Else as they name it."
        ),
    ] = None,
    sample: Annotated[Path | None, typer.Option(help="File of battles to compare with the original on.")] = None,
) -> None:
    """Write a first CONFIG from what adapters (or bases with a head) say of themselves."""
    from preference_export.initial import write_config

    left = write_config(config, adapter or [], base or [], sample)
    typer.echo(f"init       {config.stem:<16} written: {config.as_posix()}")
    for line in left:
        typer.echo(f"fill in    {line}")
    typer.echo(f"hint: {AFTER_INIT} `preference-export all {config}`.", err=True)


def _add_stage(stage: stages.Stage, about: str) -> None:
    @app.command(stage.__name__, help=about)
    def command(config: ConfigPath, member: OneMember = None, as_json: AsJson = False) -> None:
        with started(config, as_json, member) as run:
            stages.each_member(run, stage)


_add_stage(stages.merge, "Write each member's merged Hugging Face checkpoint to build/NAME/merged.")
_add_stage(stages.calibrate, "Measure the ranges of activations that static INT8 and FP8 need, on the sample battles.")
_add_stage(stages.engine, "Build the TensorRT engine of each exported member that is served by one.")
_add_stage(stages.onnx, "Export each member to ONNX with its tokenizer, unless that is up to date.")


@app.command()
def check(
    config: ConfigPath,
    against: Against = None,
    battles: Battles = None,
    member: OneMember = None,
    as_json: AsJson = False,
) -> None:
    """Compare each exported member with the original model, again, and record the result.

    With --against: compare the exported ensemble with your own predictions instead; exit code 3 where they differ.
    """
    if against is None and battles is not None:
        raise UserError("`--battles` has no meaning without `--against`")
    with started(config, as_json, None if against else member) as run:
        agrees = against is None or stages.compare_with_predictions(run, against, battles, member)
        if against is None:
            stages.each_member(run, stages.check)
    if not agrees:
        typer.echo(f"hint: {run.results[-1].get('cause') or NOTHING_FOUND}", err=True)
        raise typer.Exit(ParityError.exit_code)


@app.command()
def repository(config: ConfigPath, unchecked: Unchecked = False, as_json: AsJson = False) -> None:
    """Assemble the Triton model repository from checked members."""
    with started(config, as_json) as run:
        stages.assemble_repository(run, unchecked)


@app.command(name="all")
def all_command(
    config: ConfigPath,
    member: OneMember = None,
    unchecked: Unchecked = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Calibrate, export, build, check and assemble, as needed; stages whose inputs have not changed are skipped.

    With --member: one member, up to its check; no repository is assembled.
    """
    if not dry_run:
        with started(config, as_json, member) as run:
            stages.all_stages(run, unchecked, assemble=member is None)
        return
    settings = load_config(config, include_may_be_missing=True)
    run = Run(settings if member is None else settings.alone(member), as_json, done="to be made")
    try:
        stages.describe(run)
        load_config(config)  # what the run would refuse: weights that are not fitted yet
        stages.dry_run(run, unchecked, assemble=member is None)
    finally:
        run.finish()


@app.command()
def rollback(config: ConfigPath, as_json: AsJson = False) -> None:
    """Put the repository before the last change back in place (a second time: forward again)."""
    with started(config, as_json) as run:
        stages.roll_back(run)


@app.command()
def sources(
    config: ConfigPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")],
    as_json: AsJson = False,
) -> None:
    """Write the repository's configurations and programs only, without engines."""
    with started(config, as_json) as run:
        stages.write_sources(run, output)


if __name__ == "__main__":
    main()
