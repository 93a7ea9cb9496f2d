"""Fits several members at once, each in a process of its own with its share of the cores.

On a CPU, two members on one thread each finish sooner than one after the other on two threads.
What needs torch is imported late, so that a worker is ready for signals before long work begins.
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
from multiprocessing.managers import SyncManager
from queue import Empty, Queue
from types import FrameType
from typing import Any

from preference_core.command import stopped_by
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

    The first error is raised once the running members are done; the others are not started. Ctrl-C and SIGTERM end
    training with a checkpoint (`Interrupted`), and no process outlives this one, however it ends.
    """
    with _first_signal_noted() as arrived:
        if jobs <= 1 or len(members) <= 1:
            return {member.name: _fit_into_place(config, member, report, lambda: bool(arrived)) for member in members}
        return _fit_side_by_side(config, members, jobs, report, arrived)


def _fit_side_by_side(
    config: Config, members: Sequence[Classifier], jobs: int, report: MemberReport, arrived: Sequence[int]
) -> dict[str, Measured]:
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // jobs)
    manager = SyncManager(ctx=context)
    manager.start(_follow_the_command, ([signal.SIGINT, signal.SIGTERM],))
    with manager, ProcessPoolExecutor(jobs, context, _follow_the_command, ([signal.SIGINT],)) as pool:
        reports, stop = manager.Queue(), manager.Event()
        futures = {
            member.name: pool.submit(_fit_in_worker, config, member, threads, reports, stop) for member in members
        }
        pending = set(futures.values())
        try:
            while pending:
                done, pending = wait(pending, _SECONDS_BETWEEN_REPORTS, FIRST_EXCEPTION)
                if arrived:
                    stop.set()
                _pass_on(reports, report)
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            if arrived:  # by a worker that was not training
                raise Interrupted("Interrupted", "The same command continues from the last checkpoints.") from error
            raise SystemFailure(
                "The process that was fitting a member was killed",
                hint="Memory may have run out; fit one member at a time with `--jobs 1`.",
            ) from error
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()
            raise
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return {name: future.result() for name, future in futures.items()}


@contextmanager
def _first_signal_noted() -> Iterator[Sequence[int]]:
    """Yields the signals that arrived. The first one lets training end with a checkpoint; another one interrupts it."""
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            raise KeyboardInterrupt
        sys.stderr.write("interrupted: training ends after this step, with a checkpoint (Ctrl-C again: without)\n")

    with stopped_by(note, (signal.SIGINT, signal.SIGTERM)):
        try:
            yield arrived
        except Interrupted as error:
            if arrived:
                error.exit_code = 128 + arrived[0]
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _pass_on(reports: "Queue[Any]", report: MemberReport) -> None:
    try:
        while True:
            report(*reports.get_nowait())
    except Empty:
        return


def _follow_the_command(ignored: Sequence[int]) -> None:
    """A signal may reach all processes of a command, which itself tells the others to stop. They end when it has."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    command = multiprocessing.parent_process()
    assert command is not None

    def end_with_it() -> None:
        command.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def _fit_in_worker(
    config: Config, member: Classifier, threads: int, reports: "Queue[Any]", stop: threading.Event
) -> Measured:
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())  # Between members it ends the process.
    try:
        import torch

        torch.set_num_threads(threads)
        return _fit_into_place(
            config, member, lambda *progress: reports.put(progress), lambda: told.is_set() or stop.is_set()
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def _fit_into_place(config: Config, member: Classifier, report: MemberReport, stop: Callable[[], bool]) -> Measured:
    from preference_training.fit.trainer import fit

    stage = adapter_stage(config, member)
    return stage.run(
        lambda folder: fit(folder, config, member, lambda *progress: report(member.name, *progress), stop=stop),
        resumable=True,
    )
