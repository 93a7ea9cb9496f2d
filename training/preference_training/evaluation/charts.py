"""Plots as SVG text: intervals in rows, a reliability diagram, a matrix.

Colours are classes of the page that holds them, so that they follow its light and dark look. Numbers in, text out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from preference_training.evaluation import number_text
from preference_training.evaluation.breakdown import ReliabilityPoint
from preference_training.statistics.intervals import Estimate

WIDTH = 840
ROW_HEIGHT = 26
#: Room for names on the left, for numbers on the right, and for the axis below, in SVG units.
NAMES, NUMBERS, AXIS = 230, 200, 44


@dataclass(frozen=True)
class ChartLine:
    """One line of `intervals`: an estimate per series, None where a series has nothing to say."""

    name: str
    estimates: tuple[Estimate | None, ...]
    is_strong: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round values (steps of 1, 2 or 5 times a power of ten) from `low` to `high`."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def intervals(
    rows: Sequence[ChartLine],
    title: str,
    axis_label: str,
    series: Sequence[str] = ("",),
    references: Mapping[str, float] | None = None,
    digits: int = 3,
) -> str:
    """Dots with their intervals, one line per row and series; `references` are vertical lines with a name."""
    references = references or {}
    height_of_row = ROW_HEIGHT if len(series) == 1 else 16 * len(series) + 10
    top = 34 if len(series) > 1 or references else 12
    bottom = top + height_of_row * len(rows)
    shown = [estimate for row in rows for estimate in row.estimates if estimate is not None]
    axis = _axis(
        [value for e in shown for value in (e.value, e.low, e.high) if value is not None] + [*references.values()]
    )
    parts = _grid(axis, top, bottom, axis_label)
    for number, (name, value) in enumerate(references.items()):
        parts.append(_line(axis(value), top, axis(value), bottom, "reference"))
        parts.append(_text(axis(value), top - 6 - 12 * (number % 2), name, "small middle"))
    for place, row in enumerate(rows):
        middle = top + height_of_row * (place + 0.5)
        strong = " strong" if row.is_strong else ""
        parts.append(_text(NAMES - 12, middle + 4, row.name, f"end{strong}"))
        for number, estimate in enumerate(row.estimates):
            if estimate is None:
                continue
            y = middle + 16 * (number - (len(row.estimates) - 1) / 2)
            parts += _dot(axis, y, estimate, f"series{number}")
            parts.append(_text(WIDTH - NUMBERS + 12, y + 4, number_text.bounds(estimate, digits), f"small{strong}"))
    if len(series) > 1:
        parts += _legend(series, NAMES, 12)
    return _svg(WIDTH, bottom + AXIS, title, parts)


def reliability(points: Mapping[str, Sequence[ReliabilityPoint]], title: str) -> str:
    """Observed frequency over predicted probability, one line per label; the diagonal is perfect calibration."""
    size, left, top = 380, 60, 34
    x, y = Axis(0, 1, left, left + size), Axis(0, 1, top + size, top)
    parts = []
    for tick in ticks(0, 1, 5):
        parts += [_line(x(tick), y(0), x(tick), y(1), "grid"), _line(x(0), y(tick), x(1), y(tick), "grid")]
        parts.append(_text(x(tick), y(0) + 18, f"{tick:g}", "small middle"))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", "small end"))
    parts.append(_line(x(0), y(0), x(1), y(1), "reference"))
    parts.append(_text(left + size / 2, y(0) + 38, "predicted probability", "small middle"))
    parts.append(
        f'<text transform="translate({left - 40} {top + size / 2}) rotate(-90)" class="small middle">'
        "observed frequency</text>"
    )
    for number, line in enumerate(points.values()):
        path = " ".join(f"{x(point.predicted)},{y(point.observed.value)}" for point in line)
        parts.append(f'<polyline points="{path}" class="path series{number}"/>')
        for point in line:
            at = x(point.predicted)
            if point.observed.low is not None and point.observed.high is not None:
                parts.append(_line(at, y(point.observed.low), at, y(point.observed.high), f"interval series{number}"))
            label = f"{point.battles} battles: predicted {point.predicted:.3f}, observed {point.observed.value:.3f}"
            parts.append(
                f'<circle cx="{at}" cy="{y(point.observed.value)}" r="4" class="dot series{number}">'
                f"<title>{label}</title></circle>"
            )
    parts += _legend(list(points), left, 14)
    return _svg(left + size + 20, top + size + 50, title, parts)


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    shades: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    title: str,
) -> str:
    """A matrix of cells: `shades` from 0 to 1 colour them, `texts` (one or more lines) are written there."""
    cell_width, cell_height, left, top = max(84, 400 // len(columns)), 58, 150, 34
    parts = []
    for column, name in enumerate(columns):
        parts.append(_text(left + cell_width * (column + 0.5), top - 10, name, "small middle"))
    for row, name in enumerate(rows):
        y = top + cell_height * row
        parts.append(_text(left - 10, y + cell_height / 2 + 4, name, "small end"))
        for column in range(len(columns)):
            x, shade = left + cell_width * column, shades[row][column]
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{cell_width - 2}" height="{cell_height - 2}" rx="4" '
                f'class="cell" fill-opacity="{0.06 + 0.94 * shade:.3f}"/>'
            )
            lines = texts[row][column].split("\n")
            for number, line in enumerate(lines):
                at = y + cell_height / 2 + 5 + 16 * (number - (len(lines) - 1) / 2)
                kind = "middle strong" if number == 0 else "middle small ink"
                parts.append(_text(x + cell_width / 2, at, line, f"{kind}{' light' if shade > 0.5 else ''}"))
    return _svg(left + cell_width * len(columns) + 10, top + cell_height * len(rows) + 10, title, parts)


def _axis(values: Sequence[float]) -> Axis:
    """An axis round `values`, with a little room on both sides."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or 0.05
    return Axis(low - room, high + room, NAMES, WIDTH - NUMBERS)


def _grid(axis: Axis, top: float, bottom: float, label: str) -> list[str]:
    parts = []
    for tick in ticks(axis.low, axis.high):
        parts.append(_line(axis(tick), top, axis(tick), bottom, "grid"))
        parts.append(_text(axis(tick), bottom + 16, f"{tick:g}", "small middle"))
    parts.append(_text((axis.start + axis.end) / 2, bottom + 34, label, "small middle"))
    return parts


def _dot(axis: Axis, y: float, estimate: Estimate, kind: str) -> list[str]:
    """One estimate; without bounds, only its dot."""
    dot = f'<circle cx="{axis(estimate.value)}" cy="{y}" r="4.5" class="dot {kind}"/>'
    if estimate.low is None or estimate.high is None:
        return [dot]
    return [_line(axis(estimate.low), y, axis(estimate.high), y, f"interval {kind}"), dot]


def _legend(names: Sequence[str], x: float, y: float) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        parts.append(f'<circle cx="{x + 5}" cy="{y - 4}" r="4.5" class="dot series{number}"/>')
        parts.append(_text(x + 16, y, name, "small"))
        x += 34 + 6.6 * len(name)
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, *parts, "</svg>"])
