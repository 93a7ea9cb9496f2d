"""A first configuration, written from what adapters and bases say of themselves: `preference-export init`.

What is known is a key, what is likely a key with a comment that says so, and what cannot be known a commented line with
FILL IN. It reads configurations, tokenizers and headers, and no weights.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preference_core.battles.template import PRESETS
from preference_core.battles.tokenisation import TOKENIZER_FILE
from preference_core.ensemble.locations import HEAD, Checkpoint, is_hub_id, read_json
from preference_core.ensemble.member_tokenizer import TOKENIZER_SETTINGS, has_tokenizer, settings_of_checkpoint
from preference_core.ensemble.published import BASES
from preference_core.ensemble.settings import LABELS_THREE_WAY, Classifier, Config
from preference_core.ensemble.special_tokens import template_for, voices_of
from preference_core.errors import ArtefactError, ConfigError, UserError
from preference_core.structure import structure
from preference_core.tensors import RESERVED_MODEL_NAMES
from preference_export.checkpoint.adapter import check_folder
from preference_export.checkpoint.adapter_names import CONFIG, brought_by
from preference_export.checkpoint.files import TensorFiles
from preference_export.checkpoint.head_labels import are_given, names_of
from preference_export.checkpoint.tokenizer_check import around_of, auto_tokenizer

FILL_IN = "FILL IN"
#: Where nothing says how long the texts of training were.
USUAL_TOKENS = 2048
COMMIT = re.compile(r"[0-9a-f]{40}")
#: Names of folders that say nothing of what is in them.
NAMELESS = re.compile(r"(adapters?|checkpoint\d*|lora|models?|outputs?|final|best|last|results?)?")
HEADER = """\
# Written by `preference-export init`. Paths are relative to the working directory.
#
# 1. Lines with FILL IN: take the `#` away, and write what they ask for. Lines with GUESS: compare with your training.
# 2. preference-export all {config}
# 3. preference-export check {config} --against own_predictions.csv --battles battles.csv
#    Do not skip this: words round the fields, order of labels and truncation stand in no checkpoint.
#
# Every other key: docs/configuration.md.
"""


@dataclass
class Page:
    """Lines of the file so far, and what is left to fill in."""

    lines: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    owner: str = ""

    def key(self, name: str, value: Any, comment: str = "") -> None:
        """A line with a key; `value` is text, a number, a list, or TOML that is ready (`Toml`)."""
        text = value if isinstance(value, Toml) else json.dumps(value, ensure_ascii=False)
        self.lines.append(f"{name} = {text}" + (f"    # {comment}" if comment else ""))

    def ask(self, name: str, example: str, comment: str) -> None:
        """A commented line for what cannot be known."""
        self.lines.append(f"# {name} = {example}    # {FILL_IN}: {comment}")
        self.open.append(f"{self.owner}`{name}`: {comment}")


class Toml(str):
    """A value as TOML has it."""


@dataclass(frozen=True)
class Found:
    """What is known of one member. `named` is the base that its adapter names; `folder` where the base is, if here."""

    adapter: Path | None
    base: str
    named: str
    revision: str | None
    folder: Path | None
    settings: dict[str, Any]
    labels: tuple[str, ...]
    head: int

    @property
    def tokenizer(self) -> Path | None:
        """The folder whose tokenizer will be exported."""
        return next((folder for folder in (self.adapter, self.folder) if folder and has_tokenizer(folder)), None)


def write_config(config: Path, adapters: Sequence[str], bases: Sequence[str], sample: Path | None) -> list[str]:
    """Writes the configuration `config` for adapters, or for bases with heads; returns what is left to fill in."""
    if config.exists():
        raise UserError(f"`{config}` is already there", hint="Name another file, or remove it.")
    if not adapters and not bases:
        raise UserError(
            "There is nothing to describe", hint="Name a folder: `--adapter`, or `--base` for a base with its head."
        )
    if adapters and len(bases) not in (0, 1, len(adapters)):
        raise UserError(
            f"There are {len(bases)} bases for {len(adapters)} adapters",
            hint="`--base` once for all, once for each in the same order, or not at all: adapters name their bases.",
        )
    each_base: list[str | None] = [*bases] * len(adapters) if len(bases) == 1 else [*bases] or [None] * len(adapters)
    if adapters:
        found = [_of_adapter(*pair) for pair in zip(adapters, each_base, strict=True)]
    else:
        found = [_of_base(base) for base in bases]
    page = Page([HEADER.format(config=config)])
    page.key(
        "name",
        re.sub(r"[^\w.-]+", "-", config.stem, flags=re.ASCII).strip("-.") or "ensemble",
        "what it makes is below build/NAME",
    )
    labels = _labels(page, found)
    names: list[str] = []
    for each in found:
        names.append(_name(each, names))
        _member(page, each, names[-1], labels)
    page.owner = ""
    page.lines += ["", "[data]"]
    if sample is None:
        page.ask(
            "sample", '"battles.csv"', "some hundred battles (id, prompt, response_a, response_b) for the comparison"
        )
    else:
        page.key("sample", sample.as_posix(), "battles that the export is compared with the original on")
    text = "\n".join(page.lines) + "\n"
    try:
        structure(Config, tomllib.loads(text))
    except ConfigError as error:
        if not page.open:
            page.open.append(". ".join(filter(None, (error.message, error.hint))))
    config.write_text(text, encoding="utf-8")
    return page.open


def _of_adapter(name: str, base: str | None) -> Found:
    folder = Path(name)
    if is_hub_id(name):
        raise UserError(
            f"`{name}` is not a folder: an adapter's own files are read here",
            hint=f"Fetch it: `hf download {name} --local-dir {folder.name}`.",
        )
    check_folder(folder)
    table = read_json(folder / CONFIG)
    named = str(table.get("base_model_name_or_path") or "")
    revision = table.get("revision") if base in (None, named) else None
    where, revision, settings = _base(base or named, revision)
    head = brought_by(folder).get(HEAD, (0,))[0]
    own = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    labels = _named_labels(own, folder) or _named_labels(settings, folder)
    return Found(folder, base or named, named, revision, where, settings, labels if len(labels) == head else (), head)


def _of_base(name: str) -> Found:
    folder, revision, settings = _base(name, None)
    if folder is None:
        raise UserError(f"`{name}` is not on this machine", hint="Name a folder, or fetch it: `hf download`.")
    head = TensorFiles(folder).tensors.get(HEAD)
    if head is None:
        raise UserError(
            f"Base `{name}` has no classification head `{HEAD}`",
            hint="Name the adapter that was trained with it: `--adapter`.",
        )
    return Found(None, name, "", revision, folder, settings, _named_labels(settings, folder), head.shape[0])


def _base(name: str, revision: Any) -> tuple[Path | None, str | None, dict[str, Any]]:
    """Where a base is, its commit if it is on the hub, and its `config.json` as far as it is known."""
    folder = Path(name)
    if name and (folder / "config.json").is_file():
        return folder, None, read_json(folder / "config.json")
    if not is_hub_id(name):
        return None, None, {}
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    if isinstance(cached, str):
        return Path(cached).parent, Path(cached).parent.name, read_json(Path(cached))
    return None, revision if COMMIT.fullmatch(str(revision)) else None, dict(BASES.get(name, {}))


def _named_labels(settings: dict[str, Any], folder: Path) -> tuple[str, ...]:
    names = tuple(names_of(settings.get("id2label"), folder / "config.json"))
    return names if are_given(names) else ()


def _labels(page: Page, found: Sequence[Found]) -> tuple[str, ...]:
    heads = {each.head for each in found}
    if 0 in heads or len(heads) > 1:
        sizes = ", ".join(f"`{each.adapter or each.base}` {each.head}" for each in found)
        raise UserError(
            f"The members of an ensemble have the same labels; their heads have: {sizes}",
            hint="0 means that there is no head: train with task_type SEQ_CLS, so that PEFT saves `score`.",
        )
    (head,) = heads
    named = next((each.labels for each in found if each.labels), ())
    usual = {3: LABELS_THREE_WAY, 2: LABELS_THREE_WAY[:2]}.get(head, ())
    if named:
        page.key("labels", list(named), "as the checkpoint names its logits, in that order")
    elif usual:
        page.key("labels", list(usual), "GUESS: the checkpoint names none; the order is that of the logits in training")
    else:
        page.ask("labels", '["winner_model_a", "winner_model_b"]', f"names of the {head} logits, in their order")
    return named or usual


def _name(found: Found, taken: Sequence[str]) -> str:
    """A name for the member, from the nearest folder that has one."""
    path = found.adapter or Path(found.base)
    plain = (re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in reversed(path.absolute().parts))
    name = next(
        (part for part in plain if part[:1].isalpha() and not NAMELESS.fullmatch(part.replace("_", ""))), "member"
    )
    name = f"{name}_model" if name in RESERVED_MODEL_NAMES else name
    return name if name not in taken else f"{name}_{1 + sum(other.startswith(name) for other in taken)}"


def _member(page: Page, found: Found, name: str, labels: tuple[str, ...]) -> None:
    page.owner = f"member `{name}`: "
    page.lines += ["", "[[member]]"]
    page.key("name", name)
    _write_base(page, found)
    if found.adapter is not None:
        page.key("adapter", found.adapter.as_posix())
    if found.labels not in ((), labels):
        page.ask(
            "head_labels", json.dumps(list(found.labels)), "only if these are other names for `labels`, one by one"
        )
    tokens, policy = _length(found)
    template, comment, contradicted = _template(found, tokens)
    if template is None:
        page.ask(
            "template", '{ text = "{prompt} {response_a} {response_b}", add_bos = true, add_eos = false }', comment
        )
    else:
        page.lines.append(f"# GUESS: {comment}")
        page.key("template", Toml(template))
    if contradicted:
        page.key("special_tokens", "template", f"the files contradict each other: {contradicted}")
    page.key("max_tokens", *tokens)
    page.key("truncation", Toml(f'{{ policy = "{policy[0]}" }}'), policy[1])
    page.key("precision", "fp32", "the original's numbers; on a GPU also fp16, bf16, int8, fp8")
    page.key("engine", "onnxruntime", 'on a CPU; "tensorrt" with `gpus = [0]` on a GPU')


def _write_base(page: Page, found: Found) -> None:
    if not found.base:
        page.ask("base", '"FOLDER"', "the base that the adapter was trained on; its configuration names none")
    elif is_hub_id(found.base):
        page.key("base", found.base, "as the adapter's configuration names it" if found.base == found.named else "")
        if found.revision:
            page.key("revision", found.revision, "the commit on this machine, or the one that training named")
        else:
            page.ask("revision", '"COMMIT"', f"the commit of {found.base}, as its page shows it")
        if found.adapter and found.named != found.base and is_hub_id(found.named):
            page.ask(
                "adapter_base", json.dumps(found.named), "the adapter names this base: only if the weights are the same"
            )
    elif found.folder:
        page.key("base", found.base)
    else:
        page.ask("base", json.dumps(found.base), "the folder where that base is on this machine, or `--base`")


def _length(found: Found) -> tuple[tuple[int, str], tuple[str, str]]:
    """`max_tokens` and the side that is cut, each with what it rests on: training's tokenizer may remember both."""
    slides = found.settings.get("model_type") == "gemma2" or found.settings.get("use_sliding_window")
    limits = ("max_position_embeddings", *(["sliding_window"] if slides else []))
    limit = min(int(found.settings.get(key) or 2**31) for key in limits)
    table: dict[str, Any] = {}
    side = "right"
    if found.tokenizer:
        table = read_json(found.tokenizer / TOKENIZER_FILE).get("truncation") or {}
        side = str(
            table.get("direction") or read_json(found.tokenizer / TOKENIZER_SETTINGS).get("truncation_side") or side
        )
    said = int(table.get("max_length") or 0)
    tokens = (said, "as the tokenizer was last asked for") if 16 <= said <= limit else (min(limit, USUAL_TOKENS), "")
    cut = "GUESS: the side that training cut of a long battle"
    return (tokens[0], tokens[1] or "GUESS: the longest text of training, special tokens included"), (side.lower(), cut)


def _template(found: Found, tokens: tuple[int, str]) -> tuple[str | None, str, str]:
    """A template as TOML (or None), what is to be said of it, and what contradicts its special tokens."""
    kind = str(found.settings.get("model_type"))
    preset = next((name for name in PRESETS if kind.startswith(name)), "gemma")
    words = (
        "no checkpoint says which words surround the fields. These are a preset's: write those of your training script"
    )
    tokenizer = found.adapter if found.adapter and (found.adapter / TOKENIZER_FILE).is_file() else found.folder
    if found.tokenizer is None or tokenizer is None:
        return None, "the words round the fields, and whether bos and eos stand round the text, as in training", ""
    member = Classifier(name="init", base=found.base, template=preset, max_tokens=max(16, tokens[0]))
    settings = settings_of_checkpoint(found.tokenizer, member)
    voices = voices_of(tokenizer, settings)
    if (tokenizer / TOKENIZER_SETTINGS).is_file():
        voices |= _automatic(tokenizer)
    wanted = list(voices.values())[-1]  # AutoTokenizer, where it can be asked: training used it most likely
    template = template_for(wanted, settings)
    others = "; ".join(f"{who} says {around}" for who, around in voices.items() if around != wanted)
    if template is None:
        return None, f"the tokenizer puts {wanted}, which is not bos or eos alone", ""
    if template.strip('"') in PRESETS:  # written out: its words are what is to be changed
        template = PRESETS[template.strip('"')].table()
    return template, f"{words}. The tokenizer makes of a text: {wanted}", others


def _automatic(folder: Path) -> dict[str, Any]:
    try:
        return {"`AutoTokenizer`": around_of(auto_tokenizer(Checkpoint(folder, str(folder))))}
    except ArtefactError:  # an export says so
        return {}
