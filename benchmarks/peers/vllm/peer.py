"""vLLM on a CPU: its pooling runner on all cores, without its prefix cache, which would know the last round."""

import os
import shutil

CORES = sorted(os.sched_getaffinity(0))
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, CORES))
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB

from vllm import LLM, PoolingParams  # noqa: E402  (reads the environment)

PACKAGES = ("torch", "transformers", "vllm-cpu")


def load(checkpoint):
    model = LLM(
        checkpoint,
        runner="pooling",
        dtype="float32",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        enforce_eager=shutil.which("g++") is None,
        max_model_len=8192,
    )
    logits = PoolingParams(use_activation=False)

    def score(sequences):
        prompts = [{"prompt_token_ids": ids} for ids in sequences]
        return [output.outputs.probs for output in model.classify(prompts, pooling_params=logits, use_tqdm=False)]

    return score
