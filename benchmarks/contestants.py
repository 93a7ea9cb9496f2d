"""Who is measured: this service through its client, and peers, each in processes of its own that wait for their turn.

A contestant is loaded once and then answers any battles any number of times, so that rounds can be interleaved.
"""

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from preference_client import Failure, Scorer
from preference_client.in_flight import MAX
from preference_client.rows import Outcome
from preference_core.ensemble.combination import softmax

MAIN = Path(__file__).resolve().parent / "peers" / "main.py"
LOG = "contestants.log"
COUNTED = re.compile(r'^nv_inference_(\w+)_duration_us\{model="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)
Sequences = Mapping[str, Sequence[npt.NDArray[np.int32]]]


@dataclass(frozen=True)
class Answer:
    """Wall time of all battles, and of each if one by one; `probabilities` [members, battles, labels]."""

    seconds: float
    each: Sequence[float]
    probabilities: npt.NDArray[np.float64]


class Contestant(Protocol):
    """Anything that scores its first `count` battles, or all of them."""

    name: str
    versions: Mapping[str, str]

    def start(self) -> None: ...
    def run(self, count: int | None = None, one_by_one: bool = False) -> Answer: ...
    def stop(self) -> None: ...


class Service:
    """An ensemble served by `preference-serve`, asked by `Scorer` in the order of arrival."""

    def __init__(self, name: str, folder: Path, config: Path, battles: Sequence[Any], in_flight: int = MAX) -> None:
        self.name = name
        self.versions: Mapping[str, str] = {}
        self._folder, self._config, self._battles = folder, config, battles
        self._in_flight = in_flight

    def limited(self, in_flight: int) -> "Service":
        """The same running server, asked with at most so many battles in flight."""
        other = Service(
            f"the same, at most {in_flight} in flight", self._folder, self._config, self._battles, in_flight
        )
        other.urls = self.urls
        return other

    def start(self) -> None:
        program = Path(os.environ["PREFERENCE_SERVER_PYTHON"]).with_name("preference-serve")
        ports = (f"--{service}-port=0" for service in ("grpc", "http", "metrics"))
        self._process = _started([program, self._config, "--json", *ports], self._folder)
        self.urls = json.loads(_line(self._process, self.name))

    def run(self, count: int | None = None, one_by_one: bool = False) -> Answer:
        with Scorer(
            self.urls["grpc"], invalid_text="replace", timeout_s=600, deadline_s=3600, max_in_flight=self._in_flight
        ) as scorer:
            start = time.perf_counter()
            each: list[float] = []
            if one_by_one:
                outcomes: list[Outcome] = []
                for battle in self._battles[:count]:
                    begun = time.perf_counter()
                    outcomes.append(scorer.score(battle))
                    each.append(time.perf_counter() - begun)
            else:
                outcomes = list(scorer.score_many(self._battles[:count]))
            seconds = time.perf_counter() - start
        rows = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise outcome.error
            rows.append(outcome.member_probabilities)
        return Answer(seconds, each, np.stack(rows, axis=1))

    def milliseconds(self) -> Mapping[tuple[str, str], float]:
        """What Triton has counted since the start, by model and stage: `request`, `queue`, `compute_infer`, ..."""
        with urllib.request.urlopen(f"http://{self.urls['metrics']}/metrics") as response:
            found = COUNTED.findall(response.read().decode())
        sums: defaultdict[tuple[str, str], float] = defaultdict(float)
        for stage, model, value in found:  # Of every version: those that were served before count 0.
            sums[model, stage] += float(value) / 1e3
        return dict(sums)

    def stop(self) -> None:
        _stopped(self._process)


class Peer:
    """A peer in its own environment: a process for each member, which run one after the other, or `at_once`.

    They are stopped while others are measured: some libraries keep a core busy with waiting for work.
    """

    versions: Mapping[str, str]

    def __init__(
        self,
        name: str,
        folder: Path,
        peer: Path,
        python: Path,
        checkpoints: Mapping[str, Path],
        sequences: Sequences,
        words: Sequence[str] = (),
        at_once: bool = False,
    ) -> None:
        self.name, self._folder, self._peer, self._python = name, folder, peer, python
        self._words, self._at_once = words, at_once
        self._checkpoints, self._sequences = checkpoints, sequences
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> None:
        for member, checkpoint in self._checkpoints.items():
            command = [self._python.absolute(), MAIN, self._peer.absolute(), checkpoint.absolute(), *self._words]
            self.processes[member] = _started(command, self._folder)
        for process in self.processes.values():
            self.versions = json.loads(_line(process, self.name))["ready"]
        self._signal(signal.SIGSTOP)

    def run(self, count: int | None = None, one_by_one: bool = False) -> Answer:
        self._signal(signal.SIGCONT)
        members = list(self.processes)
        start = time.perf_counter()
        groups = [members] if self._at_once else [[member] for member in members]
        answers: dict[str, Any] = {}
        for group in groups:
            for member in group:
                self._ask(member, "each" if one_by_one else "go", count)
            for member in group:
                answers[member] = json.loads(_line(self.processes[member], self.name))
        self._signal(signal.SIGSTOP)
        times = [answers[member]["seconds"] for member in members]
        seconds = max(times) if self._at_once else sum(times)
        assert seconds <= time.perf_counter() - start
        # Of battles one by one, the slower member counts, as in an ensemble.
        each = np.max([answers[member]["each"] for member in members], axis=0).tolist() if one_by_one else []
        return Answer(seconds, each, np.stack([softmax(np.array(answers[member]["logits"])) for member in members]))

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        for process in self.processes.values():
            _stopped(process)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _ask(self, member: str, how: str, count: int | None) -> None:
        path = self._folder / f"{member}-ids.json"
        path.write_text(json.dumps([ids.tolist() for ids in self._sequences[member][:count]]), encoding="utf-8")
        standard_input = self.processes[member].stdin
        assert standard_input is not None
        standard_input.write(f"{how} {path.absolute()}\n")
        standard_input.flush()


def _started(command: Sequence[Any], folder: Path) -> "subprocess.Popen[str]":
    """A process group in `folder`, where its words go to a log."""
    with (folder / LOG).open("a") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )


def _line(process: "subprocess.Popen[str]", name: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended with status {process.wait()}")
    return line


def _stopped(process: "subprocess.Popen[str]") -> None:
    """Ends a process, in peace if it can, and then whatever is left of its group."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
