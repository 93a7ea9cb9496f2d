"""Files of battles and of predictions, in the published formats."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ("prompt", "response_a", "response_b")
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_battles(path: str | Path, battles: Iterable[tuple[Any, str, str, str]]) -> None:
    """Battles without labels: id, prompt and both responses of each."""
    write_csv(path, ["id", *TEXTS], battles)


def write_judged(path: str | Path, battles: Iterable[tuple[Any, str, str, str, int]]) -> None:
    """Battles with labels: id, prompt, both responses, and the index of the label."""
    rows = ([*texts, *(int(target == label) for label in range(3))] for *texts, target in battles)
    write_csv(path, ["id", *TEXTS, *LABELS], rows)


def write_predictions(
    path: str | Path,
    members: Mapping[str, Any],
    *,
    ids: Iterable[Any] | None = None,
    ensemble: Any = None,
    dropped: Sequence[int] | None = None,
) -> None:
    """Predictions as the client writes them: `members` are probabilities `[battles, 3]` by name.

    The ensemble's are their mean unless given; `dropped` are the tokens of each battle that every member left out.
    """
    header = ["id", *LABELS, *(f"{name}_{label}" for name in members for label in LABELS)]
    ensemble = np.mean(list(members.values()), axis=0) if ensemble is None else ensemble
    rows = np.concatenate([ensemble, *members.values()], axis=1).tolist()
    if dropped is not None:
        header += [f"{name}_dropped_tokens" for name in members]
        rows = [row + [int(tokens)] * len(members) for row, tokens in zip(rows, dropped, strict=True)]
    ids = range(len(rows)) if ids is None else ids
    write_csv(path, header, ([name, *row] for name, row in zip(ids, rows, strict=True)))
