"""The length baseline as a member: its engine gives what the buckets say, and goes through the same gate."""

import numpy as np
import pytest

from preference_core.artefacts.manifest import files_below, read_manifest, verify
from preference_core.battles.battle import Battle
from preference_core.battles.encoders import encoder_from_folder
from preference_core.battles.lengths import LengthBuckets, write_buckets
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.errors import ArtefactError, ParityError
from preference_core.tensors import INPUT_IDS, MAX_SEQLEN, Tensor
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.parity import measure
from preference_export.graph.length_buckets import write_onnx
from preference_export.kinds import jobs_of
from preference_export.original.lengths import LengthReference
from preference_export.plan import plan_of

BUCKETS = LengthBuckets(
    LABELS_THREE_WAY,
    "characters",
    (-50.0, 0.0, 40.0),
    ((0.1, 0.7, 0.2), (0.3, 0.4, 0.3), (0.4, 0.3, 0.3), (0.8, 0.1, 0.1)),
)
MEMBER = """
[[member]]
name = "length"
kind = "length_buckets"
base = "buckets"

[serving]
"""


@pytest.fixture
def mixed(project):
    """The finished project with length buckets beside its classifier."""
    (project.folder / "buckets").mkdir()
    write_buckets(project.folder / "buckets", BUCKETS)
    project.edit("[serving]\n", MEMBER)
    return project


def test_the_engine_gives_the_probabilities_of_each_bucket_alone_and_packed(tmp_path):
    write_onnx(tmp_path, BUCKETS)
    engine = OnnxClassifier(tmp_path / "model.onnx")
    sequences = [np.array([bucket], dtype=np.int32) for bucket in (3, 0, 2, 2, 1)]
    expected = LengthReference(BUCKETS).logits(sequences)
    assert measure(engine, expected, sequences).max_logit_difference == 0
    assert np.abs(softmax(engine.logits(sequences)) - np.array(BUCKETS.probabilities)[[3, 0, 2, 2, 1]]).max() < 1e-7


def test_the_same_buckets_give_the_same_bytes(tmp_path):
    hashes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        hashes.append(write_onnx(tmp_path / name, BUCKETS))
    assert hashes[0] == hashes[1]


def test_an_ensemble_of_a_classifier_and_length_buckets_is_checked_and_assembled(mixed):
    results = {(result["stage"], result["name"]): result for result in mixed.run("all")["results"]}
    assert results["check", "length"]["max_logit_difference"] == 0
    assert results["check", "length"]["sequences"] == 10
    repository = mixed.config.folders.repository
    verify(repository)
    names = {path.relative_to(repository).as_posix() for path in files_below(repository)}
    version = read_manifest(repository).details["version"]
    assert f"tokenize/{version}/length/length_buckets.json" in names
    assert {name for name in names if name.startswith("length/")} == {
        f"length/{version}/model.onnx",
        "length/config.pbtxt",
    }
    encoder = encoder_from_folder(repository / "tokenize" / str(version) / "length")
    assert encoder.encode(Battle(("p",), ("x" * 90,), ("y",))).ids.tolist() == [3]
    again = mixed.run("all")
    assert not any(result["changed"] for result in again["results"])


def test_refitted_buckets_are_exported_again(mixed):
    mixed.run("all")
    refitted = LengthBuckets(LABELS_THREE_WAY, "words", (0.0,), ((0.2, 0.6, 0.2), (0.6, 0.2, 0.2)))
    write_buckets(mixed.folder / "buckets", refitted)
    changed = {(result["stage"], result["name"]) for result in mixed.run("all")["results"] if result["changed"]}
    assert changed == {("onnx", "length"), ("check", "length"), ("repository", "tiny")}


def test_an_engine_of_other_buckets_does_not_pass(mixed, monkeypatch):
    other = LengthBuckets(LABELS_THREE_WAY, "characters", BUCKETS.edges, BUCKETS.probabilities[::-1])
    monkeypatch.setattr(
        "preference_export.graph.length_buckets.write_onnx", lambda folder, buckets: write_onnx(folder, other)
    )
    with pytest.raises(ParityError, match="`length` does not reproduce the original"):
        mixed.run("all")


@pytest.mark.slow
def test_an_engine_that_reads_other_inputs_is_not_put_into_a_repository(mixed, monkeypatch):
    earlier = Tensor("cu_seqlens", "INT32", (-1,))
    with monkeypatch.context() as patch:
        patch.setattr("preference_export.kinds.ENGINE_INPUTS", (INPUT_IDS, earlier, MAX_SEQLEN))
        mixed.run("all")
    for name in ("gemma", "length"):
        with pytest.raises(ArtefactError, match=f"members/{name}` was exported with other settings"):
            mixed.run("repository")
        mixed.run("all", "--member", name)
    mixed.run("repository")


def test_buckets_of_other_labels_are_refused(mixed):
    pair = LengthBuckets(("model_a", "model_b"), "characters", (), ((0.5, 0.5),))
    write_buckets(mixed.folder / "buckets", pair)
    with pytest.raises(ArtefactError, match="was fitted for the labels model_a, model_b"):
        mixed.run("all")


def test_merging_leaves_length_buckets_out(mixed):
    assert [result["name"] for result in mixed.run("merge")["results"]] == ["gemma"]


def test_a_plan_says_whether_the_buckets_are_fitted(mixed):
    config = load_config("ensemble.toml")
    plan = plan_of(jobs_of(config)[1])
    assert (plan.parameters, plan.bytes_out, plan.missing) == (12, 48, ())
    (mixed.folder / "buckets" / "length_buckets.json").unlink()
    assert plan_of(jobs_of(config)[1]).shapes_from == "nothing: the buckets are not fitted yet"


def test_tensorrt_parses_and_builds_the_table(tmp_path):
    pytest.importorskip("tensorrt")
    from preference_core.ensemble.settings import Build
    from preference_export.engine.build import build_engine
    from preference_export.engine.profiles import profiles_of

    write_onnx(tmp_path, BUCKETS)
    plan = tmp_path / "model.plan"
    warnings = build_engine(
        tmp_path / "model.onnx", plan, profiles_of(1, 16), Build(), tmp_path / "cache", lambda *_: None
    )
    assert any("max_seqlen" in warning for warning in warnings), "an input that nothing reads is warned of"
    assert len(set(warnings)) == len(warnings)
    assert plan.stat().st_size > 0
