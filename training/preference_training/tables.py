"""How results look in a terminal. Measures nothing."""

from collections.abc import Iterable

from rich.table import Table

from preference_core.settings import Config
from preference_training.baseline import BaselineScore
from preference_training.evaluate import Evaluation
from preference_training.predictions import ENSEMBLE
from preference_training.weights import Fitted
from preference_training.wording import bounds, outcome, share, spread


def evaluation_tables(config: Config, result: Evaluation) -> Iterable[Table]:
    """Scores of every source, then the ensemble's by group, what truncation cost, and swap consistency."""
    scores = _table(
        f"{config.name}: {result.battles:,} battles", "log loss", "accuracy", "calibration error", "dropped"
    )
    for score in result.scores:
        dropped = "" if score.dropped_tokens is None else f"{score.dropped_tokens:,}"
        cells = (spread(score.log_loss), spread(score.accuracy, 3), spread(score.calibration_error, 3), dropped)
        scores.add_row(_two_lines(score.name), *cells, style=_style(score.name))
    scores.caption = (
        "± half of the 95 % bootstrap interval (n/a: one battle has none); dropped: tokens that truncation cut"
    )
    yield scores
    gains = _table("Log loss below the class prior", "by (95 % interval)")
    for score in result.scores:
        if score.gain is not None:
            gains.add_row(score.name, bounds(score.gain), style=_style(score.name))
    yield gains
    yield _confusion(result)
    groups = _table("The ensemble by group", "battles", "log loss", "accuracy")
    for kind in result.groups.values():
        for group in kind:
            groups.add_row(group.name, f"{group.battles:,}", spread(group.log_loss), spread(group.accuracy, 3))
        groups.add_section()
    yield groups
    yield from _truncation(result)
    if result.swaps:
        swaps = _table("Responses exchanged", "same decision", "mean difference", "position bias")
        for swap in result.swaps:
            measured = (swap.same_decision, swap.mean_difference, swap.position_bias)
            swaps.add_row(swap.name, *(spread(estimate) for estimate in measured))
        yield swaps


def _confusion(result: Evaluation) -> Table:
    table = _table("Right outcome (row), most probable one (column)", "battles")
    for label in result.labels:
        table.add_column(outcome(label), justify="right")
    for label, counts, shares in zip(result.labels, result.confusion, result.confusion_shares, strict=True):
        table.add_row(outcome(label), f"{sum(counts):,}", *map(share, shares))
    table.caption = "share of the row and, in brackets, its 95 % interval"
    return table


def baseline_table(result: BaselineScore) -> Table:
    """The length baseline next to the class prior."""
    table = _table(f"Length baseline, {result.folds}-fold cross-validation on {result.battles:,} battles", "log loss")
    table.add_row("length buckets", bounds(result.log_loss), style="bold")
    table.add_row("class prior", f"{result.class_prior:.4f}")
    table.add_row("gain", bounds(result.gain))
    return table


def weights_table(config: Config, result: Fitted) -> Table:
    """Every candidate, its gain, and whether it is worth it."""
    table = _table(f"{config.name}: {result.battles:,} battles", "weights", "log loss", "gain", "advice")
    for name, loss in result.members.items():
        table.add_row(name, "", f"{loss:.4f}", "", "")
    table.add_section()
    for candidate in result.candidates:
        weights = " ".join(f"{weight:.4f}" for weight in candidate.combination.weights)
        if candidate.name == candidate.instead_of:
            gain, advice = "", ""
        else:
            gain, advice = spread(candidate.gain), "keep" if candidate.is_worth_it else "leave out"
        style = "bold" if candidate.combination == result.chosen else None
        table.add_row(candidate.name, weights, f"{candidate.cross_validated.value:.4f}", gain, advice, style=style)
    table.caption = (
        "cross-validated; ± half of the 95 % bootstrap interval, within which a gain is noise; bold is written"
    )
    return table


def _truncation(result: Evaluation) -> Iterable[Table]:
    if not any(cost.battles_cut for cost in result.truncation):
        return
    table = _table("What truncation cost", "battles cut", "tokens lost: prompt, A, B", "log loss if cut", "if whole")
    for cost in result.truncation:
        lost = "" if cost.tokens_lost is None else " / ".join(f"{count:,}" for count in cost.tokens_lost.values())
        table.add_row(cost.name, f"{cost.battles_cut:,}", lost, spread(cost.log_loss_cut), spread(cost.log_loss_whole))
    yield table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _style(name: str) -> str | None:
    return "bold" if name == ENSEMBLE else None


def _two_lines(name: str) -> str:
    """A name with what is in brackets below it, so that 80 columns hold the table."""
    return name.replace(" (", "\n(")
