"""One member on its way through the exporter: its configuration, its checkpoint, and the artefacts made so far."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from preference_core.artefacts.artefact import Artefact, Draft
from preference_core.artefacts.manifest import Manifest
from preference_core.battles.battle import Battle
from preference_core.ensemble.settings import Config, Member
from preference_core.errors import ArtefactError
from preference_core.progress import BytesDone
from preference_export.artefacts.model import Original
from preference_export.checkpoint.shapes import Shapes
from preference_export.checkpoint.source import Source, input_hashes, source_of

M_co = TypeVar("M_co", bound=Member, covariant=True)
Started = Callable[[int], None]


@dataclass
class Job(ABC, Generic[M_co]):
    """One member in one run of the command. `made` holds the manifests of its artefacts by kind, verified once.

    `calibration`, `exported` and `engine` are where its measured ranges, its ONNX model and its TensorRT engine lie.
    What the two kinds of members do differently is abstract here; `preference_export.kinds` has it.
    """

    config: Config
    member: M_co
    made: dict[str, Manifest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folders, name = self.config.folders, self.member.name
        self.calibration, self.exported, self.engine = (
            of(name) for of in (folders.calibration, folders.exported, folders.engine)
        )

    @cached_property
    def source(self) -> Source:
        """Where base and adapters are; found, or fetched, when they are first asked for."""
        return source_of(self.member)

    @cached_property
    def inputs(self) -> dict[str, dict[str, str]]:
        """SHA-256 of the files of base and adapters, by role."""
        return input_hashes(self.source)

    def make(self, artefact: Artefact, fill: Callable[[Draft], None], *, again: bool = False) -> bool:
        """Makes an artefact; False if it was there already, made from the same, and is not to be made `again`.

        Raises `ArtefactError` where files of base or adapters that it is made from changed meanwhile.
        """
        current = None if again else artefact.current()
        if current is None:
            with artefact.draft() as draft:
                fill(draft)
                if "inputs" in artefact.made_from and input_hashes(self.source) != artefact.made_from["inputs"]:
                    raise ArtefactError(
                        f"Files of the base or the adapter of `{self.member.name}` changed while they were read",
                        hint="Wait until they are written, and run it again.",
                    )
        self.made[artefact.kind] = current or draft.manifest
        return current is None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The part of the configuration that decides the content of the exported member."""

    @abstractmethod
    def shapes(self) -> Shapes:
        """How many weights it has."""

    @abstractmethod
    def fill(self, draft: Draft, started: Started, report: BytesDone) -> None:
        """Writes the ONNX and what encodes battles. `started` is told the bytes to come, `report` those written."""

    @abstractmethod
    def original(self, *, again: bool) -> Original:
        """What the exported member is compared with. It may remember its answers, unless it is to answer `again`."""

    def check_reading(self, battles: Iterable[Battle]) -> None:
        """Raises `ArtefactError` where Transformers and the exported tokenizer read one of the battles differently."""

    def calibrate(self) -> bool | None:
        """Measures the ranges of activations; False when they were up to date, None where none are needed."""
        return None

    def merge(self, started: Started, report: BytesDone) -> int | None:
        """Writes the merged checkpoint; the bytes of its weights, or None where there are no weights."""
        return None
