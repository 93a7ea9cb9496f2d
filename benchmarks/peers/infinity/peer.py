"""infinity-emb's torch engine. It takes texts, so its tokenizer here reads `17 5 233` as the ids 17, 5 and 233."""

import asyncio
import json
import math
import shutil
import tempfile
from pathlib import Path

from infinity_emb import AsyncEmbeddingEngine, EngineArgs

PACKAGES = ("torch", "transformers", "infinity-emb")
PADDING = "<pad>"


def load(checkpoint):
    folder = Path(tempfile.mkdtemp(prefix="preference-infinity-"))
    for path in Path(checkpoint).iterdir():
        if not path.name.startswith(("tokenizer", "special_tokens")):
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((folder / "config.json").read_text())
    write_tokenizer(folder, config["vocab_size"], config["pad_token_id"])
    loop = asyncio.new_event_loop()
    arguments = EngineArgs(
        model_name_or_path=str(folder),
        engine="torch",
        device="cpu",
        dtype="float32",
        bettertransformer=False,
        batch_size=4,
        model_warmup=False,
    )
    engine = AsyncEmbeddingEngine.from_args(arguments)
    loop.run_until_complete(engine.astart())
    shutil.rmtree(folder)
    names = [config["id2label"][str(number)] for number in range(len(config["id2label"]))]

    def score(sequences):
        texts = [" ".join(map(str, ids)) for ids in sequences]
        answers, _ = loop.run_until_complete(engine.classify(sentences=texts))
        scores = [{answer["label"]: answer["score"] for answer in row} for row in answers]
        return [[math.log(row[name]) for name in names] for row in scores]  # It answers probabilities.

    return score


def write_tokenizer(folder, vocabulary, pad):
    from tokenizers import Tokenizer, models, pre_tokenizers

    # A token of padding is looked for inside of words, too, so it must not be called `0`. As that of unknown words it
    # stands for its own number.
    names = {PADDING if number == pad else str(number): number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token=PADDING))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PADDING, "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 8192}))
