"""One member on its way through the exporter: its configuration, its checkpoint, and the artefacts made so far."""

from dataclasses import dataclass, field
from functools import cached_property

from preference_core.artefacts.manifest import Manifest
from preference_core.ensemble.settings import Classifier, Config, Member
from preference_export.checkpoint.source import Source, input_hashes, source_of


@dataclass
class Job:
    """One member in one run of the command. `made` holds the manifests of its artefacts by kind, verified once.

    `calibration`, `exported` and `engine` are where its measured ranges, its ONNX model and its TensorRT engine lie.
    """

    config: Config
    member: Member
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

    @property
    def classifier(self) -> Classifier:
        """The member, for what is done to classifiers only."""
        assert isinstance(self.member, Classifier)
        return self.member
