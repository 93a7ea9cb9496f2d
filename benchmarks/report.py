"""What was measured: tables as Markdown, plots as PNG, JSON for programs, and one HTML page with all of it."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from compare import Comparison

matplotlib.use("Agg")
from matplotlib import pyplot

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  #: title, columns, rows
STYLE = "body{font:15px sans-serif;margin:2em;max-width:60em}td,th{padding:.2em .8em;text-align:left}pre{overflow:auto}"


def table_of(comparison: Comparison, own: str) -> Table:
    """Everybody's median and range, and how they compare with `own`, one of them."""
    mine = comparison.result(own).median
    rows = []
    for result in comparison.results:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        rows.append(
            [
                result.name,
                f"{result.median:.1f} ({min(result.seconds):.1f} to {max(result.seconds):.1f})",
                f"{comparison.battles / result.median:.2f}",
                "1" if result.name == own else f"{result.median / mine:.2f} x",
                f"{comparison.share(result):.0%}",
                f"{result.max_probability_difference:.1e}",
                versions,
            ]
        )
    rates = " to ".join(f"{rate / 1e9:.0f}" for rate in (min(comparison.rates), max(comparison.rates)))
    title = (
        f"{comparison.title}: {comparison.battles} battles, {comparison.tokens} tokens of all members, median of "
        f"{len(comparison.rates)} rounds (range); ONNX Runtime's FP32 GEMM: {rates} billion operations/s"
    )
    columns = ("who", "seconds", "battles/s", "time against own", "of GEMM rate", "max difference", "versions")
    return title, columns, rows


def markdown(table: Table) -> str:
    """A table as it stands in docs/performance.md."""
    title, columns, rows = table
    lines = [columns, ["---"] * len(columns), *rows]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write(
    folder: Path,
    machine: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    tables: Sequence[Table],
    curves: Mapping[str, Mapping[str, Mapping[float, float]]],
) -> None:
    """Writes `bench.json`, `bench.html` and a PNG for each comparison and curve into `folder`.

    `curves` are lines by title (`seconds against tokens`) and name, y by x.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "tables": [{"title": title, "columns": columns, "rows": rows} for title, columns, rows in tables],
        "curves": curves,
    }
    (folder / "bench.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    pictures = [_bars(folder, comparison) for comparison in comparisons]
    pictures += [_lines(folder, title, lines) for title, lines in curves.items()]
    parts = [_html(table) for table in tables]
    parts += [
        f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in pictures
    ]
    facts = html.escape(json.dumps(machine, indent=1))
    page = f"<!doctype html><meta charset=utf-8><title>Benchmark</title><style>{STYLE}</style><h1>Benchmark</h1>"
    (folder / "bench.html").write_text(page + "\n".join(parts) + f"<pre>{facts}</pre>\n", encoding="utf-8")


def _html(table: Table) -> str:
    title, columns, rows = table
    head = "".join(f"<th>{html.escape(column)}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}{body}</table>"


def _bars(folder: Path, comparison: Comparison) -> Path:
    results = comparison.results[::-1]
    medians = [result.median for result in results]
    ranges = [
        [result.median - min(result.seconds) for result in results],
        [max(result.seconds) - result.median for result in results],
    ]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.45 * len(results)), layout="constrained")
    axes.barh([result.name for result in results], medians, xerr=ranges, capsize=3)
    axes.set_xlabel(f"seconds for {comparison.battles} battles")
    axes.set_title(comparison.title)
    return _saved(folder, comparison.title, figure)


def _lines(folder: Path, title: str, lines: Mapping[str, Mapping[float, float]]) -> Path:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    y, x = title.split(" against ")
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axes.legend()
    return _saved(folder, title, figure)


def _saved(folder: Path, title: str, figure: Any) -> Path:
    path = folder / f"{''.join(letter if letter.isalnum() else '_' for letter in title.lower())}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
