"""Triton configurations say what DESIGN says, for one member or many, and survive Triton's own protobuf."""

import pytest
from triton_messages import message_of
from tritonclient.grpc import model_config_pb2 as triton

from preference_core import tensors
from preference_core.ensemble.settings import Classifier, Config, Serving
from preference_export.repository.triton_config import HEADER, model_configs, text_of

SERVING = Serving(
    max_batch_size=8, max_queue_delay_microseconds=500, max_queue_size=99, queue_timeout_microseconds=7_000_000
)


def member(name, **changes):
    return Classifier(name=name, base=f"bases/{name}", template="gemma", max_tokens=64, **changes)


def config(*members, labels=("winner_model_a", "winner_model_b", "winner_tie")):
    return Config(name="some", members=members, labels=labels, serving=SERVING)


ONE = config(member("gemma"), labels=("model_a", "model_b"))
TWO = config(member("gemma", threads=2, instances=3), member("llama", engine="tensorrt", gpus=(1,)))
THREE = config(member("gemma"), member("llama"), member("qwen", gpus=(0, 1)))


@pytest.mark.parametrize("ensemble", [ONE, TWO, THREE], ids=["one", "two", "three"])
def test_every_configuration_survives_a_round_trip_through_text(ensemble):
    for name, message in model_configs(ensemble).items():
        text = text_of(message)
        assert text.startswith(HEADER)
        assert message_of(text) == message
        assert text_of(message_of(text)) == text
        # No tensor holds two battles of different lengths, so the ensembles promise none.
        assert (message.name, message.max_batch_size) == (name, 1 if message.platform == "ensemble" else 8)


@pytest.mark.parametrize("ensemble", [ONE, TWO, THREE], ids=["one", "two", "three"])
def test_every_step_is_fed_by_an_input_or_an_earlier_step_and_every_output_is_made_once(ensemble):
    models = model_configs(ensemble)
    for name in (tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC):
        message = models[name]
        known = {tensor.name for tensor in message.input}
        for step in message.ensemble_scheduling.step:
            model = models[step.model_name]
            assert set(step.input_map) == {tensor.name for tensor in model.input}
            assert set(step.output_map) <= {tensor.name for tensor in model.output}
            assert set(step.input_map.values()) <= known
            assert not set(step.output_map.values()) & known
            known |= set(step.output_map.values())
        assert {tensor.name for tensor in message.output} <= known


def test_every_model_is_told_members_and_labels_in_order():
    for message in model_configs(TWO).values():
        assert message.parameters["members"].string_value == "gemma,llama"
        assert message.parameters["labels"].string_value == "winner_model_a,winner_model_b,winner_tie"


def test_engines_take_requests_of_many_lengths_and_triton_tells_their_lengths():
    message = model_configs(TWO)["gemma"]
    assert (message.backend, message.input[0].name, message.input[0].allow_ragged_batch) == (
        "onnxruntime",
        "input_ids",
        True,
    )
    made = {batch_input.target_name[0]: batch_input for batch_input in message.batch_input}
    assert made["lengths"].kind == triton.BatchInput.BATCH_ITEM_SHAPE_FLATTEN
    assert made["max_seqlen"].kind == triton.BatchInput.BATCH_MAX_ELEMENT_COUNT_AS_SHAPE
    assert all(batch_input.source_input == ["input_ids"] for batch_input in made.values())
    assert [(tensor.name, list(tensor.dims)) for tensor in message.output] == [("logits", [3])]


def test_only_engines_on_a_gpu_merge_requests_and_only_tokenize_before_them_has_a_cap():
    assert not any(message.HasField("dynamic_batching") for message in model_configs(ONE).values())
    models = {**model_configs(THREE), **model_configs(TWO)}
    merging = {name for name, message in models.items() if message.HasField("dynamic_batching")}
    assert merging == {"tokenize", "llama", "qwen"}
    assert models["tokenize"].dynamic_batching.default_queue_policy.max_queue_size == 99
    for name in ("llama", "qwen"):
        batching = models[name].dynamic_batching
        policy = batching.default_queue_policy
        assert (batching.max_queue_delay_microseconds, policy.max_queue_size) == (500, 0)
        assert (policy.timeout_action, policy.default_timeout_microseconds) == (
            triton.ModelQueuePolicy.REJECT,
            7_000_000,
        )
        assert policy.allow_timeout_override


def test_engines_run_where_the_configuration_says():
    cpu, gpu = (model_configs(TWO)[name] for name in ("gemma", "llama"))
    assert (cpu.instance_group[0].kind, cpu.instance_group[0].count) == (triton.ModelInstanceGroup.KIND_CPU, 3)
    assert cpu.parameters["intra_op_thread_count"].string_value == "2"
    assert (gpu.backend, gpu.default_model_filename) == ("tensorrt", "model.plan")
    assert (gpu.instance_group[0].kind, list(gpu.instance_group[0].gpus)) == (triton.ModelInstanceGroup.KIND_GPU, [1])
    assert model_configs(THREE)["qwen"].instance_group[0].kind == triton.ModelInstanceGroup.KIND_GPU


def test_onnx_runtime_is_told_on_a_gpu_that_single_precision_means_that():
    for ensemble, name, accelerators in ((THREE, "qwen", ["cuda"]), (THREE, "gemma", []), (TWO, "llama", [])):
        message = model_configs(ensemble)[name]
        added = message.optimization.execution_accelerators.gpu_execution_accelerator
        assert [accelerator.name for accelerator in added] == accelerators
        assert all(dict(accelerator.parameters) == {"use_tf32": "0"} for accelerator in added)


def test_the_symmetric_ensemble_exchanges_the_responses_of_its_second_half():
    steps = model_configs(TWO)[tensors.ENSEMBLE_SYMMETRIC].ensemble_scheduling.step
    first, second = (dict(step.input_map) for step in steps if step.model_name == "tokenize")
    assert first == {"prompt": "prompt", "response_a": "response_a", "response_b": "response_b"}
    assert second == {"prompt": "prompt", "response_a": "response_b", "response_b": "response_a"}
    assert [step.model_name for step in steps].count("gemma") == 2
    counts = [step for step in steps if "token_counts" in step.output_map]
    assert len(counts) == 1
    assert dict(counts[0].input_map) == first


def test_only_the_symmetric_combination_takes_both_orders():
    models = model_configs(ONE)
    for name, symmetric, inputs in (
        ("combine", "false", ["gemma_logits", "special_case", "weights"]),
        ("combine_symmetric", "true", ["gemma_logits_ab", "gemma_logits_ba", "special_case", "weights"]),
    ):
        assert models[name].parameters["symmetric"].string_value == symmetric
        assert [tensor.name for tensor in models[name].input] == inputs
        assert [tensor.name for tensor in models[name].input if tensor.optional] == ["weights"]
