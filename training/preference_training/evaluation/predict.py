"""Predictions of the original models: base and adapter of each member (or its length buckets), one after the other.

What serving is compared with, and what weights are fitted on before anything is exported. Battles go through in order
of length, so that a batch holds little padding; results come back in the order of the file.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, singledispatch
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open

from preference_core.battles.battle import Battle
from preference_core.battles.lengths import read_buckets
from preference_core.ensemble.locations import ADAPTER_WEIGHTS, HEAD
from preference_core.ensemble.settings import Classifier, Config, LengthBaseline, Member, Served
from preference_core.errors import ArtefactError, UserError
from preference_core.progress import StepDone
from preference_core.quiet_libraries import quiet_transformers
from preference_training.evaluation.combination import combination_of_members
from preference_training.evaluation.predictions import Predictions
from preference_training.fit.encoding import collate, tokenizer_of
from preference_training.fit.model import base_folder, check_ids, check_machine, classifier, pooled_logits
from preference_training.fit.recipe import recipe_of
from preference_training.statistics.intervals import Array

Counts = npt.NDArray[np.int64]

#: The same of one member.
Done = Callable[[int, int], None]
#: Logits `[battles, labels]` of one member, and how many tokens each battle lost.
Answer = Callable[[Sequence[Battle]], tuple[Array, Counts]]


def predict(
    config: Config, battles: Mapping[str, Battle], members: Sequence[Member], batch_size: int, report: StepDone
) -> Predictions:
    """Predicts battles, by id, with `members`, combined as the configuration says.

    Where `members` are not all of the configuration's, they are combined with their weights alone. It runs on the GPU
    if there is one. Raises `ArtefactError` when a member has no trained head for the configuration's labels.
    """
    opened = [_open(member, config.labels, batch_size, partial(report, member.name)) for member in members]
    logits, dropped = [], {}
    for member, answer in zip(members, opened, strict=True):
        values, dropped[member.name] = answer(list(battles.values()))
        logits.append(values)
    combination = combination_of_members(config, [member.name for member in members])
    stacked = np.stack(logits, axis=1)
    ensemble = combination.predictions(stacked, map(Battle.special_case, battles.values()))
    by_member = combination.member_probabilities(stacked)
    probabilities = {name: by_member[:, place] for place, name in enumerate(combination.members)}
    return Predictions(tuple(battles), ensemble, probabilities, dropped)


@singledispatch
def _open(member: Served, labels: Sequence[str], batch_size: int, done: Done) -> Answer:
    """Finds and checks what a member needs, so that anything missing is reported before long work begins."""
    raise NotImplementedError(type(member))


@_open.register
def _(member: Classifier, labels: Sequence[str], batch_size: int, done: Done) -> Answer:
    base, adapter = checked_folders(member, len(labels))

    def answer(battles: Sequence[Battle]) -> tuple[Array, Counts]:
        encoded = tokenizer_of(member, base).encode_batch(battles)
        model = load_member(member, base, adapter, len(labels))
        sequences, precision = [tokens.ids for tokens in encoded], recipe_of(member).precision
        check_ids(model, member, sequences)
        logits = _logits(model, sequences, len(labels), batch_size, precision, done)
        return logits, np.array([sum(tokens.dropped) for tokens in encoded], dtype=np.int64)

    return answer


@_open.register
def _(member: LengthBaseline, labels: Sequence[str], batch_size: int, done: Done) -> Answer:
    buckets = read_buckets(Path(member.base), labels)

    def answer(battles: Sequence[Battle]) -> tuple[Array, Counts]:
        rows = buckets.log_probabilities()[[buckets.bucket_of(battle) for battle in battles]]
        done(len(battles), len(battles))
        return rows.astype(np.float64), np.zeros(len(battles), dtype=np.int64)

    return answer


def checked_folders(member: Classifier, labels: int) -> tuple[Path, Path | None]:
    """Where the member's base and adapter are, fetched if necessary.

    Raises `ArtefactError` when neither the adapter nor, without one, the base holds a head for `labels` labels.
    """
    check_machine(member, recipe_of(member))
    base, adapter = base_folder(member), None if member.adapter is None else adapter_folder(member)
    _check_head(member, sorted(base.glob("*.safetensors")) if adapter is None else [adapter / ADAPTER_WEIGHTS], labels)
    return base, adapter


def load_member(member: Classifier, base: Path, adapter: Path | None, labels: int) -> PeftModel:
    """The base as the member's recipe loads it, with its adapter, on the GPU if there is one; ready for inference."""
    with quiet_transformers():
        model = classifier(base, member, recipe_of(member), labels)
        if adapter is not None:  # without one, LoRA that was never trained changes nothing
            model = PeftModel.from_pretrained(model.unload(), str(adapter))
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return model


def adapter_folder(member: Classifier) -> Path:
    """The folder of a member's adapter; fetched if it is on the hub."""
    if len(member.adapters) > 1:
        raise UserError(
            f"`{member.name}` is the mean of {len(member.adapters)} adapters, which only an export makes",
            hint="Export and serve it, and score with `preference-score`.",
        )
    (location,) = member.adapter_locations
    folder = location.fetched().folder
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ArtefactError(
            f"`{location.name}`, the adapter of `{member.name}`, has no {ADAPTER_WEIGHTS}",
            hint="`preference-train fit CONFIG` trains it.",
        )
    return folder


@torch.inference_mode()
def _logits(
    model: PeftModel,
    sequences: Sequence[npt.NDArray[np.int32]],
    labels: int,
    batch_size: int,
    precision: str,
    done: Done,
) -> Array:
    """Logits `[sequences, labels]`, the longest sequences first: what does not fit into memory fails at once."""
    logits = np.empty((len(sequences), labels))
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        logits[rows] = _batch_logits(model, [sequences[row] for row in rows], precision)
        done(first + len(rows), len(order))
    return logits


def _batch_logits(
    model: PeftModel, sequences: Sequence[npt.NDArray[np.int32]], precision: str
) -> npt.NDArray[np.float32]:
    """Logits `[sequences, labels]`."""
    device = next(model.parameters()).device
    batch = {name: values.to(device) for name, values in collate([{"input_ids": ids} for ids in sequences]).items()}
    logits: npt.NDArray[np.float32] = pooled_logits(model, **batch, precision=precision).cpu().numpy()
    return logits


def _check_head(member: Classifier, files: Sequence[Path], labels: int) -> None:
    """Refuses weights without a trained head: Transformers would make a random one and say so only in its log."""
    source = "adapter" if member.adapter is not None else "base"
    for path in files:
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if name == HEAD or name.endswith(f".{HEAD}"):
                        found = tensors.get_slice(name).get_shape()[0]
                        if found != labels:
                            raise ArtefactError(
                                f"The head in the {source} of `{member.name}` has {found} labels, expected {labels}"
                            )
                        return
        except (OSError, SafetensorError) as error:
            raise ArtefactError(f"`{path}` cannot be read: {error}") from error
    raise ArtefactError(
        f"The {source} of `{member.name}` holds no trained head: there is no `{HEAD}`",
        hint='Save the adapter with `modules_to_save=["score"]`, or name one with `adapter`.',
    )
