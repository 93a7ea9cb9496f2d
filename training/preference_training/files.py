"""The files that commands read and write: what is missing or in the way is refused before long work begins."""

from pathlib import Path
from shlex import quote

from preference_core.ensemble.locations import is_hub_id
from preference_core.ensemble.settings import Classifier, Config
from preference_core.errors import SystemFailure, UserError
from preference_training.synthetic.generate import generation_of


def check_input(config: Config, path: Path, key: str) -> None:
    """Raises `UserError` where there is no `path`, which `config` names at `key`; its hint says what writes it."""
    if path.exists():
        return
    command = _command_that_writes(config, path)
    hint = f"It is `{key}` of the configuration." if command is None else f"`{command} CONFIG` writes it."
    raise UserError(f"There is no file or folder `{path}`", hint)


def check_training_inputs(config: Config, member: Classifier) -> None:
    """`check_input` of the battles and the base that an adapter of `member` is trained from."""
    for key in ("train", "validation"):
        battles = getattr(config.data, key)
        if battles is not None:
            check_input(config, Path(battles), f"data.{key}")
    if not is_hub_id(member.base):
        check_input(config, Path(member.base), f"member.{member.name}.base")


def check_target(path: Path, suffix: str, *, make_folder: bool = False) -> None:
    """Refuses a file that cannot be written. The folder it goes into must be there, or is made with `make_folder`."""
    if path.suffix != suffix:
        raise UserError(f"The output is `{path}`", hint=f"Its name must end with {suffix}.")
    if path.is_dir():
        raise UserError(f"The output `{path}` is a folder", hint="Name a file.")
    if make_folder:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemFailure(f"The folder `{path.parent}` cannot be made: {error}") from error
    elif not path.parent.is_dir():
        raise UserError(f"There is no folder `{path.parent}`", hint=f"Make it: `mkdir -p {quote(str(path.parent))}`.")


def _command_that_writes(config: Config, path: Path) -> str | None:
    """The command that writes a file or folder of `config`; None where it is the user's own."""
    generation = generation_of(config)
    if generation.split is not None and path.parent == config.folders.data:
        return "preference-train split"
    tiny = [Path(member.base) for member in config.members if member.name in generation.tiny]
    generated = path.parent == config.folders.data or path in (config.folders.source, *tiny)
    return "preference-train generate" if generation.battles is not None and generated else None
