"""A TensorRT engine of this project without a server, in packs of `pack` sequences as they come. It has never run."""

from pathlib import Path

import numpy as np

from preference_export.gate.tensorrt_classifier import classifiers_of_plan

PACKAGES = ("torch", "tensorrt")


def load(plan, pack="4", labels="3"):
    latency, *throughput = classifiers_of_plan(Path(plan), int(labels))
    classifier = throughput[-1] if throughput and int(pack) > 1 else latency

    def score(sequences):
        logits = []
        for start in range(0, len(sequences), int(pack)):
            packed = [np.array(ids, np.int32) for ids in sequences[start : start + int(pack)]]
            logits += classifier.logits(packed).tolist()
        return logits

    return score
