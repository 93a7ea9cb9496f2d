"""An engine of this project without a server: one thread, packs of `pack` sequences as they come."""

from pathlib import Path

import numpy as np
import onnxruntime

PACKAGES = ("onnxruntime",)


def load(model, provider="CPUExecutionProvider", pack="1"):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(Path(model), options, providers=[provider])
    if provider not in session.get_providers():
        raise SystemExit(f"ONNX Runtime cannot use {provider} here")

    def score(sequences):
        logits = []
        for start in range(0, len(sequences), int(pack)):
            packed = sequences[start : start + int(pack)]
            lengths = [len(ids) for ids in packed]
            feeds = {
                "input_ids": np.concatenate([np.array(ids, np.int32) for ids in packed]),
                "lengths": np.array(lengths, np.int32),
                "max_seqlen": np.zeros(max(lengths), np.int32),
            }
            logits += session.run(["logits"], feeds)[0].tolist()
        return logits

    return score
