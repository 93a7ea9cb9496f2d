"""Tiny random checkpoints of every architecture, adapters for them, and a whole project made of them.

Exporting a graph takes seconds, so exported members are made once and tests that change files work on copies.
"""

import csv
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from typer.testing import CliRunner

from preference_core.ensemble.loading import load_config
from preference_core.quiet_libraries import quiet_transformers
from preference_export.app import app
from preference_export.checkpoint.adapter import read_adapter
from preference_export.checkpoint.architecture import architecture_of, hugging_face_config
from preference_export.checkpoint.merge import MergedWeights
from preference_export.checkpoint.rounding import open_base
from preference_export.graph import block_size
from preference_export.graph.precision import Dtypes
from preference_export.graph.write import (
    checkpoint_shapes,
    classifier_without_data,
    export_onnx,
    graph_of,
    linear_modules,
)
from preference_export.original.whole import Reference

VOCABULARY = 300
LABELS = 3
#: Longest sequence and block of queries of what `tracer` exports.
TRACED_TOKENS, TRACED_BLOCK = 64, 16
#: Sliding window of Gemma-3, Mistral and Qwen3: no multiple of a block, and shorter than some sequences.
WINDOW = 20
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGURATIONS = {
    "gemma2": lambda: Gemma2Config(
        **SIZES,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,
        sliding_window=64,
    ),
    "gemma3_text": lambda: Gemma3TextConfig(
        **SIZES,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "llama": lambda: LlamaConfig(
        **SIZES, num_attention_heads=6, num_key_value_heads=2, rope_parameters=dict(LLAMA_3_ROPE), pad_token_id=2
    ),
    "mistral": lambda: MistralConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=WINDOW, pad_token_id=2
    ),
    "qwen2": lambda: Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=1, pad_token_id=2),
    "qwen3": lambda: Qwen3Config(
        **SIZES,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
        pad_token_id=2,
    ),
}


class Maker:
    """Writes checkpoints and adapters; all randomness is seeded."""

    labels = LABELS
    vocabulary = VOCABULARY
    configurations = CONFIGURATIONS

    def config(self, architecture, **changes):
        """A tiny configuration that uses every feature of its architecture that changes the arithmetic."""
        config = CONFIGURATIONS[architecture]()
        for key, value in changes.items():
            setattr(config, key, value)
        return config

    def base(self, folder, architecture, *, config=None, dtype=torch.float32, head=False, **saving):
        """A causal language model without a head, as bases are published; or a classifier with its own head."""
        config = config or self.config(architecture)
        if head:
            config.num_labels = LABELS
        kind = AutoModelForSequenceClassification if head else AutoModelForCausalLM
        model = kind.from_config(config, attn_implementation="eager")
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        with quiet_transformers():
            model.to(dtype).save_pretrained(folder, **saving)
        return folder

    def adapter(self, folder, base, labels=LABELS, task=TaskType.SEQ_CLS, change=lambda model: None, **lora):
        """An adapter with a head, all of it random, saved by PEFT for a classifier that `change` altered first."""
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **lora}
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
            change(model)
            peft_model = get_peft_model(model, LoraConfig(task_type=task, **settings))
        generator = torch.Generator().manual_seed(2)
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
            peft_model.save_pretrained(folder)
        return folder

    def weights(self, base, *adapters, labels=LABELS, rounding="none"):
        """This project's merged weights of the same files, by name, and all names."""
        config = hugging_face_config(base)
        model = classifier_without_data(architecture_of(config), labels, torch.float32)
        modules = linear_modules(model)
        found = [read_adapter(adapter, modules) for adapter in adapters]
        return MergedWeights(open_base(base, config, rounding, modules), found, checkpoint_shapes(model))

    def merged_by_peft(self, base, adapter, labels=LABELS):
        """What PEFT's `merge_and_unload` makes of the same files, in float32."""
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
            return dict(PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


def pytest_collection_modifyitems(items):
    """What needs a trace is slow: one for each architecture takes as long as two hundred other tests. So is what needs
    a project that was exported.
    """
    for item in items:
        if {"tracer", "project"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def make():
    return Maker()


@dataclass(frozen=True)
class Exported:
    """An ONNX export and the checkpoint it was made from."""

    base: Path
    adapter: Path
    folder: Path


@pytest.fixture(scope="session", params=sorted(CONFIGURATIONS))
def exported(request, tracer):
    """An export in single precision of each architecture; that of Gemma-2 is the finished project's member."""
    if request.param == "gemma2":
        folder = request.getfixturevalue("finished_project").folder
        return Exported(folder / "base", folder / "adapter", folder / "build" / "tiny" / "members" / "gemma")
    traced = tracer.of(request.param)
    return Exported(traced.base, traced.adapter, tracer.export(request.param, "fp32", Dtypes("float32")))


@dataclass
class Traced:
    """One architecture: a checkpoint, its graph in float32 (traced once), and the ranges of its activations."""

    base: Path
    adapter: Path
    graph: object
    ranges: dict[str, torch.Tensor]
    original_logits: np.ndarray


class Tracer:
    """Traces each architecture when first asked for it. Precisions are written into copies of the graph.

    Attention is divided into blocks so short that the sequences of tests fill several.
    """

    def __init__(self, make, folder, sequences):
        self.make, self.folder, self.sequences = make, folder, sequences
        self.traced = {}

    def of(self, architecture):
        if architecture not in self.traced:
            folder = self.folder / architecture
            base = self.make.base(folder / "base", architecture)
            adapter = self.make.adapter(folder / "adapter", base)
            graph = graph_of(classifier_without_data(self.description(base), LABELS), LABELS)
            self.traced[architecture] = Traced(base, adapter, graph, *self.measured(base, adapter))
        return self.traced[architecture]

    def export(self, architecture, name, dtypes, weights=None):
        """The folder of an export with those dtypes; made once, unless it has other weights."""
        traced, folder = self.of(architecture), self.folder / architecture / name
        if not folder.exists():
            folder.mkdir()
            weights = weights or self.make.weights(traced.base, traced.adapter)
            description = self.description(traced.base)
            settings = {"ranges": traced.ranges, "graph": traced.graph.clone(), "max_tokens": TRACED_TOKENS}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(block_size, "BLOCK", TRACED_BLOCK)
                export_onnx(folder, description, weights, LABELS, dtypes, **settings)
        return folder

    def description(self, base):
        return architecture_of(hugging_face_config(base)).for_length(TRACED_TOKENS)

    def measured(self, base, adapter):
        """Largest magnitude of every input feature of each linear layer, and the logits, of the original model."""
        reference, ranges = Reference(base, [adapter], LABELS), {}
        expected = reference.logits(self.sequences)
        reference.model = reference.model.merge_and_unload()

        def measure(name, x):
            largest = x.abs().flatten(0, -2).amax(0)
            ranges[name] = torch.maximum(ranges.get(name, largest), largest)

        for name, module in reference.model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith("_proj"):
                module.register_forward_pre_hook(lambda module, inputs, name=name: measure(name, inputs[0]))
        reference.logits(self.sequences)
        return ranges, expected


@pytest.fixture(scope="session")
def tracer(make, tmp_path_factory, sequences):
    return Tracer(make, tmp_path_factory.mktemp("traced"), sequences)


@pytest.fixture(scope="session")
def exported_in_half_precision(tracer):
    traced = tracer.of("gemma2")
    return Exported(traced.base, traced.adapter, tracer.export("gemma2", "fp16", Dtypes("float16")))


@pytest.fixture(scope="session")
def sequences():
    """Token ids of four sequences of very different lengths, one of them a single token."""
    random = np.random.default_rng(0)
    return [random.integers(3, VOCABULARY, length).astype(np.int32) for length in (23, 1, 60, 7)]


BATTLES = [
    ("Why is the sky blue?", "Because of scattering.", "It is not.", "a"),
    ("Say hi", "hi", "Hello there, how are you today? " * 3, "b"),
    ("", "", "", "tie"),
    ("Write a poem about the sea " * 4, "The sea, the sea, " * 9, "Waves. " * 20, "a"),
    ("2 + 2 = ?", "4", "5", "a"),
]


def write_tokenizer(folder):
    """A byte-level BPE tokenizer with bos, eos and pad, trained on the battles."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text for row in BATTLES for text in row[:3]], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A <eos>", None, [("<bos>", 1), ("<eos>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_battles(path):
    labels = ("winner_model_a", "winner_model_b", "winner_tie")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b", *labels])
        for number, (*texts, winner) in enumerate(BATTLES):
            marks = [int(label.endswith(f"_{winner}")) for label in labels]
            writer.writerow([number, *(json.dumps([text]) for text in texts), *marks])


@dataclass(frozen=True)
class Project:
    """A working directory with a configuration `ensemble.toml` in it, and the command run there."""

    folder: Path

    @property
    def config(self):
        return load_config(self.folder / "ensemble.toml")

    def edit(self, old, new):
        """Changes the configuration."""
        path = self.folder / "ensemble.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def run(self, *arguments):
        """Runs `preference-export`; returns its JSON summary, or raises what it raised."""
        stage, *rest = arguments
        result = CliRunner().invoke(app, [stage, "ensemble.toml", *rest, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


CONFIGURATION = """
name = "tiny"

[[member]]
name = "gemma"
base = "base"
adapter = "adapter"
template = "gemma"
max_tokens = 48

[serving]
max_batch_size = 8

[data]
sample = "battles.csv"
"""


@pytest.fixture(scope="session")
def finished_project(make, tmp_path_factory):
    """A project on which `preference-export all` has run. Not to be changed: see `project`."""
    folder = tmp_path_factory.mktemp("project")
    base = make.base(folder / "base", "gemma2")
    write_tokenizer(base)
    make.adapter(folder / "adapter", base)
    write_battles(folder / "battles.csv")
    (folder / "ensemble.toml").write_text(CONFIGURATION)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Project(folder).run("all")
    return Project(folder)


@pytest.fixture
def project(finished_project, tmp_path, monkeypatch):
    """A copy of the finished project, which is the working directory."""
    shutil.copytree(finished_project.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")
