"""Fits several members at once, each in a process of its own with its share of the cores.

On a CPU, two members on one thread each finish sooner than one after the other on two threads.
What needs torch is imported late, so that a worker is ready for Ctrl-C before long work begins.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

from preference_core.ensemble.settings import Classifier, Config
from preference_core.errors import Interrupted, SystemFailure
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
        noted = threading.Event()
        with _ctrl_c_noted(noted.set):
            return {member.name: _fit_into_place(config, member, report, noted.is_set) for member in members}
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // jobs)
    with context.Manager() as manager, ProcessPoolExecutor(jobs, context, _leave_ctrl_c_to_the_command) as pool:
        reports, stop = manager.Queue(), manager.Event()
        futures = {
            member.name: pool.submit(_fit_in_worker, config, member, threads, reports, stop) for member in members
        }
        pending = set(futures.values())
        try:
            with _ctrl_c_noted(stop.set):
                while pending:
                    done, pending = wait(pending, _SECONDS_BETWEEN_REPORTS, FIRST_EXCEPTION)
                    _pass_on(reports, report)
                    for future in done:
                        future.result()
        except BrokenProcessPool as error:
            if stop.is_set():  # a worker that had not yet begun to ignore Ctrl-C
                raise Interrupted("Interrupted before training began", "The same command begins again.") from error
            raise SystemFailure(
                "The process that was fitting a member was killed",
                hint="Memory may have run out; fit one member at a time with `--jobs 1`.",
            ) from error
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return {name: future.result() for name, future in futures.items()}


@contextmanager
def _ctrl_c_noted(note: Callable[[], object]) -> Iterator[None]:
    """The first Ctrl-C is noted, so that training ends with a checkpoint; another one interrupts as usual."""

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr.write("interrupted: training ends after this step, with a checkpoint (Ctrl-C again: without)\n")
        note()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _pass_on(reports: "Queue[Any]", report: MemberReport) -> None:
    try:
        while True:
            report(*reports.get_nowait())
    except Empty:
        return


def _leave_ctrl_c_to_the_command() -> None:
    """A terminal interrupts every process of a command; only the command itself tells its workers to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fit_in_worker(
    config: Config, member: Classifier, threads: int, reports: "Queue[Any]", stop: threading.Event
) -> Measured:
    import torch

    torch.set_num_threads(threads)
    return _fit_into_place(config, member, lambda *progress: reports.put(progress), stop.is_set)


def _fit_into_place(config: Config, member: Classifier, report: MemberReport, stop: Callable[[], bool]) -> Measured:
    from preference_training.fit.trainer import fit

    stage = adapter_stage(config, member)
    return stage.run(
        lambda folder: fit(folder, config, member, lambda *progress: report(member.name, *progress), stop=stop),
        resumable=True,
    )
