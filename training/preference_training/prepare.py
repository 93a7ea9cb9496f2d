"""The commands that come before training: what a recipe trains, how data is split, and a tiny twin of an ensemble."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import Classifier
from preference_core.errors import UserError
from preference_training.battles.split import make_split, split_stage
from preference_training.files import check_input, check_target
from preference_training.members import chosen_members
from preference_training.synthetic.generate import generation_of
from preference_training.synthetic.twin import write_twin
from preference_training.terminal.messages import make_stage, notes, show_result
from preference_training.terminal.options import AsJson, ConfigPath


def register(app: typer.Typer) -> None:
    """Adds the commands of this module to `app`."""
    app.command("parameters")(parameters_command)
    app.command("split")(split_command)
    app.command("twin")(twin_command)


def parameters_command(
    config: ConfigPath,
    member: Annotated[str | None, typer.Option(help="Count this member only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count the parameters that each recipe trains, from the base's shape alone: no weights are needed."""
    from preference_training.fit.parameters import count_parameters

    settings = load_config(config, include_may_be_missing=True)
    chosen = chosen_members(settings, member, Classifier)
    counts = [count_parameters(each, len(settings.labels)) for each in chosen]
    table = Table("member", title=f"{settings.name}: parameters", title_justify="left")
    for heading in ("trainable", "all", "share"):
        table.add_column(heading, justify="right")
    for count in counts:
        share = f"{count.trainable / count.total:.4%}"
        table.add_row(count.member, f"{count.trainable:,}", f"{count.total:,}", share)
    show_result(counts, [table], as_json)


def split_command(config: ConfigPath) -> None:
    """Split the file that `[training.split]` names into training, validation and test battles, by prompt and label."""
    settings = load_config(config, include_may_be_missing=True)
    split = generation_of(settings).split
    if split is None:
        raise UserError(f"`{config}` has nothing to split: it has no `[training.split]`")
    check_input(settings, Path(split.source), "training.split.source")
    make_stage(split_stage(settings, split), lambda folder: make_split(folder, split, settings.labels))


def twin_command(
    config: ConfigPath,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The TOML file to write.")],
) -> None:
    """Write the tiny twin of an ensemble: same members, recipes and combination, on random bases a CPU can train."""
    check_target(out, ".toml", make_folder=True)
    name = write_twin(config, out)
    notes.print(f"{out}: {name}; next: preference-train generate {out}")
