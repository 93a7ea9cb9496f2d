"""The two kinds of members, each of which knows how it is exported and compared. `jobs_of` is where a kind is chosen.

Libraries that take seconds are imported when there is something to make.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preference_core.artefacts.artefact import Draft
from preference_core.artefacts.replacement import replaced_folder
from preference_core.battles.battle import Battle
from preference_core.battles.lengths import LENGTHS_FILE, read_buckets, write_buckets
from preference_core.battles.template import template_of
from preference_core.ensemble.settings import Classifier, Config, LengthBaseline, Member
from preference_core.progress import BytesDone
from preference_core.structure import plain
from preference_core.tensors import ENGINE_INPUTS
from preference_export.artefacts.model import Original
from preference_export.artefacts.names import WEIGHT_BYTES
from preference_export.checkpoint.job import Job, Started
from preference_export.checkpoint.shapes import Shapes, shapes_of
from preference_export.graph.precision import dtypes_of
from preference_export.original.calibration import calibrate_member

READ_BY = ("template", "special_tokens", "max_tokens", "truncation", "base_rounding")


def jobs_of(config: Config) -> list[Job[Member]]:
    """A job for each member."""
    return [
        LengthJob(config, member) if isinstance(member, LengthBaseline) else ClassifierJob(config, member)
        for member in config.members
    ]


class ClassifierJob(Job[Classifier]):
    """A member that reads text."""

    @property
    def settings(self) -> dict[str, Any]:
        values = {key: plain(getattr(self.member, key)) for key in READ_BY}
        return {**_interface(self.config), "dtypes": dtypes_of(self.member).described, **values}

    def shapes(self) -> Shapes:
        return shapes_of(self.member, len(self.config.labels))

    def fill(self, draft: Draft, started: Started, report: BytesDone) -> None:
        from preference_export.graph.make import fill

        fill(draft, self, started, report)

    def original(self, *, again: bool) -> Original:
        from preference_export.original.member import reference_of
        from preference_export.original.remembered import RememberedOriginal

        return RememberedOriginal(self, lambda: reference_of(self), again=again)

    def check_reading(self, battles: Iterable[Battle]) -> None:
        from preference_export.checkpoint.tokenizer_check import auto_tokenizer, check_same_ids, tokenizer_of

        checkpoint, template = tokenizer_of(self.source), template_of(self.member.template)
        check_same_ids(checkpoint, auto_tokenizer(checkpoint), map(template.render, battles))

    def calibrate(self) -> bool | None:
        return calibrate_member(self) if dtypes_of(self.member).calibrated else None

    def merge(self, started: Started, report: BytesDone) -> int:
        from preference_export.checkpoint.tokenizer_check import tokenizer_of
        from preference_export.checkpoint.write import write_checkpoint
        from preference_export.graph.make import open_member

        opened, base, tokenizer = open_member(self), self.source.base.folder, tokenizer_of(self.source).folder
        with replaced_folder(self.config.folders.merged(self.member.name)) as folder:
            started(opened.merged_bytes)
            dtype = opened.dtypes.dtype
            write_checkpoint(folder, base, tokenizer, opened.weights, self.config.labels, dtype, report)
        return opened.merged_bytes


class LengthJob(Job[LengthBaseline]):
    """The length baseline, whose buckets are its whole model."""

    @property
    def settings(self) -> dict[str, Any]:
        return {**_interface(self.config), "kind": self.member.kind}

    def shapes(self) -> Shapes:
        """Its buckets may not be fitted yet."""
        folder, labels = Path(self.member.base), self.config.labels
        fitted = (folder / LENGTHS_FILE).is_file()
        table = len(read_buckets(folder, labels).probabilities) * len(labels) if fitted else 0
        known_from = "its buckets" if fitted else "nothing: the buckets are not fitted yet"
        return Shapes(known_from, self.member.kind, 0, 0, 0, 0, others=table, largest=0, bytes_in=4 * table)

    def fill(self, draft: Draft, started: Started, report: BytesDone) -> None:
        from preference_export.graph.length_buckets import write_onnx

        buckets = read_buckets(self.source.base.folder, self.config.labels)
        write_buckets(draft.folder, buckets)
        draft.known_hashes = write_onnx(draft.folder, buckets)
        draft.details |= {"architecture": self.member.kind, WEIGHT_BYTES: buckets.log_probabilities().nbytes}

    def original(self, *, again: bool) -> Original:
        from preference_export.original.lengths import LengthReference

        return LengthReference(read_buckets(self.source.base.folder, self.config.labels))


def _interface(config: Config) -> dict[str, Any]:
    """What an exported member must agree on with the repository it is put into."""
    return {"labels": list(config.labels), "inputs": [tensor.name for tensor in ENGINE_INPUTS]}
