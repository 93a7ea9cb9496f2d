"""A LoRA adapter as PEFT saved it: its configuration, and which of its tensors belongs to which module.

What could not be merged exactly is refused here, by name. The arithmetic of merging is in `merge`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from preference_core.ensemble.locations import ADAPTER_WEIGHTS, HEAD, is_hub_id, read_json
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ConfigError, UserError
from preference_core.structure import structure
from preference_export.checkpoint.adapter_names import CONFIG, base_name, plain_names, wrappers_of
from preference_export.checkpoint.files import DECODER_PREFIX, EMBEDDING, TensorFiles

EMBEDDED = EMBEDDING.removesuffix(".weight")
#: What PEFT adds to `modules_to_save` for a classifier.
HEAD_MODULES = ("classifier", "score")
LORA_SUFFIXES = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
#: Keys of adapter_config.json that decide the merged weights and are honoured.
HONOURED = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        *("peft_type", "task_type"),
        "bias",  # which says what else is saved: every tensor has a place or is refused
    }
)
#: Keys that only matter in training, or describe where the adapter came from.
WITHOUT_EFFECT = frozenset(
    {
        *("lora_dropout", "inference_mode", "runtime_config", "init_lora_weights", "megatron_config", "megatron_core"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying"),
        *("base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
    }
)
MERGE_IT = "Merge it with PEFT (`merge_and_unload`), and export the result as a base without an adapter."
#: Initialisations that leave the base weights as they are. Others (pissa, olora, ...) rewrite them on every load.
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


class AdapterError(UserError):
    """The adapter is incomplete, not supported, or belongs to another base."""


@dataclass(frozen=True)
class LoraTable:
    """What the keys of adapter_config.json that decide something must hold: PEFT itself checks little of it."""

    r: int
    lora_alpha: float
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: int | tuple[int, ...] = ()
    layers_pattern: str | tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        if min((self.r, *self.rank_pattern.values())) < 1:
            raise ConfigError("`r` and ranks in `rank_pattern` are at least 1")
        patterns = (self.target_modules, self.exclude_modules)
        for pattern in (*(text for text in patterns if isinstance(text, str)), *self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"`{pattern}` is not a regular expression: {error}") from error


LORA_KEYS = frozenset(entry.name for entry in dataclasses.fields(LoraTable))


@dataclass(frozen=True)
class Lora:
    """Names of the tensors of one adapted module, its rank and its alpha."""

    a: str
    b: str
    magnitude: str | None
    rank: int
    alpha: int


@dataclass(frozen=True)
class Adapter:
    """`loras` by module name; `saved` maps parameters that replace the base's (the head) to their stored names.

    `named_base` is what the adapter's configuration calls the base it was trained on; `wrappers` is what was left out
    of the names of its tensors.
    """

    config: LoraConfig
    named_base: str
    files: TensorFiles
    loras: Mapping[str, Lora]
    saved: Mapping[str, str]
    wrappers: tuple[str, ...] = ()

    @property
    def embedding_rows(self) -> int | None:
        """Rows of the embedding that it brings, which training may have resized; None where it brings none."""
        return self.files.tensors[self.saved[EMBEDDING]].shape[0] if EMBEDDING in self.saved else None


def read_adapter(folder: Path, linear_modules: Iterable[str]) -> Adapter:
    """Reads and checks an adapter for a base with these linear modules; no tensor data is read yet."""
    check_folder(folder)
    table = read_json(folder / CONFIG)
    config = _config(folder, table)
    files = TensorFiles(folder, ADAPTER_WEIGHTS)
    names = plain_names(files)
    # PEFT saves the head of a classifier whether the configuration names it or not; early versions never name it.
    heads = HEAD_MODULES if config.task_type == "SEQ_CLS" else ()
    parts, saved = _sorted_tensors(folder, names, {*(config.modules_to_save or ()), *heads}, config.bias != "none")
    if HEAD not in saved:
        others = [name for name in saved if not name.startswith(DECODER_PREFIX)]
        raise AdapterError(
            f"Adapter `{folder}` (task type {config.task_type}) has no classification head: no tensor `{HEAD}`",
            hint=f"It holds `{others[0]}`: a head is one linear layer called `score`, and PEFT wraps a model once."
            if others
            else "Train it with task_type SEQ_CLS, so that PEFT saves `score` in modules_to_save.",
        )
    adaptable = [name for name in (EMBEDDED, *linear_modules) if f"{name}.weight" not in saved or name in parts]
    _check_targets(folder, config, parts, adaptable)
    loras = {module: _lora(folder, module, tensors, config) for module, tensors in parts.items()}
    named_base = str(table.get("base_model_name_or_path") or "")
    return Adapter(config, named_base, files, loras, saved, tuple(wrappers_of(names)))


def check_named_base(adapter: Adapter, member: Classifier) -> None:
    """Refuses an adapter that names another base on the hub: merged into one of equal shapes, it would look right.

    Folders say nothing about what is in them, so that only hub ids are compared. `adapter_base` accepts a name.
    """
    named = adapter.named_base
    both_on_hub = is_hub_id(named) and is_hub_id(member.base)
    if not both_on_hub or named.casefold() in (member.base.casefold(), (member.adapter_base or "").casefold()):
        return
    raise AdapterError(
        f"Adapter `{adapter.files.folder}` was trained on `{named}`; the base of `{member.name}` is `{member.base}`",
        hint=f'If the weights are the same, say so: `adapter_base = "{named}"`.',
    )


def check_no_adapter(base: Path) -> None:
    """Refuses a base that is, or still holds, an adapter: Transformers would load that, and the base that it names."""
    if (base / CONFIG).is_file():
        raise AdapterError(
            f"The base `{base}` holds an `{CONFIG}`: Transformers takes it for an adapter",
            hint=f"If the adapter was merged into it, remove `{CONFIG}` and `{ADAPTER_WEIGHTS}` from that folder; if "
            "not, name the folder as `adapter`, and the base of its training as `base`.",
        )


def check_folder(folder: Path) -> None:
    """Raises unless it holds an adapter. PEFT writes one with a name of its own into a sub-folder of that name."""
    if (folder / CONFIG).is_file():
        return
    below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    raise AdapterError(
        f"`{folder}` holds no adapter: there is no `{CONFIG}`",
        hint=f"There is one in `{folder / below[0]}`: name that folder, or copy it out." if below else None,
    )


def _config(folder: Path, table: Mapping[str, Any]) -> LoraConfig:
    if table.get("peft_type") != "LORA":
        raise AdapterError(f"Adapter `{folder}` is of type `{table.get('peft_type')}`", hint="Only LORA is supported.")
    defaults = {entry.name: _default(entry) for entry in dataclasses.fields(LoraConfig)}
    for key, value in table.items():
        if key in HONOURED | WITHOUT_EFFECT or value in (None, False, [], {}) or value == defaults.get(key):
            continue
        raise AdapterError(
            f"Adapter `{folder}` uses `{key}` = `{value}`, which is not supported",
            hint=MERGE_IT,
        )
    if table.get("init_lora_weights", True) not in INITIALISATIONS:
        raise AdapterError(
            f"Adapter `{folder}` was initialised by `{table['init_lora_weights']}`, which rewrites the base weights",
            hint="Convert it: `save_pretrained(..., path_initial_model_for_weight_conversion=...)` in PEFT.",
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if key in table and table[key] is None:
            raise AdapterError(
                f"`{key}` in `{folder / CONFIG}` is null, expected an object: PEFT cannot load it",
                hint="Write `{}` in its place.",
            )
    try:
        structure(LoraTable, {key: value for key, value in table.items() if key in LORA_KEYS and value is not None})
        config = LoraConfig(**{key: value for key, value in table.items() if key in HONOURED})
    except (ConfigError, ValueError) as error:
        raise AdapterError(f"`{folder / CONFIG}` cannot be used: {error}") from error
    return config


def _default(entry: "dataclasses.Field[Any]") -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _sorted_tensors(
    folder: Path, names: Mapping[str, str], modules_to_save: Iterable[str], biases: bool
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """LoRA parts by module, and saved parameters, which are also `biases`. Any tensor that is neither is refused."""
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for full, stored in names.items():
        name = base_name(full)
        suffix = next((suffix for suffix in LORA_SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None and full != name:
            parts.setdefault(name.removesuffix(suffix), {})[LORA_SUFFIXES[suffix]] = stored
        elif full != name and (
            name == EMBEDDING or is_saved(name, modules_to_save) or (biases and name.endswith(".bias"))
        ):
            saved[name] = stored
        else:
            raise AdapterError(
                f"Adapter `{folder}` holds the tensor `{stored}`, which has no place in a merged model",
                hint=f"LoRA, DoRA, biases and modules_to_save are supported. {MERGE_IT}",
            )
    return parts, saved


def is_saved(name: str, modules_to_save: Iterable[str]) -> bool:
    """Whether PEFT saves this parameter whole: some module that holds it ends in one of the names, as text."""
    parts = name.split(".")
    holders = (".".join(parts[:end]) for end in range(1, len(parts)))
    return any(holder.endswith(tuple(modules_to_save)) for holder in holders)


def _check_targets(folder: Path, config: LoraConfig, parts: Mapping[str, object], modules: Iterable[str]) -> None:
    """PEFT's own rule says which modules the adapter must have; more or fewer means another base or a torn file."""
    expected = {module for module in modules if check_target_module_exists(config, module)}
    hint = "It was trained on another architecture or size, or its file is incomplete."
    for module in sorted(parts.keys() - expected):
        raise AdapterError(f"Adapter `{folder}` adapts `{module}`, which this base does not have", hint=hint)
    for module in sorted(expected - parts.keys()):
        raise AdapterError(f"Adapter `{folder}` has no tensors for its target `{module}`", hint=hint)


def _lora(folder: Path, module: str, tensors: Mapping[str, str], config: LoraConfig) -> Lora:
    needed = {"a", "b"} | ({"magnitude"} if config.use_dora else set())
    if needed != tensors.keys():
        odd = sorted(needed ^ tensors.keys())[0]
        problem = "lacks" if odd in needed else "has an unexpected"
        raise AdapterError(
            f"Adapter `{folder}` {problem} part `{odd}` of `{module}`", hint="Its file is incomplete; save it again."
        )
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    return Lora(
        a=tensors["a"],
        b=tensors["b"],
        magnitude=tensors.get("magnitude"),
        rank=ranks.get(get_pattern_key(list(ranks), module), config.r),
        alpha=alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha),
    )
