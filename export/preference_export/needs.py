"""What this machine must have to make an ensemble, checked for all members before anything is fetched or written.

Each check raises one error with a hint. What only the weights can tell is refused where they are read.
"""

import shutil
from importlib.util import find_spec

from preference_core.artefacts.manifest import FILE_NAME
from preference_core.ensemble.settings import Config, Member
from preference_core.errors import SystemFailure, UserError
from preference_export.checkpoint.shapes import stored_weights
from preference_export.engine.runtimes import NO_GPU, gpu_architecture, tensorrt_module
from preference_export.graph.precision import dtypes_of
from preference_export.original.sample import checked_sample, sample_of

GPU_HINT = "Export on a machine with the GPU that will serve it."


def checkpoints(config: Config) -> None:
    """Each base and adapter is a folder, or a hub id at a revision."""
    for member in config.members:
        for location in (member.base_location, *member.adapter_locations):
            location.is_on_hub()


def calibration(config: Config) -> None:
    """ModelOpt is installed, if the ranges of a member were never measured."""
    for member in config.members:
        measured = (config.folders.calibration(member.name) / FILE_NAME).is_file()
        if dtypes_of(member).calibrated and not measured and find_spec("modelopt") is None:
            from preference_export.original.activations import import_modelopt

            import_modelopt()


def sample(config: Config) -> None:
    """There are sample battles; they are read if a member was never exported."""
    (checked_sample if _never_exported(config) else sample_of)(config)


def tensorrt(config: Config) -> None:
    """TensorRT is installed and can build engines here, if it serves a member."""
    for member in _served_by_tensorrt(config):
        builder, logger = tensorrt_module().Builder, tensorrt_module().Logger
        try:
            if gpu_architecture(member) == NO_GPU:
                builder(logger())
        except TypeError as error:  # its bindings' answer to a null builder
            raise UserError(
                f"TensorRT cannot build the engine of `{member.name}`: this machine has no GPU", hint=GPU_HINT
            ) from error


def compared_engines(config: Config) -> None:
    """Engines can also be run, to be compared with the original model."""
    for member in _served_by_tensorrt(config):
        tensorrt_module()
        if gpu_architecture(member) == NO_GPU:
            raise UserError(
                f"The engine of `{member.name}` cannot be compared with the original model: this machine has no GPU",
                hint=f"{GPU_HINT} With `--unchecked` it is served without a comparison.",
            )


def room(config: Config) -> None:
    """The disk has room for members that were never exported, where their bases are on this machine."""
    place = next(folder for folder in config.folders.root.absolute().parents if folder.is_dir())
    needed, free = sum(map(_bytes_written, _never_exported(config))), shutil.disk_usage(place).free
    if needed > free:
        raise SystemFailure(
            f"`{place}` has {free / 1e9:.1f} GB free, the weights to be written take {needed / 1e9:.1f} GB",
            hint="Free space there, or work in a folder on another disk.",
        )


def _never_exported(config: Config) -> list[Member]:
    return [member for member in config.members if not (config.folders.exported(member.name) / FILE_NAME).is_file()]


def _served_by_tensorrt(config: Config) -> list[Member]:
    return [member for member in config.members if member.engine == "tensorrt"]


def _bytes_written(member: Member) -> int:
    """The least that the graph's weights and the engine take; 0 where the base is not on this machine."""
    folder = member.base_location.folder_with("config.json")
    written = dtypes_of(member).bytes_of(stored_weights(folder)) if folder else 0
    return written * (2 if member.engine == "tensorrt" else 1)
