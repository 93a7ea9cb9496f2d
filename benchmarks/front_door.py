"""The front door of `preference-serve` on the demo: what it costs, and what overload does. Prints figures.

    .venv/bin/python benchmarks/front_door.py cost        about 2 minutes
    .venv/bin/python benchmarks/front_door.py overload    about 100 seconds

`cost` sends the demo's battles through the door and to the server behind it, in turns. `overload` sends ten times as
many battles in both orders as are answered. One process sends, on the same machine: what it takes is taken from both.
"""

import argparse
import asyncio
import csv
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from preference_core import tensors

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))
from served import Served, children_of, get, serving

METHOD = "/inference.GRPCInferenceService/ModelInfer"
BATTLES = Path("build/demo/data/test.csv")
IN_FLIGHT = 16
ROUNDS, ROUND_S = 12, 4.0
CALM_S, OVERLOAD_S, TIMES = 20.0, 60.0, 10
HEALTH_INTERVAL_S = 0.2


def requests(model: str) -> list[bytes]:
    """The demo's battles as messages."""
    messages = []
    with BATTLES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            message = service_pb2.ModelInferRequest(model_name=model)
            for name in ("prompt", "response_a", "response_b"):
                turns = [(turn or "").encode() for turn in json.loads(row[name])]
                message.inputs.add(name=name, datatype="BYTES", shape=[1, len(turns)])
                message.raw_input_contents.append(b"".join(len(t).to_bytes(4, "little") + t for t in turns))
            messages.append(message.SerializeToString())
    return messages


async def rate(call: Any, messages: Sequence[bytes], seconds: float) -> float:
    """Answers per second while IN_FLIGHT battles are always under way."""
    waiting, answered, end = itertools.cycle(messages), 0, time.perf_counter() + seconds

    async def one_after_another() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            await call(next(waiting))
            answered += 1

    began = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
    return answered / (time.perf_counter() - began)


async def cost(serve: Served) -> list[str]:
    """Rates through the door and past it, round by round; the same battles, the same server."""
    messages = requests(tensors.ENSEMBLE)
    behind = next(Path(tempfile.gettempdir()).glob(f"preference-{serve.process.pid}-*/grpc:*"))
    async with (
        grpc.aio.insecure_channel(serve.urls["grpc"]) as door,
        grpc.aio.insecure_channel(f"unix:{behind}") as direct,
    ):
        calls = {"through": door.unary_unary(METHOD), "past": direct.unary_unary(METHOD)}
        rates: dict[str, list[float]] = {name: [] for name in calls}
        door_s, server_s = -cpu_s(serve.process.pid), -server_cpu_s(serve)
        for number in range(ROUNDS + 1):  # The first one warms up.
            for name in sorted(calls, reverse=number % 2 == 1):
                rates[name].append(await rate(calls[name], messages, ROUND_S))
        door_s, server_s = door_s + cpu_s(serve.process.pid), server_s + server_cpu_s(serve)
    through, past = rates["through"][1:], rates["past"][1:]
    ratios = [with_door / without for with_door, without in zip(through, past, strict=True)]
    return [
        f"medians: {statistics.median(through):.0f} battles/s through the door, {statistics.median(past):.0f} past it",
        f"ratio of each round: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}",
        f"processor for a battle: {door_s / sum(rates['through']) / ROUND_S * 1000:.2f} ms in the door, "
        f"{server_s / sum(map(sum, rates.values())) / ROUND_S * 1000:.2f} ms in the server",
        f"load of the machine: {os.getloadavg()[0]:.1f}",
    ]


def cpu_s(pid: int) -> float:
    """What a process has taken of the processors, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_cpu_s(serve: Served) -> float:
    """What tritonserver and its models have taken."""
    assert serve.triton is not None
    return sum(map(cpu_s, (serve.triton, *children_of(serve.triton))))


def health(url: str, seconds: float) -> list[float]:
    """How long the server took to say that it is ready, again and again."""
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert get(url, "/v2/health/ready")[0] == 200
        took.append(time.monotonic() - began)
        time.sleep(HEALTH_INTERVAL_S)
    return took


async def overload(serve: Served) -> list[str]:
    """The rate of a calm minute, then that of battles let in while TIMES as many come as are answered."""
    messages = requests(tensors.ENSEMBLE_SYMMETRIC)
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(serve.urls["grpc"]) as channel:
        call = channel.unary_unary(METHOD)
        await rate(call, messages, CALM_S / 4)
        calm = await rate(call, messages, CALM_S)
        codes: Counter[str] = Counter()
        took: dict[str, list[float]] = {"OK": [], "UNAVAILABLE": []}

        async def ask(message: bytes) -> None:
            began, code = loop.time(), "OK"
            try:
                await call(message, timeout=60)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            codes[code] += 1
            took.setdefault(code, []).append(loop.time() - began)

        with ProcessPoolExecutor(1) as pool:
            healthy = loop.run_in_executor(pool, health, serve.urls["http"], OVERLOAD_S)
            asked, waiting, began, cpu = set(), itertools.cycle(messages), loop.time(), time.process_time()
            while loop.time() - began < OVERLOAD_S:
                due = int((loop.time() - began) * calm * TIMES) - sum(codes.values()) - len(asked)
                for _ in range(due):
                    task = asyncio.create_task(ask(next(waiting)))
                    asked.add(task)
                    task.add_done_callback(asked.discard)
                await asyncio.sleep(0.01)
            answered, cpu = codes["OK"], time.process_time() - cpu
            await asyncio.gather(*asked)
            checks = await healthy
    return [
        f"calm: {calm:.0f} battles/s in both orders; then {sum(codes.values()) / OVERLOAD_S:.0f}/s were sent for "
        f"{OVERLOAD_S:.0f} s: {dict(codes)}",
        f"accepted: {answered / OVERLOAD_S / calm:.2f} of the calm rate; {within(took['OK'])}",
        f"refused: {within(took['UNAVAILABLE'])}",
        f"health: {within(checks)}",
        f"the sender took {cpu:.0f} s of a processor; load of the machine: {os.getloadavg()[0]:.1f}",
    ]


def within(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and maximum."""
    if len(seconds) < 2:
        return "none"
    late = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return f"median {statistics.median(seconds):.2f} s, 99 % {late:.2f} s, at most {max(seconds):.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["cost", "overload"])
    what = {"cost": cost, "overload": overload}[parser.parse_args().what]
    os.environ.setdefault("PREFERENCE_SERVER_PYTHON", str(Path(".venv-server/bin/python").absolute()))
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "server.log") as serve:
        sys.stdout.write("\n".join([*asyncio.run(what(serve)), ""]))


if __name__ == "__main__":
    main()
