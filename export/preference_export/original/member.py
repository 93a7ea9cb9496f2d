"""The original model of a member: what its artefacts are compared with, and calibrated on."""

import math

from preference_core.ensemble.settings import Classifier
from preference_export.artefacts.model import Model
from preference_export.checkpoint.files import TensorFiles
from preference_export.checkpoint.job import Job
from preference_export.checkpoint.source import Source
from preference_export.graph.make import open_member
from preference_export.original.layered import LayeredReference
from preference_export.original.memory import device_in_use, fits
from preference_export.original.whole import Reference

FLOAT_BYTES = 4


def reference_of(job: Job[Classifier]) -> Model:
    """What a member is compared with: the original model, whole where it fits into memory."""
    source, weights = job.source, open_member(job).weights
    parameters = sum(math.prod(shape) for shape in weights.shapes.values())
    if len(source.adapters) > 1 or fits(FLOAT_BYTES * parameters, device_in_use()):
        return _whole(source, weights.base, len(job.config.labels))
    adapter = source.adapters[0].folder if source.adapters else None
    return LayeredReference(source.base.folder, adapter, len(job.config.labels), weights.base)


def original_of(job: Job[Classifier]) -> Reference:
    """The original model, whole."""
    return _whole(job.source, open_member(job).weights.base, len(job.config.labels))


def _whole(source: Source, base: TensorFiles, labels: int) -> Reference:
    """A base that is not what `transformers` would load is handed over tensor by tensor."""
    stored = None if type(base) is TensorFiles else base
    return Reference(source.base.folder, [adapter.folder for adapter in source.adapters], labels, stored)
