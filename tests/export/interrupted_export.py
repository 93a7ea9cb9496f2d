"""Exports an ensemble in one folder undisturbed, and in another with KILLS times SIGKILL at random moments.

Whatever a kill leaves is what the next run begins with; a run that ends before its moment has come starts again.

    python interrupted_export.py UNDISTURBED KILLED KILLS SEED

Libraries are imported and the graph is traced once, before any run: each run is a fork, so that the moments of the
kills fall into the reading, writing, checking and assembling, and not into minutes of imports.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from preference_core.ensemble.loading import load_config
from preference_export.app import app
from preference_export.graph import write as onnx_export
from preference_export.graph.make import open_member
from preference_export.kinds import jobs_of

CONFIG = "ensemble.toml"


def run(folder: Path, kill_after_s: float | None = None) -> int | None:
    """Runs `preference-export all` in a process of its own; its exit code, or None if it was killed."""
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        try:
            app(["all", CONFIG], standalone_mode=False)
        except BaseException as error:  # the fork must end here, whatever happens
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def main() -> None:
    """Exits with 0 when every undisturbed run did."""
    undisturbed, killed = Path(sys.argv[1]), Path(sys.argv[2])
    moments = random.Random(int(sys.argv[4]))
    torch.set_num_threads(1)
    os.chdir(undisturbed)
    config = load_config(CONFIG)
    opened = open_member(jobs_of(config)[0])
    model = onnx_export.classifier_without_data(opened.architecture, opened.labels)
    graph = onnx_export.graph_of(model, opened.labels)
    onnx_export.graph_of = lambda model, labels: graph.clone()

    start = time.monotonic()
    if run(undisturbed) != 0:
        raise SystemExit("The undisturbed export failed")
    duration_s = time.monotonic() - start
    killed_runs = runs = 0
    while killed_runs < int(sys.argv[3]):
        runs += 1
        code = run(killed, kill_after_s=moments.uniform(0, duration_s))
        if code is None:
            killed_runs += 1
        elif code == 0:
            shutil.rmtree(killed / "build")
        else:
            raise SystemExit(f"Run {runs} failed on what a kill had left")
    sys.stdout.write(f"{killed_runs} of {runs} runs were killed; an undisturbed one took {duration_s:.1f} s\n")
    raise SystemExit(run(killed))


if __name__ == "__main__":
    main()
