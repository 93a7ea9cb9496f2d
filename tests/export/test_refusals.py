"""What cannot be exported exactly is refused, by name, before any weights are read."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import TaskType
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from preference_core.artefacts.manifest import read_manifest
from preference_core.battles.battle import Battle
from preference_core.battles.tokenisation import BattleTokenizer
from preference_core.ensemble.settings import LABELS_THREE_WAY as LABELS
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ArtefactError, BattleError, CheckpointError, UserError
from preference_export.checkpoint.adapter import AdapterError, check_named_base, read_adapter
from preference_export.checkpoint.architecture import ArchitectureError, architecture_of, hugging_face_config
from preference_export.checkpoint.files import TensorFiles
from preference_export.checkpoint.merge import HeadError
from preference_export.graph.write import classifier_without_data, linear_modules


@pytest.fixture(scope="module")
def base(make, tmp_path_factory):
    return make.base(tmp_path_factory.mktemp("llama") / "base", "llama")


@pytest.fixture
def adapter(make, base, tmp_path):
    return make.adapter(tmp_path / "adapter", base)


def linear_modules_of(base):
    return linear_modules(classifier_without_data(architecture_of(hugging_face_config(base)), 3))


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_settings(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_pickle_checkpoint(make, tmp_path, base):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pickle weights only: `pytorch_model\.bin`"):
        make.weights(folder)


def test_a_pickle_adapter(make, base, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle weights only: `adapter_model\.bin`"):
        make.weights(base, adapter)


def test_a_torn_weight_file(make, base, adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        make.weights(base, adapter)


def test_a_shard_outside_its_folder(tmp_path):
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"`\.\./elsewhere\.safetensors`, which is not a file in its folder"):
        TensorFiles(tmp_path)


def test_a_base_without_a_head_and_without_an_adapter(make, base):
    with pytest.raises(HeadError, match=r"no classification head `score\.weight`"):
        make.weights(base)


def test_an_adapter_without_its_head(make, base, adapter):
    change_tensors(adapter, lambda tensors: tensors.pop("base_model.model.score.weight"))
    with pytest.raises(AdapterError, match=r"has no classification head: no tensor `score\.weight`"):
        make.weights(base, adapter)


@pytest.mark.parametrize("name", ["score.0.weight", "classifier.weight", "base_model.model.score.weight"])
def test_an_adapter_whose_head_is_called_otherwise_is_told_so(make, base, adapter, name):
    head = "base_model.model.score.weight"
    change_tensors(adapter, lambda tensors: tensors.update({f"base_model.model.{name}": tensors.pop(head)}))
    with pytest.raises(AdapterError, match="has no classification head") as caught:
        make.weights(base, adapter)
    assert f"It holds `{name}`" in caught.value.hint


def test_an_adapter_that_names_another_base_on_the_hub(make, base, adapter):
    change_settings(adapter, base_model_name_or_path="meta-llama/Meta-Llama-3-8B")
    read = read_adapter(adapter, linear_modules_of(base))
    member = Classifier(name="llama", base="meta-llama/Meta-Llama-3-8B-Instruct", template="llama", max_tokens=64)
    with pytest.raises(
        AdapterError, match="was trained on `meta-llama/Meta-Llama-3-8B`; the base of `llama`"
    ) as caught:
        check_named_base(read, member)
    assert 'adapter_base = "meta-llama/Meta-Llama-3-8B"' in caught.value.hint
    check_named_base(read, replace(member, adapter_base="meta-llama/Meta-Llama-3-8B"))
    check_named_base(read, replace(member, base="Meta-Llama/meta-llama-3-8b"))
    check_named_base(read, replace(member, base="a/folder/of/this/machine"))


def name_labels(path, *names, **more):
    table = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**table, "id2label": dict(enumerate(names)), **more}))


OTHER_ORDER = ("winner_tie", "winner_model_a", "winner_model_b")
OTHER_NAMES = ("tie", "model_a", "model_b")


@pytest.mark.parametrize(
    "names",
    [OTHER_ORDER, OTHER_NAMES, ("winner_model_a", "winner_model_b"), ("LABEL_2", "LABEL_1", "LABEL_0")],
)
def test_a_head_with_other_labels_or_in_another_order(project, names):
    name_labels(project.folder / "base" / "config.json", *names)
    project.edit('adapter = "adapter"\n', "")
    with pytest.raises(ArtefactError, match=f"has the labels {', '.join(names)}, `labels`") as caught:
        project.run("onnx")
    assert json.dumps(list(names)) in caught.value.hint


@pytest.mark.parametrize("folder", ["base", "adapter"])
def test_with_an_adapter_the_labels_of_base_and_adapter_are_compared_too(project, folder):
    name_labels(project.folder / folder / "config.json", *OTHER_ORDER)
    (project.folder / "build" / "tiny" / "members" / "gemma" / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match=f"The head of `{folder}` has the labels winner_tie"):
        project.run("onnx")


@pytest.mark.parametrize("labels", [{"x": "A"}, ["A", "B"], "A"])
def test_labels_beside_an_adapter_that_cannot_be_read(project, labels):
    (project.folder / "adapter" / "config.json").write_text(json.dumps({"id2label": labels}))
    (project.folder / "build" / "tiny" / "members" / "gemma" / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match=r"`id2label` in `adapter/config\.json` is"):
        project.run("onnx")


@pytest.mark.slow
def test_other_names_for_the_same_labels_need_a_key_that_says_so(project):
    names = ("A", "B", "tie")
    name_labels(project.folder / "base" / "config.json", *names)
    project.edit('name = "gemma"\n', f'name = "gemma"\nhead_labels = {json.dumps(names)}\n')
    assert project.run("onnx")["results"][0]["changed"]
    name_labels(project.folder / "base" / "config.json", *reversed(names))
    with pytest.raises(ArtefactError, match=r"has the labels tie, B, A, `head_labels` .* A, B, tie"):
        project.run("onnx")


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_head_whose_logits_a_softmax_would_misread(project, problem_type):
    name_labels(project.folder / "base" / "config.json", *LABELS, problem_type=problem_type)
    with pytest.raises(ArtefactError, match=f"`problem_type` of `base` is `{problem_type}`"):
        project.run("onnx")


@pytest.mark.slow
def test_a_token_that_was_added_without_resizing_the_embedding(project):
    path = project.folder / "base" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    rows = json.loads((project.folder / "base" / "config.json").read_text())["vocab_size"]
    missing = rows - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused{number}>" for number in range(missing)])
    tokenizer.save(str(path))
    project.run("onnx")
    tokenizer.add_special_tokens(["<added>"])
    tokenizer.save(str(path))
    project.run("onnx")
    folder = project.folder / "build" / "tiny" / "members" / "gemma"
    (doubt,) = read_manifest(folder).details["doubts"]
    assert f"gives `<added>` the id {rows}, and the embedding has {rows} rows: battles that spell it fail" in doubt
    encoder = BattleTokenizer.from_folder(folder)
    assert len(encoder.encode(Battle(("a",), ("<adde>",), ("added",))).ids) > 5
    with pytest.raises(BattleError, match=f"`response_b` spells the token `<added>`, whose id {rows} is beyond"):
        encoder.encode(Battle(("a",), ("b",), ("see <added> here",)))
    assert len(encoder.encode(Battle(("a",), ("b",), ("word " * 200 + "<added>",))).ids) == 48, "cut before it"


@pytest.mark.parametrize("token", ["<bos>", "e"])
def test_a_token_beyond_the_embedding_that_every_text_may_hold(project, token):
    path = project.folder / "base" / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["vocab"][token] = 300
    for added in table["added_tokens"]:
        added["id"] = table["model"]["vocab"][added["content"]]
    for special in table["post_processor"]["special_tokens"].values():
        special["ids"] = [table["model"]["vocab"][special["id"]]]
    path.write_text(json.dumps(table))
    with pytest.raises(ArtefactError, match=f"gives `{token}` the id 300, and the embedding has 300 rows"):
        project.run("onnx")


def test_a_padding_id_beyond_the_embedding(project):
    path = project.folder / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": 100_000}))
    with pytest.raises(ArchitectureError, match=r"`pad_token_id` in `base/config\.json` is 100000"):
        project.run("all")


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_is_null(project, key):
    change_settings(project.folder / "adapter", **{key: None})
    with pytest.raises(AdapterError, match=f"`{key}` in `adapter/adapter_config.json` is null"):
        project.run("all")


def test_an_adapter_for_another_task(make, base, tmp_path):
    adapter = make.adapter(tmp_path / "adapter", base, task=TaskType.FEATURE_EXTRACTION)
    with pytest.raises(AdapterError, match=r"task type FEATURE_EXTRACTION\) has no classification head"):
        make.weights(base, adapter)


def test_a_head_for_another_number_of_labels(make, base, adapter):
    with pytest.raises(HeadError, match=r"has shape \[3, 48\], expected \[2, 48\]: the configuration has 2 labels"):
        make.weights(base, adapter, labels=2)


def test_an_adapter_of_another_size(make, adapter, tmp_path):
    config = make.config("llama", intermediate_size=96)
    other = make.base(tmp_path / "other", "llama", config=config)
    with pytest.raises(AdapterError, match=r"down_proj\.lora_A\.weight` has shape \[4, 80\].*asks for \[4, 96\]"):
        make.weights(other, adapter)


def test_an_adapter_with_more_layers(make, adapter, tmp_path):
    other = make.base(tmp_path / "other", "llama", config=make.config("llama", num_hidden_layers=1))
    with pytest.raises(AdapterError, match=r"adapts `model\.layers\.1\.\w+\.\w+`, which this base does not have"):
        make.weights(other, adapter)


def test_an_adapter_with_fewer_layers(make, adapter, tmp_path):
    other = make.base(tmp_path / "other", "llama", config=make.config("llama", num_hidden_layers=3))
    with pytest.raises(AdapterError, match=r"no tensors for its target `model\.layers\.2\."):
        make.weights(other, adapter)


def test_an_adapter_whose_rank_is_not_that_of_its_settings(make, base, adapter):
    change_settings(adapter, r=8)
    with pytest.raises(AdapterError, match=r"has shape \[4, 48\].*asks for \[8, 48\]"):
        make.weights(base, adapter)


def test_an_adapter_with_tensors_that_have_no_place(make, base, adapter):
    change_tensors(adapter, lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}))
    with pytest.raises(AdapterError, match=r"`base_model\.model\.lm_head\.weight`, which has no place"):
        make.weights(base, adapter)


def test_an_adapter_with_half_a_pair(make, base, adapter):
    gone = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    change_tensors(adapter, lambda tensors: tensors.pop(gone))
    with pytest.raises(AdapterError, match=r"lacks part `b` of `model\.layers\.0\.self_attn\.q_proj`"):
        make.weights(base, adapter)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"a_key_of_a_later_version": 3}, "a_key_of_a_later_version"),
    ],
)
def test_adapter_features_that_would_merge_wrongly(make, base, adapter, settings, named):
    change_settings(adapter, **settings)
    with pytest.raises(AdapterError, match=f"`{named}`"):
        make.weights(base, adapter)


def test_a_tensor_that_is_not_of_the_size_in_the_configuration(make, base, adapter, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in base.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "vocab_size": 310}))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight` .* has shape \[300, 48\].*asks for \[310, 48\]"):
        make.weights(other, adapter)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gemma"}, "`gemma` is not supported"),
        ({"model_type": "gemma3"}, "`gemma3` reads images as well as text"),
        ({"model_type": "phi3", "rope_parameters": None}, "`phi3` is not supported"),
        ({"model_type": "bert"}, "`bert` is not supported"),
        ({"model_type": "mistral4"}, "`mistral4` is not supported"),
        ({"auto_map": {"AutoModel": "own_code.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised by `gptq`"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "dynamic"),
        ({"hidden_act": "relu"}, "relu"),
    ],
)
def test_architectures_and_features_that_are_not_computed(base, tmp_path, changes, named):
    settings = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **changes}))
    with pytest.raises(ArchitectureError, match=named):
        architecture_of(hugging_face_config(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` in config.json is 50.0"),
        ("gemma3_text", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention, full_attention"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "full_attention, for 2 layers"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "`sliding_window` in config.json is None"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_attention_that_transformers_would_not_compute_as_config_json_says(make, architecture, changes, named):
    with pytest.raises(ArchitectureError, match=named):
        architecture_of(make.config(architecture, **changes))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("max_tokens = 48", 'max_tokens = 48\nprecision = "bf16"', "ONNX Runtime does not run bf16 on a CPU"),
        (
            "max_tokens = 48",
            'max_tokens = 48\nprecision = "fp8"\nquantisation = { precision = "bf16" }',
            "ONNX Runtime does not run bf16 on a CPU",
        ),
        (
            "max_tokens = 48",
            'max_tokens = 48\nprecision = "int8"\nquantisation = { keep = ["*.query"] }',
            r"`\*\.query`, which no GEMM matches",
        ),
        ('name = "tiny"', 'name = "tiny"\nlabels = ["model_a", "model_b"]', "2 labels"),
        ('sample = "battles.csv"', "", "`data.sample` is missing"),
    ],
)
def test_the_command_refuses_what_a_configuration_asks_for_in_vain(project, old, new, named):
    project.edit(old, new)
    with pytest.raises(UserError, match=named):
        project.run("all")


def test_a_base_that_still_holds_an_adapter_is_named(project):
    shutil.copy(project.folder / "adapter" / "adapter_config.json", project.folder / "base")
    with pytest.raises(AdapterError, match=r"The base `base` holds an `adapter_config\.json`"):
        project.run("onnx")


def test_an_embedding_that_peft_saved_is_merged(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    path = make.adapter(tmp_path / "adapter", base) / "adapter_model.safetensors"
    tensors, stored = load_file(path), "base_model.model.model.embed_tokens.weight"
    rows = torch.randn(make.vocabulary, 48, generator=torch.Generator().manual_seed(3))
    save_file({**tensors, stored: rows}, path)
    merged = make.weights(base, tmp_path / "adapter").tensor("model.embed_tokens.weight")
    assert torch.equal(merged, rows)
    assert torch.equal(merged, make.merged_by_peft(base, tmp_path / "adapter")["model.embed_tokens.weight"])
