"""Fits the length baseline: shares of the labels in each bucket of the difference in length.

It is the least a classifier must beat, and can be a member of an ensemble. `preference_core.battles.lengths`
says what the buckets are; this module knows neither text nor models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preference_core.artefacts.manifest import read_manifest, verify
from preference_core.battles.battle import Battle, swapped_label_order
from preference_core.battles.lengths import LengthBuckets, Unit, difference_of, read_buckets, write_buckets
from preference_core.ensemble.metrics import class_prior_log_loss, log_losses
from preference_core.ensemble.settings import Config
from preference_core.errors import ConfigError, UserError
from preference_core.structure import at_least, plain, structure
from preference_training.battles.rows import LabelledBattles, read_labelled
from preference_training.stages import Stage, content_of
from preference_training.statistics.intervals import Array, Bootstrap, Estimate, Indices, folds_of, quantile_edges

#: Raise this when the code changes what it fits.
VERSION = 1

#: Folds of the cross-validation.
FOLDS = 10


@dataclass(frozen=True)
class BaselineSettings:
    """Quantile buckets of the difference in length between the responses."""

    buckets: int = 250  #: how many at most
    unit: Unit = "characters"  #: of the length
    bucket_battles: int = 30  #: fewest battles in a bucket
    #: battles added to each bucket, with the shares of all together: thin buckets lean on the class prior
    smoothing: float = 20.0

    def __post_init__(self) -> None:
        for key in ("buckets", "bucket_battles"):
            at_least(key, getattr(self, key), 1)
        if not (np.isfinite(self.smoothing) and self.smoothing > 0):
            raise ConfigError(
                f"`smoothing` is {self.smoothing}, expected more than 0",
                hint="Without any, a label that a bucket never saw would be impossible there.",
            )


@dataclass(frozen=True)
class BaselineScore:
    """Cross-validated log loss, that of the class prior of the same training folds, and the mean gain over it."""

    battles: int
    folds: int
    log_loss: Estimate
    class_prior: float
    gain: Estimate


@dataclass(frozen=True)
class BaselinePredictions:
    """Probabilities `[n, labels]` of a length baseline called `name`; `symmetric` is their mean over both orders of the
    responses, where it is known.
    """

    name: str
    probabilities: Array
    symmetric: Array | None = None


def differences_of(battles: Sequence[Battle], unit: Unit) -> Array:
    """How much longer the first response of each battle is, `[n]`."""
    return np.array([difference_of(battle, unit) for battle in battles], dtype=np.float64)


def fit_buckets(
    differences: npt.ArrayLike, targets: Indices, labels: Sequence[str], settings: BaselineSettings
) -> LengthBuckets:
    """Fits edges and shares to differences `[n]` and target indices `[n]`.

    The prior that buckets lean on counts every label once more than it was seen, so that nothing is impossible.
    """
    values = np.asarray(differences, dtype=np.float64)
    edges = quantile_edges(values, max(1, min(settings.buckets, len(values) // settings.bucket_battles)))
    bucket = np.searchsorted(edges, values, side="right")
    counts = np.zeros((len(edges) + 1, len(labels)))
    np.add.at(counts, (bucket, targets), 1)
    seen = counts.sum(axis=0)
    prior = (seen + 1) / (seen + 1).sum()
    shares = (counts + settings.smoothing * prior) / (counts.sum(axis=1, keepdims=True) + settings.smoothing)
    rows = tuple(tuple(row) for row in shares.tolist())
    return LengthBuckets(tuple(labels), settings.unit, tuple(edges.tolist()), rows)


def cross_validated(
    data: LabelledBattles,
    labels: Sequence[str],
    settings: BaselineSettings,
    folds: int = FOLDS,
    bootstrap: Bootstrap | None = None,
) -> BaselineScore:
    """Scores the baseline on battles that it was not fitted on, next to the class prior of the same folds.

    Raises `UserError` when there is only one battle.
    """
    bootstrap = bootstrap or Bootstrap()
    by_length, by_prior = held_out(data, labels, settings, folds, bootstrap.seed)
    losses, prior_losses = log_losses(by_length, data.targets), log_losses(by_prior, data.targets)
    return BaselineScore(
        battles=len(data.ids),
        folds=min(folds, len(data.ids)),
        log_loss=bootstrap.mean(losses),
        class_prior=float(prior_losses.mean()),
        gain=bootstrap.mean(prior_losses - losses),
    )


def held_out(
    data: LabelledBattles, labels: Sequence[str], settings: BaselineSettings, folds: int, seed: int
) -> tuple[Array, Array]:
    """Predictions `[n, labels]` of every battle from the other folds alone: by length, and by their class prior."""
    if len(data.ids) < 2:
        raise UserError(
            "One battle is too few to cross-validate on", hint="Pass a file of several hundred with `--battles`."
        )
    differences = differences_of(data.battles, settings.unit)
    by_length, by_prior = np.empty((len(data.ids), len(labels))), np.empty((len(data.ids), len(labels)))
    for fitted, judged in folds_of(len(data.ids), min(folds, len(data.ids)), seed):
        buckets = fit_buckets(differences[fitted], data.targets[fitted], labels, settings)
        by_length[judged] = buckets.predict(differences[judged])
        seen = np.bincount(data.targets[fitted], minlength=len(labels)) + 1
        by_prior[judged] = seen / seen.sum()
    return by_length, by_prior


def baseline_stage(config: Config, settings: BaselineSettings, battles: Path) -> Stage:
    """The folder of the fitted baseline, made from the training battles and the settings."""
    made_from = {
        "code": VERSION,
        "labels": list(config.labels),
        "settings": plain(settings),
        "battles": content_of(battles),
    }
    return Stage(config.folders.baseline, "baseline", made_from)


def make_baseline(folder: Path, config: Config, settings: BaselineSettings, battles: Path) -> Mapping[str, Any]:
    """Fits the baseline to a labelled file and writes it into `folder`."""
    data = read_labelled(battles, config.labels)
    buckets = fit_buckets(differences_of(data.battles, settings.unit), data.targets, config.labels, settings)
    write_buckets(folder, buckets)
    return {
        "battles": len(data.ids),
        "buckets": len(buckets.probabilities),
        "class_prior_log_loss": class_prior_log_loss(data.targets, len(config.labels)),
    }


def read_baseline(config: Config) -> LengthBuckets | None:
    """The fitted baseline of an ensemble; None where none was fitted. Raises `ArtefactError` when it was changed."""
    folder = config.folders.baseline
    if not folder.exists():
        return None
    verify(folder)
    return read_buckets(folder, config.labels)


def baseline_predictions(
    config: Config, labelled: Path, data: LabelledBattles, seed: int
) -> BaselinePredictions | None:
    """What the fitted baseline predicts for the battles of the file `labelled`.

    For a file that it was fitted on, each battle is predicted from the other folds, so that no battle predicts itself.
    None where no baseline was fitted, or where it was fitted on this one battle.
    """
    buckets = read_baseline(config)
    if buckets is None:
        return None
    made_from = read_manifest(config.folders.baseline).made_from
    if set(content_of(labelled).values()) != set(made_from["battles"].values()):
        differences, order = differences_of(data.battles, buckets.unit), list(swapped_label_order(config.labels))
        predicted, exchanged = buckets.predict(differences), buckets.predict(-differences)[:, order]
        return BaselinePredictions("length buckets", predicted, (predicted + exchanged) / 2)
    if len(data.ids) < 2:
        return None
    settings = structure(BaselineSettings, made_from["settings"])
    predicted = held_out(data, config.labels, settings, FOLDS, seed)[0]
    return BaselinePredictions("length buckets (cross-validated)", predicted)
