"""optimum's own ONNX export in ONNX Runtime: batches of 4, sorted by length and padded."""

import os

import numpy as np
import onnxruntime
from optimum.onnxruntime import ORTModelForSequenceClassification

PACKAGES = ("torch", "transformers", "optimum-onnx", "onnxruntime")
BATCH = 4


def load(checkpoint):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True, session_options=options)
    session, pad = model.model, model.config.pad_token_id
    wanted = {tensor.name for tensor in session.get_inputs()}

    def score(sequences):
        indices = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        logits = [None] * len(sequences)
        for start in range(0, len(sequences), BATCH):
            chosen = indices[start : start + BATCH]
            longest = max(len(sequences[index]) for index in chosen)
            ids = np.full((len(chosen), longest), pad, np.int64)
            mask = np.zeros_like(ids)
            for row, index in enumerate(chosen):
                ids[row, : len(sequences[index])] = sequences[index]
                mask[row, : len(sequences[index])] = 1
            positions = np.broadcast_to(np.arange(longest), ids.shape)
            feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            (rows,) = session.run(["logits"], {name: feeds[name] for name in wanted})
            for index, values in zip(chosen, rows.tolist(), strict=True):
                logits[index] = values
        return logits

    return score
