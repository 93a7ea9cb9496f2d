"""An evaluation as one HTML page with plots, which needs no network and no other file.

Chooses what is shown and how it is explained; the plots themselves are `charts`'.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from preference_training.evaluation import charts, number_text
from preference_training.evaluation.charts import ChartLine
from preference_training.evaluation.evaluate import Evaluation, Score
from preference_training.evaluation.predictions import ENSEMBLE
from preference_training.statistics.intervals import LEVEL, Estimate

TEMPLATE = "report.html.jinja"

#: Sources that need no model: lines in the plots by group.
_BANDS = ("class prior", "uniform")
_KINDS = {"length": "Length", "turns": "Number of turns", "language": "Language"}


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on how to read the plots, and the plots (SVG)."""

    title: str
    text: str
    plots: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A number at the top of the page."""

    name: str
    value: str
    bounds: str


def report_of(name: str, result: Evaluation) -> str:
    """The page of the ensemble `name`."""
    environment = Environment(
        loader=PackageLoader("preference_training.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        _scores(result),
        _reliability(result),
        _confusion(result),
        *_groups(result),
        _position(result),
        _verbosity(result),
        _agreement(result),
        *_truncation(result),
    ]
    return environment.get_template(TEMPLATE).render(
        name=name,
        battles=result.battles,
        answered_by=result.answered_by,
        figures=_figures(result),
        sections=sections,
        truncation=result.truncation,
        level=f"{LEVEL:.0%}",
        bootstrap=result.bootstrap,
        why_no_interval=number_text.WHY_NO_INTERVAL,
    )


def _figures(result: Evaluation) -> list[Figure]:
    ensemble = _score_named(result, ENSEMBLE)
    shares = {"accuracy": ensemble.accuracy, "calibration error": ensemble.calibration_error}
    numbers = {"log loss": ensemble.log_loss, **shares, "below the class prior": ensemble.gain}
    return [_figure(name, found, percent=name in shares) for name, found in numbers.items() if found is not None]


def _figure(name: str, estimate: Estimate, percent: bool = False) -> Figure:
    value = f"{estimate.value:.1%}" if percent else f"{estimate.value:.4f}"
    return Figure(name, value, number_text.interval(estimate, 1 if percent else 4, percent))


def _scores(result: Evaluation) -> Section:
    losses = _lines(result, lambda score: score.log_loss)
    right = _lines(result, lambda score: score.accuracy)
    text = (
        "Lower log loss is better. A source to the right of the uniform guess points to a bug; one that does not beat "
        "the length buckets has learned little more than which response is longer. The second plot compares each "
        "source with the class prior on the same battles: what lies to the right of the line is better, and surely so "
        "where the whole interval does."
    )
    plots = [
        charts.intervals(losses, "Log loss of each source", "log loss", digits=4),
        _gains(_lines(result, lambda score: score.gain), "class prior"),
    ]
    over_length = _lines(result, lambda score: score.gain_over_length)
    if over_length:
        text += (
            " The third does the same with the length baseline; what averages both orders of the responses is compared "
            "with the baseline's average of both."
        )
        plots.append(_gains(over_length, "length baseline"))
    return Section("Scores", text, (*plots, charts.intervals(right, "Accuracy of each source", "accuracy")))


def _lines(result: Evaluation, estimate_of: Callable[[Score], Estimate | None]) -> list[ChartLine]:
    known = [(score.name, estimate_of(score)) for score in result.scores]
    return [ChartLine(name, (found,), is_strong=name == ENSEMBLE) for name, found in known if found is not None]


def _gains(lines: list[ChartLine], over: str) -> str:
    title = f"Log loss below the {over}"
    return charts.intervals(lines, title, title.lower(), references={over: 0.0}, digits=4)


def _reliability(result: Evaluation) -> Section:
    points = {number_text.outcome(label): line for label, line in result.reliability.items()}
    return Section(
        "Reliability",
        "Of the battles for which the ensemble gave an outcome some probability, the share in which it came true. "
        "Each point holds about a tenth of the battles; more where many have the same probability. Below the diagonal, "
        "an outcome came true less often than predicted.",
        (charts.reliability(points, "Observed frequency over predicted probability"),),
    )


def _confusion(result: Evaluation) -> Section:
    names = [number_text.outcome(label) for label in result.labels]
    shades = [[share.value if share else 0.0 for share in row] for row in result.confusion_shares]
    texts = [
        [f"{count:,}\n{number_text.share(share)}" for count, share in zip(counts, row, strict=True)]
        for counts, row in zip(result.confusion, result.confusion_shares, strict=True)
    ]
    return Section(
        "Confusion",
        "Rows are the right outcome, columns the most probable one. Below each number of battles: its share of the "
        "row, with its interval.",
        (charts.matrix(names, [f"predicted {name}" for name in names], shades, texts, "Confusion matrix"),),
    )


def _groups(result: Evaluation) -> list[Section]:
    bands = {name: _score_named(result, name).log_loss.value for name in _BANDS}
    sections = []
    for kind, groups in result.groups.items():
        rows = [ChartLine(f"{group.name} ({group.battles:,})", (group.log_loss,)) for group in groups]
        title = f"Log loss by {_KINDS[kind].lower()}"
        text = "Log loss of the ensemble; in brackets, the number of battles."
        sections.append(Section(_KINDS[kind], text, (charts.intervals(rows, title, "log loss", references=bands),)))
    return sections


def _position(result: Evaluation) -> Section:
    rows = [ChartLine(number_text.outcome(share.label), (share.observed, share.predicted)) for share in result.shares]
    plots = [charts.intervals(rows, "Observed and predicted outcomes", "share", ("observed", "predicted"))]
    text = "How often each outcome happened, and its mean probability."
    if result.swaps:
        text += (
            " The second plot shows how far the response shown first leads by its place alone; the third, the share of "
            "battles whose most probable outcome stays when the responses are exchanged."
        )
        bias = [ChartLine(swap.name, (swap.position_bias,)) for swap in result.swaps]
        same = [ChartLine(swap.name, (swap.same_decision,)) for swap in result.swaps]
        plots.append(charts.intervals(bias, "Position bias", "lead of the first place", references={"none": 0.0}))
        plots.append(charts.intervals(same, "Same decision after the exchange", "share of battles"))
    return Section("Position", text, tuple(plots))


def _verbosity(result: Evaluation) -> Section:
    rows = [
        ChartLine(f"{lead.name} ({lead.battles:,})", (lead.observed, lead.predicted)) for lead in result.lead_by_length
    ]
    plot = charts.intervals(
        rows, "Lead by difference in length", "wins of A less wins of B", ("observed", "predicted"), {"even": 0.0}
    )
    return Section(
        "Verbosity",
        "Share of wins of response A less that of response B, by how many characters A is longer. Where people lean "
        "to the longer response, good predictions lean as far, not farther.",
        (plot,),
    )


def _agreement(result: Evaluation) -> Section:
    names, shares = result.agreement.names, result.agreement.same_decision
    texts = [[f"{share:.1%}" for share in row] for row in shares]
    return Section(
        "Agreement",
        "Share of battles for which two sources hold the same outcome most probable. Members that always agree add "
        "little to one another.",
        (charts.matrix(names, names, [[_stretched(share) for share in row] for row in shares], texts, "Agreement"),),
    )


def _truncation(result: Evaluation) -> list[Section]:
    rows: list[ChartLine] = []
    for cost in result.truncation:
        if cost.battles_cut:
            whole = ChartLine(f"{cost.name}, whole", (cost.log_loss_whole,))
            rows += [whole, ChartLine(f"{cost.name}, cut ({cost.battles_cut:,})", (cost.log_loss_cut,))]
    known = [row for row in rows if row.estimates[0] is not None]
    if not known:
        return []
    text = "Log loss of each member on the battles it read whole, and on those that were cut to its limit."
    return [Section("Truncation", text, (charts.intervals(known, "Log loss by truncation", "log loss"),))]


def _stretched(share: float) -> float:
    """Agreement rarely falls below a third: shades begin there."""
    return max(0.0, (share - 1 / 3) * 1.5)


def _score_named(result: Evaluation, name: str) -> Score:
    return next(score for score in result.scores if score.name == name)
