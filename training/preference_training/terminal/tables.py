"""How results look in a terminal. Measures nothing.

Names of ensembles, members and languages are text: nothing in them is markup.
"""

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from preference_core.ensemble.settings import Config
from preference_training.battles.baseline import BaselineScore
from preference_training.combining.weights import Fitted
from preference_training.evaluation.evaluate import Evaluation
from preference_training.evaluation.number_text import (
    HOW_SPREAD,
    NO_INTERVAL,
    WHY_NO_INTERVAL,
    bounds,
    outcome,
    share,
    spread,
    stacked,
)
from preference_training.evaluation.predictions import ENSEMBLE
from preference_training.statistics.intervals import Estimate


def evaluation_tables(config: Config, result: Evaluation) -> Iterable[Table]:
    """Scores of every source, then the ensemble's by group, what truncation cost, and swap consistency."""
    scores = _table(f"{config.name}: {result.battles:,} battles", "log loss", "accuracy", "calibration error")
    for score in result.scores:
        cells = (spread(score.log_loss), spread(score.accuracy, 3), stacked(score.calibration_error, 3))
        _add(scores, _two_lines(score.name), *cells, style=_style(score.name))
    yield _captioned(scores, HOW_SPREAD)
    yield _gains("the class prior", {score.name: score.gain for score in result.scores})
    over_length = {score.name: score.gain_over_length for score in result.scores}
    if any(over_length.values()):
        yield _gains("the length baseline", over_length)
    yield _confusion(result)
    groups = _table("The ensemble by group", "battles", "log loss", "accuracy")
    for kind in result.groups.values():
        for group in kind:
            _add(groups, group.name, f"{group.battles:,}", spread(group.log_loss), spread(group.accuracy, 3))
        groups.add_section()
    yield _captioned(groups)
    yield from _truncation(result)
    if result.swaps:
        swaps = _table("Responses exchanged", "same decision", "mean difference", "position bias")
        for swap in result.swaps:
            measured = (swap.same_decision, swap.mean_difference, swap.position_bias)
            _add(swaps, swap.name, *(spread(estimate) for estimate in measured))
        yield _captioned(swaps)


def _gains(over: str, gains: Mapping[str, Estimate | None]) -> Table:
    table = _table(f"Log loss below {over}", "by (95 % interval)")
    for name, gain in gains.items():
        if gain is not None:
            _add(table, name, bounds(gain), style=_style(name))
    return _captioned(table)


def _confusion(result: Evaluation) -> Table:
    table = _table("Right outcome (row), most probable one (column)", "battles")
    for label in result.labels:
        table.add_column(Text(outcome(label)), justify="right")
    for label, counts, shares in zip(result.labels, result.confusion, result.confusion_shares, strict=True):
        _add(table, outcome(label), f"{sum(counts):,}", *map(share, shares))
    table.caption = "share of the row and, in brackets, its 95 % interval"
    return table


def baseline_table(result: BaselineScore) -> Table:
    """The length baseline next to the class prior."""
    table = _table(f"Length baseline, {result.folds}-fold cross-validation on {result.battles:,} battles", "log loss")
    _add(table, "length buckets", bounds(result.log_loss), style="bold")
    _add(table, "class prior", f"{result.class_prior:.4f}")
    _add(table, "gain", bounds(result.gain))
    return _captioned(table)


def weights_table(config: Config, result: Fitted) -> Table:
    """Every candidate, its gain, and whether it is worth it."""
    table = _table(f"{config.name}: {result.battles:,} battles", "weights", "log loss", "gain", "advice")
    for name, loss in result.members.items():
        _add(table, name, "", f"{loss:.4f}", "", "")
    table.add_section()
    for candidate in result.candidates:
        weights = " ".join(f"{weight:.4f}" for weight in candidate.combination.weights)
        if candidate.name == candidate.instead_of:
            gain, advice = "", ""
        else:
            gain, advice = spread(candidate.gain), "keep" if candidate.is_worth_it else "leave out"
        style = "bold" if candidate.combination == result.chosen else None
        _add(table, candidate.name, weights, f"{candidate.cross_validated.value:.4f}", gain, advice, style=style)
    how = "cross-validated; a gain is noise if its interval contains 0; bold rows are written"
    return _captioned(table, how, HOW_SPREAD)


def _truncation(result: Evaluation) -> Iterable[Table]:
    if not any(cost.battles_cut for cost in result.truncation):
        return
    table = _table("What truncation cost", "battles cut", "tokens lost: prompt, A, B", "log loss if cut", "if whole")
    dropped = {score.name: score.dropped_tokens for score in result.scores}
    for cost in result.truncation:
        total = dropped.get(cost.name)
        lost = "" if total is None else f"{total:,}"
        if cost.tokens_lost is not None:
            lost = " / ".join(f"{count:,}" for count in cost.tokens_lost.values())
        _add(table, cost.name, f"{cost.battles_cut:,}", lost, spread(cost.log_loss_cut), spread(cost.log_loss_whole))
    yield _captioned(table)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title, style="table.title"), title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _add(table: Table, *cells: str, style: str | None = None) -> None:
    """Adds a row of text."""
    table.add_row(*map(Text, cells), style=style)


def _captioned(table: Table, *lines: str) -> Table:
    """The table with `lines` below it, and why there are no intervals where some are missing."""
    cells = [str(cell) for column in table.columns for cell in column.cells]
    why = [WHY_NO_INTERVAL] if any(NO_INTERVAL in cell for cell in cells) else []
    table.caption = "\n".join([*lines, *why])
    return table


def _style(name: str) -> str | None:
    return "bold" if name == ENSEMBLE else None


def _two_lines(name: str) -> str:
    """A name with what is in brackets below it, so that 80 columns hold the table."""
    return name.replace(" (", "\n(")
