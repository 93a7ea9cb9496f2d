"""Fits several members at once, each in a process of its own with its share of the cores.

On a CPU, two members on one thread each finish sooner than one after the other on two threads.
What needs torch is imported late, so that a worker handles Ctrl-C before long work begins.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from queue import Empty, Queue
from typing import Any

from preference_core.ensemble.settings import Classifier, Config
from preference_core.errors import SystemFailure
from preference_training.fit.adapter import adapter_stage

Measured = Mapping[str, Any]

#: `report(member, step, steps, values)`
MemberReport = Callable[[str, int, int, Mapping[str, float]], None]

_SECONDS_BETWEEN_REPORTS = 0.2


def default_jobs(members: int) -> int:
    """Members to fit at once: one per core at most, or one at a time where there is a GPU for it."""
    import torch

    return 1 if torch.cuda.is_available() else min(members, _cores())


def fit_members(config: Config, members: Sequence[Classifier], jobs: int, report: MemberReport) -> dict[str, Measured]:
    """Fits `members` into their folders, `jobs` at a time; returns what was measured, by name.

    The first error is raised once the running members are done; the others are not started.
    """
    if jobs <= 1 or len(members) <= 1:
        return {member.name: _fit_into_place(config, member, report) for member in members}
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // jobs)
    with context.Manager() as manager, ProcessPoolExecutor(jobs, context, _die_silently_of_ctrl_c) as pool:
        reports: Queue[Any] = manager.Queue()
        futures = {member.name: pool.submit(_fit_in_worker, config, member, threads, reports) for member in members}
        pending = set(futures.values())
        try:
            while pending:
                done, pending = wait(pending, _SECONDS_BETWEEN_REPORTS, FIRST_EXCEPTION)
                _pass_on(reports, report)
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise SystemFailure(
                "The process that was fitting a member was killed",
                hint="Memory may have run out; fit one member at a time with `--jobs 1`.",
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return {name: future.result() for name, future in futures.items()}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _pass_on(reports: "Queue[Any]", report: MemberReport) -> None:
    try:
        while True:
            report(*reports.get_nowait())
    except Empty:
        return


def _die_silently_of_ctrl_c() -> None:
    """The command itself says that it was interrupted; its workers need not add their tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _fit_in_worker(config: Config, member: Classifier, threads: int, reports: "Queue[Any]") -> Measured:
    import torch

    torch.set_num_threads(threads)
    return _fit_into_place(config, member, lambda *progress: reports.put(progress))


def _fit_into_place(config: Config, member: Classifier, report: MemberReport) -> Measured:
    from preference_training.fit.trainer import fit

    stage = adapter_stage(config, member)
    return stage.run(
        lambda folder: fit(folder, config, member, lambda *progress: report(member.name, *progress)), resumable=True
    )
