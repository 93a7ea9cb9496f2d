"""The front door of `preference-serve`: what it costs, and what overload does. Prints figures.

    .venv/bin/python benchmarks/front_door.py cost        about 2 minutes
    .venv/bin/python benchmarks/front_door.py overload    about 100 seconds

`cost` sends battles through the door and to the server behind it, in turns. `overload` sends ten times as many battles
in both orders as are answered. One process sends, on the same machine: what it takes is taken from both. So the demo,
whose models take milliseconds, shows the worst; `--config`, `--battles` and `--seconds` measure another ensemble, from
the folder of its configuration.
"""

import argparse
import asyncio
import itertools
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
from preference_core.battles.battle import battle_from_row
from preference_core.files.rows import read_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))
from served import ROOT, Served, children_of, get, serving

METHOD = "/inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT = 16
ROUNDS, ROUND_S = 12, 4.0
#: Seconds of overload; the calm before it takes a third.
OVERLOAD_S, TIMES = 60.0, 10
HEALTH_INTERVAL_S = 0.2


def requests(model: str, battles: Path) -> list[bytes]:
    """A file's battles as messages."""
    messages = []
    for row in read_rows(battles):
        battle = battle_from_row(row, invalid_text="replace")
        message = service_pb2.ModelInferRequest(model_name=model)
        for tensor in tensors.BATTLE_INPUTS:
            turns = [turn.encode() for turn in getattr(battle, tensor.name)]
            message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, len(turns)])
            message.raw_input_contents.append(tensors.bytes_contents(turns))
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


async def cost(serve: Served, battles: Path, seconds: float, rounds: int) -> list[str]:
    """Rates through the door and past it, round by round; the same battles, the same server."""
    messages = requests(tensors.ENSEMBLE, battles)
    behind = next(Path(tempfile.gettempdir()).glob(f"preference-{serve.process.pid}-*/grpc:*"))
    async with (
        grpc.aio.insecure_channel(serve.urls["grpc"]) as door,
        grpc.aio.insecure_channel(f"unix:{behind}") as direct,
    ):
        calls = {"through": door.unary_unary(METHOD), "past": direct.unary_unary(METHOD)}
        rates: dict[str, list[float]] = {name: [] for name in calls}
        door_s, server_s = -cpu_s(serve.process.pid), -server_cpu_s(serve)
        for number in range(rounds + 1):  # The first one warms up.
            for name in sorted(calls, reverse=number % 2 == 1):
                rates[name].append(await rate(calls[name], messages, seconds))
        door_s, server_s = door_s + cpu_s(serve.process.pid), server_s + server_cpu_s(serve)
    through, past = rates["through"][1:], rates["past"][1:]
    ratios = [with_door / without for with_door, without in zip(through, past, strict=True)]
    return [
        f"medians: {statistics.median(through):.1f} battles/s through the door, {statistics.median(past):.1f} past it",
        f"ratio of each round: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}",
        f"processor for a battle: {door_s / sum(rates['through']) / seconds * 1000:.2f} ms in the door, "
        f"{server_s / sum(map(sum, rates.values())) / seconds * 1000:.2f} ms in the server",
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


async def overload(serve: Served, battles: Path, seconds: float) -> list[str]:
    """The rate of a calm time, then that of battles let in while TIMES as many come as are answered."""
    messages = requests(tensors.ENSEMBLE_SYMMETRIC, battles)
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(serve.urls["grpc"]) as channel:
        call = channel.unary_unary(METHOD)
        await rate(call, messages, seconds / 12)
        calm = await rate(call, messages, seconds / 3)
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
            healthy = loop.run_in_executor(pool, health, serve.urls["http"], seconds)
            asked, waiting, began, cpu = set(), itertools.cycle(messages), loop.time(), time.process_time()
            while loop.time() - began < seconds:
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
        f"calm: {calm:.1f} battles/s in both orders; then {sum(codes.values()) / seconds:.1f}/s were sent for "
        f"{seconds:.0f} s: {dict(codes)}",
        f"accepted: {answered / seconds / calm:.2f} of the calm rate; {within(took['OK'])}",
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
    parser.add_argument("--config", default="configs/demo.toml", help="what is served")
    parser.add_argument("--battles", type=Path, default=Path("build/demo/data/test.csv"), help="what is sent")
    parser.add_argument(
        "--seconds", type=float, help=f"of a round of `cost` ({ROUND_S:g}), of overload ({OVERLOAD_S:g})"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of `cost`")
    chosen = parser.parse_args()
    os.environ.setdefault("PREFERENCE_SERVER_PYTHON", str(ROOT / ".venv-server/bin/python"))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "server.log", config=chosen.config, folder=Path.cwd()) as serve,
    ):
        if chosen.what == "cost":
            found = cost(serve, chosen.battles, chosen.seconds or ROUND_S, chosen.rounds)
        else:
            found = overload(serve, chosen.battles, chosen.seconds or OVERLOAD_S)
        sys.stdout.write("\n".join([*asyncio.run(found), ""]))


if __name__ == "__main__":
    main()
