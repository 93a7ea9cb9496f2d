"""The command `preference-train`: generate battles and tiny bases, fit adapters, and measure (see `measure`).

Results go to files or stdout, progress and notes to stderr. What the commands do is in the other modules; modules that
need torch are imported only when there is work for them, so that everything else starts at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from preference_core.battles.lengths import read_buckets
from preference_core.command import TRACEBACK_HELP, run_command
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import Classifier, Config, LengthBaseline
from preference_core.errors import UserError
from preference_training import measure, prepare
from preference_training.battles.baseline import baseline_stage, make_baseline
from preference_training.files import check_input, check_training_inputs
from preference_training.fit.adapter import adapter_stage, train_file
from preference_training.fit.recipe import recipe_of
from preference_training.members import chosen_members
from preference_training.synthetic.generate import (
    base_stage,
    battles_stage,
    generation_of,
    has_ties,
    make_base,
    make_battles,
    make_source,
)
from preference_training.terminal.messages import is_up_to_date, make_stage, say
from preference_training.terminal.options import ConfigPath
from preference_training.terminal.progress_bars import bars

app = typer.Typer(
    help="From battles to adapters, weights and reports.",
    epilog=TRACEBACK_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Runs the command."""
    run_command(app)


@app.command("generate")
def generate_command(config: ConfigPath) -> None:
    """Write the battles and tiny bases that `[training]` asks for, where they are not up to date.

    With `[training.split]`, the battles become one file, which `split` then splits.
    """
    settings = load_config(config, include_may_be_missing=True)
    generation = generation_of(settings)
    battles = generation.battles
    if battles is None:
        raise UserError(f"`{config}` asks for nothing to generate: it has no `[training.battles]`")
    to_be_split = generation.split is not None
    make = make_source if to_be_split else make_battles
    stage = battles_stage(settings, battles, to_be_split=to_be_split)
    make_stage(stage, lambda folder: make(folder, battles, has_ties(settings)))
    for member in chosen_members(settings, None, Classifier):
        base = generation.tiny.get(member.name)
        if base is not None:
            stage = base_stage(settings, member, base, battles)
            make_stage(stage, lambda folder, member=member, base=base: make_base(folder, member, base, battles))  # type: ignore[misc]


@app.command("fit")
def fit_command(
    config: ConfigPath,
    member: Annotated[str | None, typer.Option(help="Train this member only.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Members at once; one per core, or one on a GPU.")] = None,
) -> None:
    """Train each member's LoRA adapter and score head (or length buckets), where they are not up to date."""
    settings = load_config(config, include_may_be_missing=True)
    for baseline in chosen_members(settings, member, LengthBaseline):
        _fit_length_buckets(settings, baseline)
    classifiers = chosen_members(settings, member, Classifier)
    for chosen in classifiers:
        check_training_inputs(settings, chosen)
    stages = {chosen.name: adapter_stage(settings, chosen) for chosen in classifiers}
    fresh = {name for name, stage in stages.items() if is_up_to_date(stage)}
    wanted = [chosen for chosen in classifiers if chosen.name not in fresh]
    if not wanted:
        return
    from preference_training.fit.model import check_machine
    from preference_training.fit.parallel import default_jobs, fit_members

    for chosen in wanted:
        check_machine(chosen, recipe_of(chosen))
    with bars("fit") as report:
        measured = fit_members(settings, wanted, jobs or default_jobs(len(wanted)), report)
    for name, details in measured.items():
        say(stages[name], details)


def _fit_length_buckets(config: Config, member: LengthBaseline) -> None:
    """Fits the ensemble's own baseline; buckets from elsewhere must be there already."""
    if Path(member.base) != config.folders.baseline:
        read_buckets(Path(member.base), config.labels)
        return
    settings, battles = generation_of(config).baseline, Path(train_file(config))
    check_input(config, battles, "data.train")
    stage = baseline_stage(config, settings, battles)
    make_stage(stage, lambda folder: make_baseline(folder, config, settings, battles))


measure.register(app)
prepare.register(app)
