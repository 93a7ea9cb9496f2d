"""Transformers as the published solutions run it: batches of 4, padded to the longest, sorted by length or not."""

import os

import torch
from transformers import AutoModelForSequenceClassification

PACKAGES = ("torch", "transformers")
BATCH = 4


def load(checkpoint, order="sorted", device="cpu", dtype="float32"):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = (
        AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval().to(device)
    )
    pad = model.config.pad_token_id

    @torch.inference_mode()
    def score(sequences):
        indices = range(len(sequences))
        if order == "sorted":
            indices = sorted(indices, key=lambda index: len(sequences[index]))
        logits = [None] * len(sequences)
        for start in range(0, len(sequences), BATCH):
            chosen = indices[start : start + BATCH]
            rows = [torch.tensor(sequences[index]) for index in chosen]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
            lengths = torch.tensor([len(row) for row in rows])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
            for index, row in zip(
                chosen, model(ids.to(device), attention_mask=mask).logits.float().tolist(), strict=True
            ):
                logits[index] = row
        return logits

    return score
