"""Fits how members are combined, and judges each part of it by cross-validation: is its gain more than noise?

What is judged is the `Combination` that serving applies. Predictions meet labels by id only. It knows nothing of
models.
"""

import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from preference_core.ensemble.combination import Combination, PostProcessing
from preference_core.ensemble.loading import ConfigFile
from preference_core.ensemble.metrics import log_loss, log_losses
from preference_core.ensemble.settings import Config
from preference_core.errors import UserError
from preference_core.progress import StepDone, no_report
from preference_training.battles.rows import read_labelled
from preference_training.combining.rules import RULES, Rule, with_post_processing, with_temperatures, with_weights
from preference_training.evaluation.combination import combination_of_members
from preference_training.evaluation.predictions import Predictions, read_member_predictions
from preference_training.statistics.intervals import Array, Bootstrap, Estimate, Indices, folds_of
from preference_training.toml import toml_text

#: Probabilities that a file rounded to 0 are taken as this.
_SMALLEST = float(np.finfo(np.float64).eps)
#: Digits of the numbers written.
_DIGITS = 10
#: How far a file's ensemble columns may be from what the configuration makes of its members' columns.
_SAME_PROBABILITY = 1e-3

Fit = Callable[[Array, Indices], Combination]


@dataclass(frozen=True, eq=False)
class Judged:
    """What is fitted on: `log_probabilities` `[n, members, labels]` and target indices `[n]`, sorted by id."""

    ids: tuple[str, ...]
    log_probabilities: Array
    targets: Indices


@dataclass(frozen=True)
class Candidate:
    """One way to combine. `log_loss` is that on the rows it was fitted on, `cross_validated` that on held-out folds.

    `gain` is how much lower the latter is than that of `instead_of`, row by row.
    """

    name: str
    combination: Combination
    log_loss: float
    cross_validated: Estimate
    instead_of: str
    gain: Estimate

    @property
    def is_worth_it(self) -> bool:
        """Whether the gain is outside the noise: its whole interval is above 0."""
        return self.gain.low is not None and self.gain.low > 0


@dataclass(frozen=True)
class Fitted:
    """The combination that was asked for, every candidate, and each member's log loss on the `battles` fitted on."""

    battles: int
    members: Mapping[str, float]
    candidates: tuple[Candidate, ...]
    chosen: Combination


def judged_rows(config: Config, predictions: Sequence[Path], labelled: Path, report: StepDone = no_report) -> Judged:
    """Joins files of predictions with labels by id. Rows are sorted by id: the order of the files changes nothing.

    Battles that the configuration answers without the members (`combine.fixed`) are left out.
    """
    report("files", 0, 2)
    data = read_labelled(labelled, config.labels)
    report("files", 1, 2)
    files = {path: read.in_order_of(data.ids) for path, read in read_member_predictions(predictions, config).items()}
    members = {name: values for read in files.values() for name, values in read.members.items()}
    log_probabilities = _log_probabilities(members, [member.name for member in config.members])
    kept = [row for row, battle in enumerate(data.battles) if battle.special_case() not in config.combine.fixed]
    for path, read in files.items():
        _check_temperatures(config, path, read, kept)
    order = sorted(kept, key=lambda row: data.ids[row])
    return Judged(tuple(data.ids[row] for row in order), log_probabilities[order], data.targets[order])


def fit_weights(
    config: Config,
    rows: Judged,
    rule: Rule,
    *,
    temperatures: bool = False,
    post_processing: bool = False,
    own: Container[str] = (),
    folds: int = 5,
    bootstrap: Bootstrap | None = None,
    report: StepDone = no_report,
) -> Fitted:
    """Fits every candidate, cross-validated over `folds`; chooses `rule` with those extras that were asked for.

    `own` are the keys that the configuration file gives itself (`ConfigFile.own_keys`): a `post_processing` among them
    will be applied to whatever is fitted, so every candidate except the one that replaces it is judged with it.
    """
    folds = min(folds, len(rows.ids))
    if folds < 2:
        raise UserError(f"{len(rows.ids)} battles are too few to fit weights on", hint="Several hundred are needed.")
    equal = Combination(
        config.labels,
        tuple(member.name for member in config.members),
        (1 / len(config.members),) * len(config.members),
        config.combine.average,
        post_processing=config.combine.post_processing if "post_processing" in own else None,
    )
    before: str = "temperatures" if temperatures else rule
    fits: dict[str, tuple[str, Fit]] = {"equal": ("equal", lambda p, t: equal)}
    for each in RULES:
        fits[each] = "equal", partial(with_weights, each, equal)
    fits["temperatures"] = rule, lambda p, t: with_weights(rule, with_temperatures(equal, p, t), p, t)
    fits["post-processing"] = (
        before,
        lambda p, t: with_post_processing(replace(fits[before][1](p, t), post_processing=None), p, t),
    )

    resamples = (bootstrap or Bootstrap()).of(len(rows.ids))
    candidates, losses = {}, {}
    for name, (instead_of, fit) in fits.items():
        report(name, 0, folds + 1)
        losses[name] = _held_out_losses(fit, rows, folds, resamples.bootstrap.seed, partial(report, name))
        combination = fit(rows.log_probabilities, rows.targets)
        report(name, folds + 1, folds + 1)
        cross_validated, gain = resamples.means([losses[name], losses[instead_of] - losses[name]])
        candidates[name] = Candidate(
            name,
            _as_served(combination, config),
            log_loss(combination.probabilities(rows.log_probabilities), rows.targets),
            cross_validated,
            instead_of,
            gain,
        )
    members = equal.member_probabilities(rows.log_probabilities)
    return Fitted(
        len(rows.ids),
        {name: log_loss(members[:, m], rows.targets) for m, name in enumerate(equal.members)},
        tuple(candidates.values()),
        candidates["post-processing" if post_processing else before].combination,
    )


def include_of(config: Path, included: Path) -> str:
    """The line of `[combine]` by which a configuration file includes another file: the path is relative to its own."""
    path = os.path.relpath(included.resolve(), config.parent.resolve())
    return toml_text({"include": Path(path).as_posix()}).strip()


def check_repeated(file: ConfigFile, included: Path, keys: Iterable[str]) -> None:
    """Refuses to write `keys` into the file that `file` includes where it gives one of them itself."""
    for key in sorted(file.own_keys.intersection(keys)):
        option = "" if key == "weights" else f", leave out `--{key.replace('_', '-')}`"
        raise UserError(
            f"`combine.{key}` is given in `{file.path}`, and would be given again in `{included}`, which it includes",
            hint=f"Remove it from `{file.path}`{option}, or name another file with `--output`.",
        )


def weights_file(combination: Combination, leave_out: Container[str] = ()) -> str:
    """The text that `[combine] include = "weights.toml"` reads; temperatures and multipliers where there are any.

    `leave_out` are keys that the including file gives.
    """
    lines = [f"weights = {_inline(zip(combination.members, combination.weights, strict=True))}"]
    if "temperatures" not in leave_out and any(temperature != 1 for temperature in combination.temperatures):
        lines.append(f"temperatures = {_inline(zip(combination.members, combination.temperatures, strict=True))}")
    rule = combination.post_processing
    if "post_processing" not in leave_out and rule is not None:
        multipliers = _inline(rule.multipliers.items())
        lines.append(f"post_processing = {{ threshold = {rule.threshold!r}, multipliers = {multipliers} }}")
    return "\n".join(["# Written by `preference-train weights`; name it by `[combine] include`.", *lines, ""])


def _held_out_losses(fit: Fit, rows: Judged, folds: int, seed: int, report: Callable[[int, int], None]) -> Array:
    """Log loss of each row `[n]` under what was fitted on the other folds."""
    losses = np.empty(len(rows.ids))
    for number, (fitted, judged) in enumerate(folds_of(len(rows.ids), folds, seed)):
        report(number, folds + 1)
        combination = fit(rows.log_probabilities[fitted], rows.targets[fitted])
        losses[judged] = log_losses(combination.probabilities(rows.log_probabilities[judged]), rows.targets[judged])
    return losses


def _as_served(combination: Combination, config: Config) -> Combination:
    """`combination` for logits instead of the predictions it was fitted on, which had the configured temperatures."""
    configured = config.combination.temperatures
    temperatures = [round(a * b, _DIGITS) for a, b in zip(combination.temperatures, configured, strict=True)]
    rule = combination.post_processing
    if rule is not None:
        rule = PostProcessing(rule.threshold, {key: round(f, _DIGITS) for key, f in rule.multipliers.items()})
    return replace(
        combination,
        weights=tuple(round(weight, _DIGITS) for weight in combination.weights),
        temperatures=tuple(temperatures),
        post_processing=rule,
    )


def _log_probabilities(members: Mapping[str, Array], names: Sequence[str]) -> Array:
    """Logarithms `[n, names, labels]` of the members' probabilities."""
    values: Array = np.log(np.maximum(np.stack([members[name] for name in names], axis=1), _SMALLEST))
    return values


def _check_temperatures(config: Config, path: Path, read: Predictions, kept: Sequence[int]) -> None:
    """Refuses a file of predictions that this configuration did not make, where it has temperatures.

    They are already in the members' columns then, and the fitted ones are multiplied by them. The file's ensemble,
    which is that of the members in this file, tells; in the rows `kept` at least, where the members answer.
    """
    names = list(read.members)
    if not names or all(temperature == 1 for temperature in config.combination.temperatures):
        return
    configured = replace(combination_of_members(config, names), temperatures=())
    expected = configured.probabilities(_log_probabilities(read.members, names))
    if np.abs(expected - read.ensemble)[kept].max(initial=0.0) > _SAME_PROBABILITY:
        raise UserError(
            f"`combine.temperatures` are configured, and the predictions in `{path}` were not made with this "
            "configuration",
            hint="Predict again with it, or remove the temperatures from it and predict without them.",
        )


def _inline(values: Iterable[tuple[str, float]]) -> str:
    return "{ " + ", ".join(f"{key} = {value!r}" for key, value in values) + " }"
