"""Assembles the Triton model repository of an ensemble from its checked members.

All models share one version number, which grows with every change of content. The repository before the last change is
kept whole beside it, so that a roll-back exchanges two folders: an ensemble's configuration belongs to all its
versions, so version folders of different exports could not share one.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from preference_core import tensors
from preference_core.artefacts.artefact import Artefact
from preference_core.artefacts.manifest import REPOSITORY, Manifest, fingerprint, read_manifest, verify
from preference_core.artefacts.replacement import end_exchange, exchange, link_or_copy
from preference_core.battles.encoders import ENCODER_FILES
from preference_core.ensemble.settings import Config, Member
from preference_core.errors import ArtefactError, ParityError
from preference_core.structure import plain, structure
from preference_core.triton.requests import UNCHECKED
from preference_export.artefacts.names import DATA_FILE, MODEL_FILE, PLAN_FILE
from preference_export.checkpoint.job import Job
from preference_export.checkpoint.source import check_made_from
from preference_export.engine.artefact import built_engine
from preference_export.gate.parity import BROKEN, Parity, exceeded, limits_of
from preference_export.graph.member import exported_member
from preference_export.repository.triton_config import model_configs, text_of

CONFIG_FILE = "config.pbtxt"
PROGRAM_FILE = "model.py"
COMBINATION_FILE = "combination.json"

#: What runs each Python model: a module of `preference_core.triton`, and its class.
PROGRAMS = {
    tensors.TOKENIZE: ("tokenize", "Tokenize"),
    tensors.COMBINE: ("combine", "Combine"),
    tensors.COMBINE_SYMMETRIC: ("combine", "Combine"),
}
PROGRAM = '''"""What runs this model is in the `preference_core` of the server's environment."""

import triton_python_backend_utils

from preference_core.triton.{module} import {name}


class TritonPythonModel({name}):
    """What Triton's Python backend looks for."""

    triton = triton_python_backend_utils
'''
#: Stands for the version folder while the content, which does not depend on it, is compared.
VERSION = "VERSION"


@dataclass(frozen=True)
class Assembled:
    """Version now in the repository, and whether this run changed it."""

    version: int
    changed: bool


@dataclass(frozen=True)
class Part:
    """One file to be: text to write, or an existing file with its known SHA-256."""

    text: str | None = None
    source: Path | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Contents:
    """What the repository is to hold: `manifests` are those of the exported members, `engines` of TensorRT's."""

    artefact: Artefact
    parts: dict[str, Part]
    manifests: Mapping[str, Manifest]
    engines: Mapping[str, Manifest]
    parity: Mapping[str, Mapping[str, Any]]
    unchecked: Sequence[str]


def contents_of(
    config: Config, jobs: Sequence[Job[Member]], allow_unchecked: bool = False, check_inputs: bool = False
) -> Contents:
    """What `config.folders.repository` is to hold; nothing is written.

    Raises `ArtefactError` for members that are not checked, unless `allow_unchecked`: then the manifest names them, and
    the server's log will. What did not pass, or would not pass today's limits, is always refused. `check_inputs`
    refuses a member that was exported from another base or adapter than the configuration names now.
    """
    manifests = {job.member.name: exported_member(job) for job in jobs}
    engines = {job.member.name: built_engine(job) for job in jobs if job.member.engine == "tensorrt"}
    for member in config.members:
        exported, engine = manifests[member.name], engines.get(member.name)
        if check_inputs:
            check_made_from(member, exported)
        for manifest in (exported, engine) if engine else (exported,):
            _check_record(member, manifest.parity)
    parity = {name: (engines.get(name) or manifest).parity for name, manifest in manifests.items()}
    unchecked = [name for name, record in parity.items() if not record]
    if unchecked and not allow_unchecked:
        raise ArtefactError(
            f"What would be served of `{unchecked[0]}` was not compared with the original model",
            hint="Run `preference-export check` where it runs (an engine: on its GPU), or give `--unchecked`.",
        )
    parts = _sources(config) | _artefacts(jobs)
    content = fingerprint({"files": {name: part.sha256 for name, part in parts.items()}, "unchecked": unchecked})
    artefact = Artefact(config.folders.repository, REPOSITORY, {"content": content}, details={"version": ...})
    return Contents(artefact, parts, manifests, engines, parity, unchecked)


def assemble(
    config: Config, jobs: Sequence[Job[Member]], *, allow_unchecked: bool = False, check_inputs: bool = False
) -> Assembled:
    """Builds the repository of `contents_of` the same; leaves it alone when its content would be the same."""
    contents = contents_of(config, jobs, allow_unchecked, check_inputs)
    repository, previous = config.folders.repository, config.folders.previous_repository
    end_exchange(repository, previous)
    artefact, parts, manifests, engines = contents.artefact, contents.parts, contents.manifests, contents.engines
    current = artefact.current()
    if current is not None:
        return Assembled(int(current.details["version"]), changed=False)
    configs = model_configs(config)
    for ensemble in (tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC):
        configs[ensemble].parameters[tensors.CONTENT_PARAMETER].string_value = artefact.made_from["content"]
        parts[f"{ensemble}/{CONFIG_FILE}"] = _text(text_of(configs[ensemble]))
    version = 1 + max(map(_latest_version, (repository, previous)))
    made_by = {name: value for m in (*manifests.values(), *engines.values()) for name, value in m.versions.items()}
    with replace(artefact, versions=made_by).draft(keep_as=previous, parity=contents.parity) as draft:
        draft.known_hashes = _write(draft.folder, parts, version)
        for ensemble in (tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC):
            (draft.folder / ensemble / str(version)).mkdir()
        draft.details |= {
            "ensemble": config.name,
            "version": version,
            "labels": list(config.labels),
            "members": list(manifests),
            "made_from": {name: manifest.made_from for name, manifest in manifests.items()},
            "engines": {name: engine.details for name, engine in engines.items()},
            UNCHECKED: contents.unchecked,
        }
    return Assembled(version, changed=True)


def _check_record(member: Member, record: Mapping[str, Any]) -> None:
    """Refuses what a comparison found broken, and what was measured to be above the limits as they are now."""
    if not record:
        return
    broken = record.get(BROKEN)
    if broken is None:
        measured = {field.name: record[field.name] for field in fields(Parity) if field.name in record}
        broken = exceeded(structure(Parity, measured), limits_of(member.precision, member.parity))
    if broken:
        raise ParityError(
            f"Member `{member.name}` does not reproduce the original model: {'; '.join(broken)}",
            hint="Use a wider `precision`, or set `parity` limits you accept; then run `preference-export all`.",
        )


def roll_back(config: Config) -> int:
    """Exchanges the repository with the one before it; returns the version now in place."""
    previous = config.folders.previous_repository
    end_exchange(config.folders.repository, previous)
    if not previous.is_dir():
        raise ArtefactError(f"`{previous}` does not exist: there is nothing to go back to")
    version = verify(previous).details.get("version")
    if not isinstance(version, int):
        raise ArtefactError(f"The manifest of `{previous}` has no `version`", hint="Do not serve what was changed.")
    exchange(config.folders.repository, previous)
    return version


def write_sources(config: Config, output: Path) -> list[Path]:
    """Writes what the repository of `config` holds without engines and tokenizers: configurations and programs."""
    parts = {name: part for name, part in _sources(config).items() if not name.endswith(COMBINATION_FILE)}
    return [output / name for name in _write(output, parts, version=1)]


def _sources(config: Config) -> dict[str, Part]:
    """Everything that follows from configuration and programs alone, by path."""
    parts = {f"{name}/{CONFIG_FILE}": _text(text_of(message)) for name, message in model_configs(config).items()}
    for model, (module, name) in PROGRAMS.items():
        parts[f"{model}/{VERSION}/{PROGRAM_FILE}"] = _text(PROGRAM.format(module=module, name=name))
    rule = json.dumps(plain(config.combination), indent=1, sort_keys=True) + "\n"
    for model in (tensors.COMBINE, tensors.COMBINE_SYMMETRIC):
        parts[f"{model}/{VERSION}/{COMBINATION_FILE}"] = _text(rule)
    return parts


def _artefacts(jobs: Sequence[Job[Member]]) -> dict[str, Part]:
    """The files of every member, by path; what is run goes to the member's model, encoders to `tokenize`."""
    parts = {}
    for job in jobs:
        name, folder, manifest = job.member.name, job.exported, exported_member(job)
        for file in filter(manifest.files.__contains__, ENCODER_FILES):
            path = f"{tensors.TOKENIZE}/{VERSION}/{name}/{file}"
            parts[path] = Part(source=folder / file, sha256=manifest.files[file].sha256)
        run: tuple[str, ...] = (MODEL_FILE, DATA_FILE)
        if job.member.engine == "tensorrt":
            folder, manifest, run = job.engine, built_engine(job), (PLAN_FILE,)
        for file in filter(manifest.files.__contains__, run):
            parts[f"{name}/{VERSION}/{file}"] = Part(source=folder / file, sha256=manifest.files[file].sha256)
    return parts


def _write(folder: Path, parts: Mapping[str, Part], version: int) -> dict[str, str]:
    """Writes every part; returns the known SHA-256 of each file by its final path."""
    hashes = {}
    for name, part in parts.items():
        final = name.replace(VERSION, str(version))
        path = folder / final
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.source is None:
            path.write_text(part.text or "", encoding="utf-8")
        else:
            link_or_copy(part.source, path)
        hashes[final] = part.sha256
    return hashes


def _text(text: str) -> Part:
    return Part(text=text, sha256=hashlib.sha256(text.encode()).hexdigest())


def _latest_version(repository: Path) -> int:
    """The highest version of a repository, from its manifest; 0 when there is none."""
    try:
        return int(read_manifest(repository).details["version"])
    except (ArtefactError, KeyError, ValueError, TypeError):
        return max((int(path.name) for path in repository.glob("*/[0-9]*") if path.name.isdigit()), default=0)
