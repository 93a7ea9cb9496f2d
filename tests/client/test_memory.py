"""`preference-score` needs no more memory for many rows than for few. Real in everything but the server."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROWS = int(os.environ.get("PREFERENCE_SOAK_ROWS", "300000"))
MAX_MIB = 300

GENERATE = """
import sys
print("id,prompt,response_a,response_b")
for n in range(int(sys.argv[1])):
    print(f"{n},prompt {n},{'x' * (n % 200)},{'y' * (n % 300)}")
"""

SCORE = """
import sys
import numpy as np
from preference_client import scorer
from preference_client.codec import Ensemble
from preference_client.transport import Request

class Ended:
    def __init__(self, message): self.message, self.ensemble = message, Stub.ensemble
    def cancel(self): pass
    def answer(self):
        share = np.float32(len(self.message.response_a[0]) / 200)
        probabilities = np.array([share, 1 - share, 0], np.float32)
        return probabilities, np.stack([probabilities] * 2), np.zeros(2, np.int32), np.zeros((2, 3), np.int32)

class Stub:
    ensemble = Ensemble("preference_ensemble", ("a", "b", "tie"), ("gemma", "llama"))
    away = {}
    def __init__(self, *arguments): pass
    def request(self, battle, *more): return Request(battle, 300)
    def send(self, request, timeout_s, done):
        done()
        return Ended(request.message)
    def close(self): pass

scorer.Transport = Stub
from preference_client.app import app
try:
    app(sys.argv[1:])
finally:
    # Not ru_maxrss: that begins with what the process had that started this one.
    print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_number_of_rows(
    tmp_path: Path, suffix: str, measured: Callable[[str], None]
) -> None:
    output = tmp_path / f"p{suffix}"
    line = [sys.executable, "-c", SCORE, "-", "--format", "csv", "-o", str(output), "--no-resume"]
    with subprocess.Popen([sys.executable, "-c", GENERATE, str(ROWS)], stdout=subprocess.PIPE) as battles:
        run = subprocess.run(line, stdin=battles.stdout, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert f"{ROWS:,} rows scored" in run.stderr
    measured(f"{ROWS:,} rows of CSV through a pipe to {suffix}: at most {run.stdout.strip()} MiB")
    assert int(run.stdout) < MAX_MIB
