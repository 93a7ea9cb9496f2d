"""The gate measures what it says, and lets nothing through that is not the original model."""

import csv
import warnings
from dataclasses import replace

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from preference_core.artefacts.manifest import read_manifest, write_manifest
from preference_core.battles.encoders import encoder_from_folder
from preference_core.ensemble.settings import ParityLimits
from preference_core.errors import ArtefactError, ConfigError, ParityError, SystemFailure
from preference_core.quiet_libraries import quiet_transformers
from preference_export.artefacts.names import DATA_FILE
from preference_export.engine.runtimes import CUDA_PROVIDER
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.parity import compare, exceeded, limits_of, measure
from preference_export.gate.scan import scan
from preference_export.original.sample import read_sample
from preference_export.original.whole import Reference

REFERENCE = np.array([[2.0, 0.0, -1.0], [0.0, 0.1, 0.0]], dtype=np.float32)


def test_equal_logits_differ_by_nothing():
    parity = compare(REFERENCE, REFERENCE, [0, 1])
    assert (parity.max_logit_difference, parity.decision_flips, parity.log_loss_change) == (0.0, 0, 0.0)


def test_differences_are_measured_in_logits_probabilities_decisions_and_log_loss():
    logits = REFERENCE + np.array([[0, 0, 0], [0.3, 0, 0]], dtype=np.float32)
    parity = compare(logits, REFERENCE, [0, 0])
    assert parity.max_logit_difference == pytest.approx(0.3)
    assert parity.mean_logit_difference == pytest.approx(0.05)
    assert parity.decision_flips == 1
    assert parity.max_probability_difference == pytest.approx(0.0679, abs=1e-3)
    assert parity.log_loss_change == pytest.approx(0.0958, abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_never_pass(value):
    logits = REFERENCE.copy()
    logits[0, 1] = value
    assert len(exceeded(compare(logits, REFERENCE, [0, 1]), limits_of("fp32", ParityLimits()))) == 4


def test_configured_limits_replace_the_defaults_one_by_one():
    limits = limits_of("fp32", ParityLimits(max_logit_difference=0.5))
    assert limits.max_logit_difference == 0.5
    assert limits.max_decision_flips == 0
    parity = compare(REFERENCE + np.float32(0.4), REFERENCE)
    assert exceeded(parity, limits) == []
    assert "max_logit_difference is 0.4, the limit is 0.0001" in exceeded(parity, limits_of("fp32", ParityLimits()))


class WrongInCompany:
    """An artefact that is right for one sequence at a time and wrong for more."""

    def logits(self, sequences):
        rows = REFERENCE[[int(ids[0]) for ids in sequences]]
        return rows if len(sequences) == 1 else rows + np.float32(0.1)


def test_an_artefact_that_is_wrong_only_when_packed_is_found_out():
    parity = measure(WrongInCompany(), REFERENCE, [np.array([0], np.int32), np.array([1, 1], np.int32)])
    assert parity.max_logit_difference == pytest.approx(0.1)


class WrongFirst:
    """An artefact whose first sequence of several is wrong."""

    def logits(self, sequences):
        rows = REFERENCE[[int(ids[0]) for ids in sequences]].copy()
        rows[0] += 0.1 if len(sequences) > 1 and int(sequences[0][0]) == 1 else 0.0
        return rows


def test_packs_are_asked_in_both_orders():
    parity = measure(WrongFirst(), REFERENCE, [np.array([0], np.int32), np.array([1, 1], np.int32)])
    assert parity.max_logit_difference == pytest.approx(0.1)


class Listening:
    """An artefact that is right, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def logits(self, sequences):
        self.asked.append([len(ids) for ids in sequences])
        return np.zeros((len(sequences), 3), np.float32)


def test_two_packs_of_all_lengths_stand_for_a_large_sample():
    artefact = Listening()
    sequences = [np.zeros(length, np.int32) for length in range(1, 129)]
    measure(artefact, np.zeros((128, 3), np.float32), sequences)
    assert artefact.asked[:128] == [[length] for length in range(1, 129)]
    assert artefact.asked[128:130] == [[1, 33, 65, 97], [32, 64, 96, 128]]
    assert artefact.asked[130:] == [pack[::-1] for pack in artefact.asked[128:130]]


def test_the_reference_pools_the_last_token_even_where_it_is_the_pad_token(make, tmp_path):
    """Hugging Face skips trailing pad tokens, which are part of the text where pad = eos and a user wrote `<eos>`."""
    base = make.base(tmp_path / "base", "llama", head=True)
    ids = np.array([5, 9, 11, 2, 2], dtype=np.int32)
    with quiet_transformers():
        original = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32).eval()
    assert original.config.pad_token_id == 2
    with torch.inference_mode():
        pooled_by_hugging_face = original(torch.from_numpy(ids).long()[None]).logits.numpy()
        hidden = original.model(torch.from_numpy(ids).long()[None]).last_hidden_state
        third, last = (original.score(hidden[:, index]).numpy() for index in (2, 4))
    ours = Reference(base, [], make.labels).logits([ids])
    np.testing.assert_allclose(pooled_by_hugging_face, third, atol=1e-5)
    np.testing.assert_allclose(ours, last, atol=1e-5)
    assert np.abs(third - last).max() > 1e-2


def test_a_changed_weight_fails_the_check_and_never_reaches_the_repository(project):
    folder = project.folder / "build" / "tiny" / "members" / "gemma"
    path = folder / DATA_FILE
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    head = next(tensor for tensor in graph.initializer if tensor.name == "score.weight")
    offset = next(int(entry.value) for entry in head.external_data if entry.key == "offset")
    content = bytearray(path.read_bytes())
    weight = np.frombuffer(content[offset : offset + 4], np.float32) + np.float32(0.5)
    content[offset : offset + 4] = weight.tobytes()
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.onnx\.data` was changed"):
        project.run("check")
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, files={}, details={}))
    with pytest.raises(ParityError, match=r"`gemma` does not reproduce the original model: max_logit_difference is"):
        project.run("check")
    assert "max_logit_difference is" in read_manifest(folder).parity["broken"][0]
    for options in ([], ["--unchecked"]):
        with pytest.raises(ParityError, match="`gemma` does not reproduce the original model: max_logit_difference"):
            project.run("repository", *options)


def test_limits_that_were_tightened_since_the_check_count(project):
    project.edit("max_tokens = 48", "max_tokens = 48\nparity = { max_logit_difference = 1e-12 }")
    with pytest.raises(ParityError, match="`gemma` does not reproduce the original model: max_logit_difference is"):
        project.run("repository")


def test_a_repository_is_not_made_from_checkpoints_that_have_changed_since(project):
    path = project.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.score.weight"] *= 2
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"`gemma` was exported from other files than `adapter` \(adapter\) holds"):
        project.run("repository")


def test_an_artefact_that_fails_for_exchanged_responses_only_does_not_pass(project, monkeypatch):
    """The sample holds each battle once; a server is asked for both orders."""
    known = set()

    class FailsForTheUnknown(OnnxClassifier):
        def logits(self, sequences):
            rows = super().logits(sequences)
            rows[[ids.tobytes() not in known for ids in sequences]] = np.nan
            return rows

    encoder = encoder_from_folder(project.folder / "build" / "tiny" / "members" / "gemma")
    sample = read_sample(project.folder / "battles.csv", project.config.labels)
    known.update(tokens.ids.tobytes() for tokens in encoder.encode_batch(sample.battles))
    monkeypatch.setattr("preference_export.gate.compare.OnnxClassifier", FailsForTheUnknown)
    with pytest.raises(ParityError, match="max_logit_difference is inf"):
        project.run("check")


def test_a_limit_that_cannot_be_judged_is_an_error(project):
    project.edit("max_tokens = 48", "max_tokens = 48\nparity = { max_log_loss_change = 0.1 }")
    path = project.folder / "battles.csv"
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(row[:4] for row in rows)
    with pytest.raises(ConfigError, match="`parity.max_log_loss_change` of `gemma` needs labels".replace(".", r"\.")):
        project.run("check")


def test_a_provider_that_onnx_runtime_does_not_use_is_an_error(project):
    path = project.folder / "build" / "tiny" / "members" / "gemma" / "model.onnx"
    warnings.simplefilter("ignore")  # that it is not among those compiled in; pytest restores the filters
    with pytest.raises(SystemFailure, match="cannot use CUDAExecutionProvider here"):
        OnnxClassifier(path, 1, CUDA_PROVIDER)


@pytest.mark.parametrize("probed", [False, True], ids=["compared", "scanned"])
def test_single_precision_means_single_precision_on_a_gpu(project, sequences, monkeypatch, probed):
    """Shown without a GPU: what ONNX Runtime is asked for. TF32 would be its default."""
    path, asked = project.folder / "build" / "tiny" / "members" / "gemma" / "model.onnx", []

    def session(model, options, providers):
        asked.extend(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    with pytest.raises(ArtefactError, match="no GPU here"):
        scan(path, sequences, 1, CUDA_PROVIDER) if probed else OnnxClassifier(path, 1, CUDA_PROVIDER)
    assert asked == [(CUDA_PROVIDER, {"use_tf32": "0"})]


def test_limits_of_the_configuration_decide(project):
    project.edit("max_tokens = 48", "max_tokens = 48\nparity = { max_logit_difference = 0.0 }")
    with pytest.raises(ParityError, match="the limit is 0"):
        project.run("all")


def test_measured_differences_travel_in_the_manifests(project):
    member = read_manifest(project.folder / "build" / "tiny" / "members" / "gemma")
    repository = read_manifest(project.config.folders.repository)
    assert member.parity["max_logit_difference"] <= 1e-4
    assert member.parity["decision_flips"] == 0
    assert 0 <= member.parity["log_loss_change"] <= 1e-5
    assert member.parity["sequences"] == 10
    assert repository.parity["gemma"] == member.parity


def test_the_sample_is_spread_over_lengths_and_always_the_same(tmp_path):
    path = tmp_path / "battles.csv"
    lines = [f"{number},{'x' * number},a,b,model_a" for number in range(100)]
    path.write_text("\n".join(["id,prompt,response_a,response_b,winner", *lines]))
    sample = read_sample(path, ("model_a", "model_b"), count=5)
    assert [len(battle.prompt[0]) for battle in sample.battles] == [0, 25, 50, 74, 99]
    assert sample.targets == (0,) * 5
    assert read_sample(path, ("model_a", "model_b"), count=5) == sample


def test_a_sample_may_be_parquet(tmp_path):
    columns = {"prompt": [["p", "q"]], "response_a": [["a", None]], "response_b": [["b", "c"]], "winner": ["model_b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "battles.parquet")
    sample = read_sample(tmp_path / "battles.parquet", ("model_a", "model_b"))
    assert (sample.battles[0].response_a, sample.targets) == (("a", ""), (1,))


def test_a_sample_without_labels_is_measured_without_log_loss(tmp_path):
    path = tmp_path / "battles.csv"
    path.write_text("id,prompt,response_a,response_b\n1,p,a,b\n")
    assert read_sample(path, ("model_a", "model_b")).targets is None


def test_a_sample_whose_labels_are_others_is_refused(tmp_path):
    path = tmp_path / "battles.csv"
    path.write_text("id,prompt,response_a,response_b,winner\n1,p,a,b,nobody\n")
    with pytest.raises(ConfigError, match="line 2: `winner` is `nobody`, expected model_a or model_b"):
        read_sample(path, ("model_a", "model_b"))


def test_a_changed_adapter_head_is_a_changed_input(project):
    path = project.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.score.weight"] *= 2
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ParityError):
        project.run("check")
