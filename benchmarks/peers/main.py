"""Runs one peer in its own environment: `python main.py PEER CHECKPOINT [WORD ...]`.

PEER is a folder with `peer.py`: its `load(checkpoint, *words)` returns a function from token ids to logits, its
`PACKAGES` are the distributions whose versions matter. A line `go FILE` on standard input has the sequences of a JSON
file scored, `each FILE` one after the other, with the time of each; answers are JSON lines on standard output. It
imports nothing of this project: peers' environments do not have it.
"""

import importlib.util
import json
import os
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path


def main(peer: str, checkpoint: str, *words: str) -> None:
    sys.path.pop(0)  # The folders beside this file are called like the libraries.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    spec = importlib.util.spec_from_file_location("peer", Path(peer) / "peer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    score = module.load(checkpoint, *words)
    answers.write(json.dumps({"ready": {name: version(name) for name in module.PACKAGES}}) + "\n")
    for line in sys.stdin:
        how, file = line.rstrip("\n").split(" ", 1)
        sequences = json.loads(Path(file).read_text(encoding="utf-8"))
        parts = [sequences] if how == "go" else [[ids] for ids in sequences]
        logits, seconds = [], []
        for part in parts:
            start = time.perf_counter()
            logits += score(part)
            seconds.append(time.perf_counter() - start)
        answers.write(json.dumps({"seconds": sum(seconds), "each": seconds, "logits": logits}) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # Threads of libraries would keep it alive.
