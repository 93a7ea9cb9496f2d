"""The gate of a member: whether what will be served was compared with the original model, and what that found.

A TensorRT engine is compared where there is a GPU; elsewhere its graph is, which does not stand in for the engine. A
manifest's parity record says what was measured, or what was found broken; without one, nothing was compared.
`compare` compares, and is imported when there is something to compare.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preference_core.artefacts.artefact import changes
from preference_core.artefacts.manifest import Manifest, sha256_of, write_manifest
from preference_core.ensemble.settings import Member
from preference_core.errors import ParityError, UserError
from preference_core.structure import plain
from preference_export.artefacts.names import MODEL_FILE, PLAN_FILE
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.job import Job
from preference_export.engine.artefact import built_engine
from preference_export.engine.runtimes import (
    CPU_PROVIDER,
    NO_GPU,
    gpu_architecture,
    onnxruntime_version,
    provider_for,
    tensorrt_module,
    use_gpu_of,
)
from preference_export.gate.parity import BROKEN, limits_of
from preference_export.graph.member import exported_member
from preference_export.graph.precision import dtypes_of
from preference_export.original.sample import sample_of


class CannotCheckError(UserError):
    """This machine cannot run the artefact."""


@dataclass(frozen=True)
class Subject:
    """An artefact that this machine can run: the folder whose manifest takes the record, and what runs its file."""

    folder: Path
    manifest: Manifest
    file: str
    runtime: str


def subject_of(job: Job[Member]) -> Subject:
    """What can be compared here: the engine on a GPU, else the graph. `CannotCheckError` when neither."""
    member = job.member
    gpu = gpu_architecture(member)
    if member.engine == "tensorrt" and gpu != NO_GPU:
        runtime = f"tensorrt {tensorrt_module().__version__} {gpu}"
        return Subject(job.engine, built_engine(job), PLAN_FILE, runtime)
    provider = provider_for(member)
    if provider == CPU_PROVIDER and not dtypes_of(member).runs_on_cpu:
        raise CannotCheckError(
            f"Member `{member.name}` cannot be compared with the original model on this machine: "
            "ONNX Runtime does not run bf16 on a CPU",
            hint="Run `preference-export check` where the engine runs, or serve it unchecked with `--unchecked`.",
        )
    return Subject(job.exported, exported_member(job), MODEL_FILE, f"onnxruntime {onnxruntime_version()} {provider}")


def check_member(job: Job[Member], *, again: bool = False) -> tuple[bool, Subject]:
    """Compares a member with the original and records it; False if that was done before, and is not done `again`.

    Every sample battle is compared in both orders of its responses. Above the limits: `ParityError`, and the record
    says what is broken.
    """
    subject = subject_of(job)
    basis = _basis(job, subject)
    if not again and not _outdated(subject, basis):
        return False, subject
    from preference_export.gate.compare import compare

    use_gpu_of(job.member)
    measured, broken = compare(job, subject.file, again=again)
    record = {"basis": basis, **({BROKEN: broken} if broken else measured)}
    manifest = job.made[subject.manifest.kind] = write_manifest(
        subject.folder, replace(subject.manifest, parity=record)
    )
    if broken:
        raise ParityError(
            f"Member `{job.member.name}` does not reproduce the original model: {'; '.join(broken)}",
            hint="Nothing was put into the repository. Use a wider `precision`, or set `parity` limits you accept.",
        )
    return True, replace(subject, manifest=manifest)


def why_check(job: Job[Member]) -> str:
    """Why a member has to be compared; empty where that was done before."""
    subject = subject_of(job)
    return _outdated(subject, _basis(job, subject))


def _basis(job: Job[Member], subject: Subject) -> dict[str, Any]:
    """What the result of a comparison depends on, apart from the artefact and the original."""
    return {
        "limits": plain(limits_of(job.member.precision, job.member.parity)),
        "sample": sha256_of(sample_of(job.config)),
        "file": subject.file,
        "runtime": subject.runtime,
        "versions": versions(),
    }


def _outdated(subject: Subject, basis: Mapping[str, Any]) -> str:
    known = subject.manifest.parity
    if BROKEN in known:
        return "it did not pass"
    return "; ".join(changes(known["basis"], basis)) if "basis" in known else "not compared yet"
