"""Measures this service beside what people would use instead, on this CPU: `make bench` and `make bench-quick`.

What is compared is in `ensembles`, who in `contestants`, how in `compare`; results go to build/bench.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from compare import MAX_DIFFERENCE, Comparison, compare
from contestants import Peer, Service
from ensembles import (
    REAL_BATTLES,
    REAL_WEIGHTS,
    SHAPES,
    Ensemble,
    Row,
    battles_for,
    export,
    operations,
    write_checkpoints,
    write_classifier,
)
from machine import cores, machine
from report import Table, markdown, table_of, write

from preference_client.in_flight import MAX
from preference_core.tensors import COMBINE, ENSEMBLE, TOKENIZE

PEERS = Path(__file__).resolve().parent / "peers"
#: Peers' environments, made by `make`; Transformers is in this one.
ENVIRONMENTS = Path("build/bench/peers")
BOTH = {"gemma": "gemma", "llama": "llama"}
OWN = "this service, FP32"
#: INT8 is another precision: how far it may be from FP32 before its time means nothing.
INT8_DIFFERENCE = 0.2
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
IN_FLIGHT = (1, 4, 16, 64)
MEMBERS = (1, 2, 3)
ONE_BY_ONE = 24
#: Where `make real-bases` leaves them.
REAL_BASES = "build/real/bases"

T = TypeVar("T", Service, Peer)


def say(text: str) -> None:
    """Tells a person how far it is."""
    typer.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


class Bench:
    """The folder in which everything is made, and the battles."""

    def __init__(self, folder: Path, battles: Sequence[Row], rounds: int) -> None:
        self.folder, self.battles, self.rounds = folder, battles, rounds
        self.comparisons: list[Comparison] = []
        self.tables: list[Table] = []
        self.curves: dict[str, dict[str, dict[float, float]]] = {}
        self._running = ExitStack()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def service(self, name: str, ensemble: Ensemble, in_flight: int = MAX) -> Service:
        """An exported ensemble, served from now on."""
        service = Service(name, self.folder, export(self.folder, ensemble), self.battles, in_flight)
        return self._started(service)

    def engines(self, name: str, ensemble: Ensemble) -> Peer:
        """The engines of an exported ensemble without a server, each on a core of its own."""
        python = Path(os.environ["PREFERENCE_SERVER_PYTHON"])
        models = {member: ensemble.model(self.folder, member) for member in ensemble.members}
        ids = self._ids(ensemble)
        return self._started(Peer(name, self.folder, PEERS / "engine", python, models, ids, at_once=True))

    def peer(self, name: str, peer: str, ensemble: Ensemble, *words: str) -> Peer:
        """A peer with the checkpoints of an ensemble, one after the other on all cores."""
        python = Path(sys.executable) if peer == "transformers" else ENVIRONMENTS / peer / "bin/python"
        checkpoints = {name: self.folder / "checkpoints" / of for name, of in ensemble.members.items()}
        return self._started(Peer(name, self.folder, PEERS / peer, python, checkpoints, self._ids(ensemble), words))

    def compare(self, title: str, ensemble: Ensemble, contestants: Sequence[tuple[Any, float]], rounds: int) -> None:
        """Compares, and keeps the table; the second contestant is the service that the others are measured by."""
        ids = self._ids(ensemble)
        lengths = {member: [len(row) for row in rows] for member, rows in ids.items()}
        needed = sum(
            operations(self.folder / "checkpoints" / checkpoint, lengths[member])
            for member, checkpoint in ensemble.members.items()
        )
        totals = np.sum(list(lengths.values()), axis=0).tolist()
        found = compare(title, contestants, totals, needed, rounds, say)
        self.comparisons.append(found)
        self.keep(table_of(found, contestants[1][0].name))

    def keep(self, table: Table) -> None:
        """Prints a table and keeps it for the report."""
        self.tables.append(table)
        typer.echo(markdown(table))

    def stop(self) -> None:
        """Ends everything that runs, to have the machine for what comes."""
        self._running.close()

    def _started(self, contestant: T) -> T:
        say(f"loading {contestant.name}")
        contestant.start()
        self._running.callback(contestant.stop)
        return contestant

    def _ids(self, ensemble: Ensemble) -> Mapping[str, Any]:
        return {member: ensemble.ids(self.folder, member, self.battles) for member in ensemble.members}


def latency(bench: Bench, service: Service, engines: Peer, members: Sequence[str]) -> None:
    """One battle at a time on an idle server: where its time goes, by Triton's own counters."""
    count = min(ONE_BY_ONE, len(bench.battles))
    models = (ENSEMBLE, TOKENIZE, *members, COMBINE)
    before = service.milliseconds()
    answer = service.run(count, one_by_one=True)
    after = service.milliseconds()
    alone = engines.run(count, one_by_one=True)

    def milliseconds(model: str, *stages: str) -> float:
        return sum(after[model, stage] - before[model, stage] for stage in stages) / count

    computing = ("compute_input", "compute_infer", "compute_output")
    whole, mean = milliseconds(ENSEMBLE, "request"), 1e3 * sum(answer.each) / count
    stages = {"client, gRPC and front door": mean - whole, "tokenize": milliseconds(TOKENIZE, *computing)}
    stages |= {f"engine {member} (at the same time)": milliseconds(member, *computing) for member in members}
    stages |= {"combine": milliseconds(COMBINE, *computing)}
    stages |= {
        "queues of all (the front door's probes wait behind a battle)": sum(
            milliseconds(model, "queue") for model in models[1:]
        )
    }
    rows = [[stage, f"{value:.2f}", f"{value / mean:.1%}"] for stage, value in stages.items()]
    title = f"One battle at a time: mean of {count}, {mean:.1f} ms"
    bench.keep((title, ("stage", "milliseconds", "of the whole"), rows))
    served, bare = (1e3 * median(each) for each in (answer.each, alone.each))
    row = [f"{served:.1f}", f"{bare:.1f}", f"{served / bare:.2f} x"]
    bench.keep(("One battle on an idle server", ("p50 served, ms", "p50 slower engine alone, ms", "ratio"), [row]))


def growth(bench: Bench) -> None:
    """How cost grows with tokens, members, requests in flight and rows."""
    long = Ensemble("long", BOTH, max_tokens=max(TOKENS))
    export(bench.folder, long, "onnx")
    lines: dict[str, dict[float, float]] = {}
    for member in BOTH:
        ids = [np.arange(10, 10 + count, dtype=np.int32) % 4096 for count in TOKENS]
        models = {member: long.model(bench.folder, member)}
        python = Path(os.environ["PREFERENCE_SERVER_PYTHON"])
        engine = Peer(f"engine {member}", bench.folder, PEERS / "engine", python, models, {member: ids})
        engine.start()
        engine.run(one_by_one=True)
        lines[member] = dict(zip(TOKENS, engine.run(one_by_one=True).each, strict=True))
        engine.stop()
    bench.curves["seconds against tokens of one sequence"] = lines
    names = list(BOTH.values())
    by_members: dict[float, float] = {}
    for count in MEMBERS:
        members = {f"member_{number}": names[number % len(names)] for number in range(count)}
        service = bench.service(f"{count} members", Ensemble(f"members_{count}", members))
        service.run(4)
        by_members[count] = service.run().seconds
        if count == 2:
            rows = [len(bench.battles) // part for part in (8, 4, 2, 1)]
            by_rows: dict[float, float] = {number: service.run(number).seconds for number in rows}
            bench.curves["seconds against rows"] = {OWN: by_rows}
        bench.stop()
    bench.curves["seconds against members"] = {OWN: by_members}
    for title, curves in bench.curves.items():
        y, x = title.split(" against ")
        points = [[name, f"{key:g}", f"{value:.3f}"] for name, line in curves.items() for key, value in line.items()]
        bench.keep((f"How {y} grow with {x}", ("of", x, y), points))


def main(
    quick: Annotated[bool, typer.Option(help="This service, Transformers and vLLM only.")] = False,
    rows: Annotated[int | None, typer.Option(help="Battles; 16 for --quick, else 40.", min=2)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison.", min=1)] = 3,
    folder: Annotated[Path, typer.Option(help="Where everything is made.")] = Path("build/bench"),
) -> None:
    """Writes FOLDER/bench.json, bench.html and plots, and prints the tables as Markdown."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that nothing that was started stays.
    battles = battles_for(rows or (16 if quick else 40))
    kind = "real" if os.environ.get(REAL_BATTLES) else "generated"
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoints(folder, SHAPES, battles)
    fp32, int8 = Ensemble("fp32", BOTH), Ensemble("int8", BOTH, "int8")
    with Bench(folder, battles, rounds) as bench:
        served = bench.service(OWN, fp32)
        engines = bench.engines("its engines bare, one for each core", fp32)
        fast = bench.service("this service, INT8", int8)
        contestants = [(engines, MAX_DIFFERENCE), (served, MAX_DIFFERENCE), (fast, INT8_DIFFERENCE)]
        if not quick:
            contestants += [(served.limited(count), MAX_DIFFERENCE) for count in IN_FLIGHT]
        contestants += [
            (bench.peer(f"Transformers, batches of 4, {order}", "transformers", fp32, order), MAX_DIFFERENCE)
            for order in (("sorted",) if quick else ("sorted", "unsorted"))
        ]
        names = {"vllm": "vLLM", "infinity": "infinity-emb, torch", "optimum": "optimum's ONNX export, padded"}
        for peer in list(names)[:1] if quick else names:
            contestants.append((bench.peer(names[peer], peer, fp32), MAX_DIFFERENCE))
        bench.compare(f"Two members of 35 M parameters, {kind} battles", fp32, contestants, rounds)
        latency(bench, served, engines, list(BOTH))
        bench.stop()
        if not quick:
            growth(bench)
            real_weights(bench)
        write(folder, machine(), bench.comparisons, bench.tables, bench.curves)
    typer.echo(f"{folder}/bench.json, {folder}/bench.html: written", err=True)


def real_weights(bench: Bench) -> None:
    """One pretrained member of 135 M parameters, where the environment has its checkpoint."""
    base = Path(os.environ.get(REAL_WEIGHTS, REAL_BASES)) / "smollm2"
    if not base.is_dir():
        say(f"there is no `{base}`: real weights are not measured (`make real-bases` fetches them)")
        return
    write_classifier(base, bench.folder / "checkpoints" / "smollm2")
    bench.battles = bench.battles[:16]
    real = Ensemble("real", {"smollm2": "smollm2"}, instances=cores())
    service = bench.service(OWN, real)
    contestants = [
        bench.peer("Transformers, batches of 4, sorted", "transformers", real),
        service,
        bench.peer("vLLM", "vllm", real),
        bench.peer("infinity-emb, torch", "infinity", real),
    ]
    pairs = [(contestant, MAX_DIFFERENCE) for contestant in contestants]
    bench.compare("A pretrained Llama of 135 M parameters", real, pairs, min(bench.rounds, 2))
    bench.stop()


if __name__ == "__main__":
    typer.run(main)
