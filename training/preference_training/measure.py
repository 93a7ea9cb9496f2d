"""The commands that measure: `baseline`, `predict`, `evaluate` and `weights`.

They choose files, call the other modules, and show what these return. `app` registers them.
"""

from pathlib import Path
from typing import Annotated

import typer

from preference_core.ensemble.loading import ConfigFile, load_config, read_config_file
from preference_core.ensemble.settings import Config
from preference_core.errors import UserError
from preference_training.battles.baseline import baseline_stage, cross_validated, make_baseline, read_baseline
from preference_training.battles.rows import read_battles, read_labelled
from preference_training.combining.rules import Rule
from preference_training.combining.weights import check_repeated, fit_weights, include_of, judged_rows, weights_file
from preference_training.evaluation.evaluate import evaluate
from preference_training.evaluation.predictions import write_predictions
from preference_training.evaluation.report import report_of
from preference_training.files import check_input, check_target
from preference_training.stages import is_same_file
from preference_training.statistics.intervals import Bootstrap
from preference_training.synthetic.generate import generation_of
from preference_training.terminal.messages import make_stage, notes, show_result
from preference_training.terminal.options import AsJson, ConfigPath
from preference_training.terminal.progress_bars import bars
from preference_training.terminal.tables import baseline_table, evaluation_tables, weights_table

Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap and the folds.")]
Folds = Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command("baseline")(baseline_command)
    app.command("predict")(predict_command)
    app.command("evaluate")(evaluate_command)
    app.command("weights")(weights_command)


def baseline_command(
    config: ConfigPath,
    battles: Annotated[
        Path | None, typer.Option(help="Only cross-validate, on these labelled battles: nothing is fitted or written.")
    ] = None,
    folds: Folds = 10,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit the length baseline to `data.train` as `[training.baseline]` says, and print its score.

    The score is its cross-validated log loss, next to the class prior.
    """
    settings = _config_before_weights(read_config_file(config))
    labelled = _named(battles, settings, config, "train")
    baseline = generation_of(settings).baseline
    if battles is None:
        stage = baseline_stage(settings, baseline, labelled)
        make_stage(stage, lambda folder: make_baseline(folder, settings, baseline, labelled))
    data = read_labelled(labelled, settings.labels)
    result = cross_validated(data, settings.labels, baseline, folds, Bootstrap(seed=seed))
    show_result(result, [baseline_table(result)], as_json)


def predict_command(
    config: ConfigPath,
    battles: Annotated[Path | None, typer.Option(help="Battles, labelled or not; default: `data.validation`.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A CSV file.")] = None,
    member: Annotated[str | None, typer.Option(help="Predict with this member only.")] = None,
    swapped: Annotated[bool, typer.Option("--swapped", help="Exchange the responses first.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Battles in one pass.")] = 16,
) -> None:
    """Predict battles with the Hugging Face models: the file that `preference-score` would write.

    Without --output it is build/NAME/validation_predictions.csv, where `weights` looks for it.
    """
    from preference_training.evaluation.predict import predict

    settings = _config_before_weights(read_config_file(config))
    members = settings.members if member is None else (settings.member(member),)
    source = _named(battles, settings, config, "validation")
    target = output or settings.folders.validation_predictions
    if output is None and (battles or member or swapped):
        raise UserError(
            f"`{target}` is for predictions of `data.validation` by all members",
            hint="Name another file with `--output`.",
        )
    check_target(target, ".csv", make_folder=target == settings.folders.validation_predictions)
    read = read_battles(source)
    if swapped:
        read = {identity: battle.swapped() for identity, battle in read.items()}
    with bars("predict") as report:
        write_predictions(target, predict(settings, read, members, batch_size, report), settings.labels)
    notes.print(f"{target}: {len(read):,} battles")


def evaluate_command(
    config: ConfigPath,
    predictions: Annotated[
        Path | None, typer.Option(help="A file of predictions; default: build/NAME/predictions.csv.")
    ] = None,
    battles: Annotated[Path | None, typer.Option(help="The labelled battles; default: `data.test`.")] = None,
    swapped: Annotated[Path | None, typer.Option(help="Predictions with the responses exchanged.")] = None,
    symmetric: Annotated[Path | None, typer.Option(help="Predictions of the symmetric ensemble.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report with plots: one HTML file.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score predictions against labels, joined by id, with intervals: members, ensemble, sanity bands, groups."""
    settings = load_config(config)
    labelled = _named(battles, settings, config, "test")
    source = predictions or settings.folders.predictions
    if report is not None:
        check_target(report, ".html")
    if predictions is None and not source.exists():
        raise UserError(f"There is no file `{source}`", hint="Name what `preference-score` wrote with `--predictions`.")
    if settings.data.train is not None and is_same_file(labelled, Path(settings.data.train)):
        notes.print(f"warning: `{labelled}` holds the battles that were trained on: scores on them flatter the members")
    if read_baseline(settings) is None:
        notes.print(f"There is no length baseline to compare with; `preference-train baseline {config}` fits it.")
    with bars("evaluate") as progress:
        result = evaluate(
            settings,
            source,
            labelled,
            swapped=swapped,
            symmetric=symmetric,
            bootstrap=Bootstrap(seed=seed),
            report=progress,
        )
    if report is not None:
        report.write_text(report_of(settings.name, result), encoding="utf-8")
        notes.print(f"{report}: written")
    show_result(result, evaluation_tables(settings, result), as_json)


def weights_command(
    config: ConfigPath,
    rule: Annotated[Rule, typer.Option(help="The published rule, or the least log loss.")] = "log-loss",
    predictions: Annotated[
        list[Path] | None, typer.Option(help="Repeat for one file per member; default: validation_predictions.csv.")
    ] = None,
    battles: Annotated[Path | None, typer.Option(help="The labelled battles; default: `data.validation`.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="What `[combine] include` names.")] = None,
    temperatures: Annotated[bool, typer.Option("--temperatures", help="Also write fitted temperatures.")] = False,
    post_processing: Annotated[bool, typer.Option("--post-processing", help="Also write multipliers.")] = False,
    folds: Folds = 5,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit the members' weights on labelled predictions, and write the file that `[combine] include` names.

    Without an include it is build/NAME/weights.toml. Every part is cross-validated, whether it is written or not.
    """
    file = read_config_file(config)
    settings = _config_before_weights(file)
    labelled = _named(battles, settings, config, "validation")
    target = output or file.included or settings.folders.weights
    is_included = file.included is not None and target.resolve() == file.included.resolve()
    check_target(target, ".toml", make_folder=is_included or output is None)
    fitted = {"weights": True, "temperatures": temperatures, "post_processing": post_processing}
    if is_included:
        check_repeated(file, target, [key for key, is_fitted in fitted.items() if is_fitted])
    made = settings.folders.validation_predictions
    if not predictions and not made.exists():
        raise UserError(f"There is no file `{made}`", hint=f"`preference-train predict {config}` writes it.")
    with bars("weights") as progress:
        rows = judged_rows(settings, predictions or [made], labelled, progress)
        result = fit_weights(
            settings,
            rows,
            rule,
            temperatures=temperatures,
            post_processing=post_processing,
            own=file.own_keys,
            folds=folds,
            bootstrap=Bootstrap(seed=seed),
            report=progress,
        )
    kept = {key for key in file.own_keys if not fitted.get(key)}
    target.write_text(weights_file(result.chosen, leave_out=kept), encoding="utf-8")
    use = f"to use it, let `[combine]` of `{config}` say: {include_of(config, target)}"
    if is_included:
        use = f"`preference-export repository {config}` puts it into the repository"
    notes.print(f"{target}: written; {use}")
    show_result(result, [weights_table(settings, result)], as_json)


def _named(given: Path | None, settings: Config, config: Path, part: str) -> Path:
    """The battles that an option names, or those that `[data]` names for `part`."""
    if given is not None:
        return given
    configured: str | None = getattr(settings.data, part)
    if configured is None:
        raise UserError(f"`{config}` names no `data.{part}`", hint="Name the battles with `--battles`.")
    check_input(settings, Path(configured), f"data.{part}")
    return Path(configured)


def _config_before_weights(file: ConfigFile) -> Config:
    """The configuration, for commands that run before its weights are known: missing ones are equal."""
    if file.included is not None and not file.included.exists():
        notes.print(f"`{file.included}`, the weights of `{file.path}`, does not exist yet: all members count the same")
    return file.config(include_may_be_missing=True)
