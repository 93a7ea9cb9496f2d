"""Measures what no command does, on battles that nothing was trained, calibrated or chosen on: how far the server's
answers are from the original models', and what each precision costs.

Each member is asked every battle alone, in each precision in turn and by one thread, so that ratios of CPU time hold on
a machine that others use. Writes Markdown tables: what docs/real.md has.
"""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from preference_core.artefacts.manifest import verify
from preference_core.battles.encoders import encoder_from_folder
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.metrics import log_loss
from preference_core.ensemble.settings import Classifier, Config
from preference_export.artefacts.names import MODEL_FILE
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.parity import BROKEN, compare
from preference_training.battles.rows import read_labelled
from preference_training.evaluation.predictions import ENSEMBLE, read_predictions

PACKAGES = ("torch", "transformers", "peft", "onnxruntime")
SERVER_TABLE = ("predictions of", "max probability difference", "mean", "decisions flipped")
PRECISION_TABLE = (
    *("member", "precision", "max logit difference", "mean", "max probability difference", "mean"),
    *("decisions flipped", "change in log loss", "size", "speed"),
)


def main(
    configs: Annotated[
        list[Path], typer.Argument(help="The same ensemble in several precisions, the reference first.")
    ],
    server: Annotated[Path, typer.Option(help="What the server answered for the test battles of the first one.")],
    original: Annotated[Path, typer.Option(help="What the original models predict for them.")],
    output: Annotated[Path, typer.Option(help="Markdown.")],
) -> None:
    """Writes OUTPUT."""
    ensembles = [load_config(path) for path in configs]
    members = [member.name for member in ensembles[0].members if isinstance(member, Classifier)]
    with ProcessPoolExecutor(len(members), get_context("spawn")) as pool:
        rows = [row for table in pool.map(precision_rows, [ensembles] * len(members), members) for row in table]
    parts = [
        machine(),
        table(SERVER_TABLE, server_rows(ensembles[0], server, original)),
        table(PRECISION_TABLE, rows),
    ]
    output.write_text("\n".join(parts), encoding="utf-8")


def machine() -> str:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{len(os.sched_getaffinity(0))} x {model}; Python {platform.python_version()}, {versions}\n"


def server_rows(config: Config, server: Path, original: Path) -> list[tuple[str, ...]]:
    """How far two files of predictions are apart, for each member and the ensemble."""
    theirs = read_predictions(original, config)
    ours = read_predictions(server, config).in_order_of(theirs.ids)
    pairs = {name: (ours.members[name], theirs.members[name]) for name in ours.members}
    rows = []
    for name, (one, other) in {**pairs, ENSEMBLE: (ours.ensemble, theirs.ensemble)}.items():
        difference = np.abs(one - other)
        flips = int((one.argmax(1) != other.argmax(1)).sum())
        rows.append((name, f"{difference.max():.2g}", f"{difference.mean():.2g}", f"{flips} of {len(one)}"))
    return rows


def precision_rows(configs: Sequence[Config], name: str) -> list[tuple[str, ...]]:
    """One row for each configuration: the member `name` beside the same member of the first one."""
    test = configs[0].data.test
    assert test is not None
    data = read_labelled(Path(test), configs[0].labels)
    folders = {config.member(name).precision: config.folders.exported(name) for config in configs}
    reference = next(iter(folders))
    sequences = [battle.ids for battle in encoder_from_folder(folders[reference]).encode_batch(data.battles)]
    logits, seconds = answers(
        {key: OnnxClassifier(folder / MODEL_FILE, 1) for key, folder in folders.items()}, sequences
    )
    targets, expected = data.targets.tolist(), logits[reference]
    rows = []
    for precision, folder in folders.items():
        parity = compare(logits[precision], expected, targets)
        ours, theirs = (softmax(values.astype(np.float64)) for values in (logits[precision], expected))
        rows.append(
            (
                name,
                f"`{precision}`{refused(folder)}",
                f"{parity.max_logit_difference:.2g}",
                f"{parity.mean_logit_difference:.2g}",
                f"{parity.max_probability_difference:.2g}",
                f"{np.abs(ours - theirs).mean():.2g}",
                f"{parity.decision_flips} of {parity.sequences}",
                f"{log_loss(ours, targets) - log_loss(theirs, targets):+.1e}",
                f"{sum(file.stat().st_size for file in folder.glob(f'{MODEL_FILE}*')) / 1e6:.0f} MB",
                f"{seconds[reference] / seconds[precision]:.2f} x",
            )
        )
    return rows


def refused(folder: Path) -> str:
    """Says so where the comparison of the export refused a member; only its graph is measured here all the same."""
    return " (refused)" if BROKEN in verify(folder).parity else ""


def answers(
    classifiers: Mapping[str, OnnxClassifier], sequences: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Logits `[sequences, labels]` and CPU seconds of each classifier."""
    logits: dict[str, list[np.ndarray]] = {name: [] for name in classifiers}
    seconds = dict.fromkeys(classifiers, 0.0)
    for ids in sequences:
        for name, classifier in classifiers.items():
            begun = time.thread_time()
            logits[name].append(classifier.logits([ids]))
            seconds[name] += time.thread_time() - begun
    return {name: np.concatenate(rows) for name, rows in logits.items()}, seconds


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    typer.run(main)
