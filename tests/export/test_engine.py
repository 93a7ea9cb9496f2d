"""Engines: their profiles, what TensorRT would refuse, and that none is served without a word of being unchecked."""

from typing import ClassVar

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from triton_messages import message_of

from preference_core.artefacts.manifest import read_manifest, verify
from preference_core.ensemble.settings import Build, Classifier
from preference_core.errors import ArtefactError, ParityError, UserError
from preference_export.artefacts.names import MODEL_FILE
from preference_export.artefacts.versions import versions
from preference_export.engine import runtimes
from preference_export.engine.build import build_engine, check_operators
from preference_export.engine.operators import refusals
from preference_export.engine.profiles import profiles_of
from preference_export.engine.runtimes import gpu_architecture
from preference_export.graph.precision import Dtypes

QUICK = "\nbuild = { workspace_mebibytes = 256, optimisation_level = 0 }"


def model_of(*nodes, inputs=(("x", TensorProto.FLOAT),), initializers=()):
    values = [helper.make_tensor_value_info(name, dtype, [4]) for name, dtype in inputs]
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", values, [output], list(initializers)))


def test_profiles_follow_the_token_limits():
    latency, throughput = profiles_of(max_tokens=2048, max_batch_size=16)
    assert latency.lengths == {"input_ids": (1, 2048, 8192), "lengths": (1, 1, 16), "max_seqlen": (1, 2048, 2048)}
    assert throughput.lengths["input_ids"] == (1, 16 * 1024, 16 * 2048)
    assert throughput.lengths["lengths"] == (1, 16, 16)
    assert [profile.name for profile in profiles_of(512, 2)] == ["latency"]


def chosen_by_triton(profiles, tokens):
    """The profile of Triton's tensorrt backend: only the requests' own input counts, their number does not."""
    admitting = [p for p in profiles if p.lengths["input_ids"][0] <= tokens <= p.lengths["input_ids"][2]]
    return min(admitting, key=lambda profile: abs(profile.lengths["input_ids"][1] - tokens))


@pytest.mark.parametrize(
    ("max_tokens", "max_batch_size"), [(2048, 16), (512, 16), (192, 64), (48, 8), (512, 2), (16, 1)]
)
def test_every_batch_fits_the_profile_that_triton_chooses_by_its_tokens(max_tokens, max_batch_size):
    profiles = profiles_of(max_tokens, max_batch_size)
    for battles in range(1, max_batch_size + 1):
        for longest in {1, 7, 16, max_tokens // 3, max_tokens // 2, max_tokens - 1, max_tokens}:
            for lengths in ([longest] * battles, [longest] + [1] * (battles - 1)):
                profile = chosen_by_triton(profiles, sum(lengths))
                shapes = {"input_ids": sum(lengths), "lengths": battles, "max_seqlen": max(lengths)}
                for name, size in shapes.items():
                    least, _, most = profile.lengths[name]
                    assert least <= size <= most, (profile.name, name, lengths)


def test_what_tensorrt_would_refuse_is_listed_whole():
    zero = helper.make_tensor("zero", TensorProto.INT8, [], [3])
    model = model_of(
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="a/Dynamic"),
        helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE, name="b/Cast"),
        helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["y"], name="c/Quantize"),
        helper.make_node("Attention", ["x", "x", "x"], ["w"], softcap=30.0, name="d/Attention"),
        inputs=(("x", TensorProto.FLOAT), ("text", TensorProto.STRING)),
        initializers=[zero],
    )
    assert refusals(model) == [
        "`text`: tensors of type STRING are not supported",
        "`a/Dynamic` (DynamicQuantizeLinear): scales must be known when the engine is built",
        "`b/Cast` (Cast): tensors of type DOUBLE are not supported",
        "`c/Quantize` (QuantizeLinear): quantisation must be symmetric, its zero point is not a constant 0",
        "`d/Attention` (Attention): a soft-cap inside Attention is not supported",
    ]


def test_graphs_of_every_static_precision_are_accepted_and_dynamic_ones_are_not(tracer):
    check_operators(tracer.export("gemma2", "fp8", Dtypes("float16", "float8_e4m3fn")) / MODEL_FILE)
    dynamic = tracer.export("llama", "dynamic", Dtypes("float32", "int8", dynamic=True)) / MODEL_FILE
    with pytest.raises(ArtefactError, match=r"(?s)would refuse .*zero point is not a constant 0.*MatMulInteger.* more"):
        check_operators(dynamic)


def test_errors_of_the_parser_are_shown_with_their_node(tmp_path):
    pytest.importorskip("tensorrt")
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [3, 3])
    model = model_of(helper.make_node("Reshape", ["x", "shape"], ["y"], name="odd/Reshape"), initializers=[shape])
    onnx.save(model, tmp_path / MODEL_FILE)
    with pytest.raises(ArtefactError, match=r"cannot read .*\n  `odd/Reshape` \(Reshape\): "):
        build_engine(tmp_path / MODEL_FILE, tmp_path / "plan", (), Build(), tmp_path / "cache", lambda *told: None)


class Driver:
    """The CUDA driver of a machine with two GPUs, as far as it is asked."""

    numbers: ClassVar = {(75, 0): 8, (76, 0): 6, (75, 1): 9, (76, 1): 0}

    def __init__(self, name):
        assert name == "libcuda.so.1"

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 2
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.numbers[attribute, device]
        return 0


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(runtimes.ctypes, "CDLL", Driver)
    monkeypatch.setattr(runtimes, "_version_of_torch", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(runtimes, "gpus", runtimes.gpus.__wrapped__)


def on_gpus(*numbers):
    return Classifier(name="gemma", base="base", template="gemma", max_tokens=64, engine="tensorrt", gpus=numbers)


def test_an_engine_is_for_the_first_gpu_of_its_member(two_gpus):
    assert gpu_architecture(on_gpus()) == "sm_86"
    assert gpu_architecture(on_gpus(1, 0)) == "sm_90"
    with pytest.raises(UserError, match="`gpus` of `gemma` begins with 2; this machine has 2"):
        gpu_architecture(on_gpus(2))


def test_what_torch_cannot_use_is_not_a_gpu(two_gpus, monkeypatch):
    monkeypatch.setattr(runtimes, "_version_of_torch", lambda: {"cuda": None})
    assert gpu_architecture(on_gpus(1)) == "none"


def test_without_a_driver_there_is_no_gpu(two_gpus, monkeypatch):
    monkeypatch.setattr(runtimes.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert gpu_architecture(on_gpus(1)) == "none"


def test_the_version_of_torch_is_read_as_torch_has_it():
    assert runtimes._version_of_torch()["cuda"] == torch.version.cuda


@pytest.mark.slow
def test_an_unchecked_engine_is_served_only_on_request_and_the_manifest_says_so(project):
    tensorrt = pytest.importorskip("tensorrt")
    if torch.cuda.is_available():
        pytest.skip("a machine with a GPU checks its engines")
    project.edit("max_tokens = 48", 'max_tokens = 48\nengine = "tensorrt"' + QUICK)
    for stage in ("onnx", "engine", "check"):  # `all` refuses at once: it would have to compare the engine
        project.run(stage)
    with pytest.raises(ArtefactError, match="`gemma` was not compared with the original model"):
        project.run("repository")
    folder = project.folder / "build" / "tiny" / "engines" / "gemma"
    engine = verify(folder)
    assert engine.versions == {"tensorrt": tensorrt.__version__, **versions()}
    assert engine.details["gpu_architecture"] == "none"
    assert [profile["name"] for profile in engine.details["profiles"]] == ["latency", "throughput"]
    assert (folder.parent / "timing.cache").exists()
    assert project.run("engine")["results"][0]["changed"] is False
    assert project.run("repository", "--unchecked")["results"][0]["changed"] is True
    repository = project.config.folders.repository
    manifest = read_manifest(repository)
    version = str(manifest.details["version"])
    assert manifest.details["unchecked"] == ["gemma"]
    assert {path.name for path in (repository / "gemma" / version).iterdir()} == {"model.plan"}
    group = message_of((repository / "gemma" / "config.pbtxt").read_text()).instance_group[0]
    assert list(group.profile) == ["0", "1"]


@pytest.mark.slow
def test_an_engine_whose_graph_did_not_pass_is_refused_unchecked_or_not(project):
    pytest.importorskip("tensorrt")
    if torch.cuda.is_available():
        pytest.skip("a machine with a GPU checks its engines")
    limit = "\nparity = { max_logit_difference = 0.0 }"
    project.edit("max_tokens = 48", 'max_tokens = 48\nengine = "tensorrt"' + QUICK + limit)
    with pytest.raises(ParityError):
        project.run("all", "--unchecked")
    with pytest.raises(ParityError, match="`gemma` does not reproduce the original model"):
        project.run("repository", "--unchecked")


@pytest.mark.slow
def test_an_engine_of_another_graph_is_refused(project):
    pytest.importorskip("tensorrt")
    project.edit("max_tokens = 48", 'max_tokens = 48\nengine = "tensorrt"' + QUICK)
    project.run("engine")
    project.edit("max_batch_size = 8", "max_batch_size = 6")
    with pytest.raises(ArtefactError, match="was built from another graph or with other settings"):
        project.run("repository", "--unchecked")
