"""All runs of a matrix: what is missing is run, several at a time, and nothing that fails stops the rest."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lightning_biaskd.compare.folder import is_taken, result_in, score
from lightning_biaskd.compare.matrix import Matrix, Run
from lightning_biaskd.compare.progress import MatrixProgress
from lightning_biaskd.compare.worker import Task, check, work
from lightning_biaskd.errors import UserError

METHODS = multiprocessing.get_all_start_methods()
# Every run has a process of its own, so that nothing of one (seeds, settings of torch, warnings, memory) reaches the
# next. A server that has imported everything forks them, in a tenth of a second instead of ten.
CONTEXT: Any = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")


@dataclass
class Outcome:
    """What became of a matrix.

    Attributes:
        results: by run, as in ``result.json``; those that are done.
        failures: by run, one line.
        matrix: what was run; a notebook shows the outcome as a table by it.
        verdict: a paragraph for each setting, once a report is written.
    """

    results: dict[Run, dict[str, Any]]
    failures: dict[Run, str]
    matrix: Matrix | None = None
    verdict: list[str] = field(default_factory=list)

    def _repr_html_(self) -> str | None:
        from lightning_biaskd.compare.page import fragment  # it draws, which running doesn't need

        return None if self.matrix is None else fragment(self.matrix, self)


def outcome_so_far(matrix: Matrix, output: Path) -> Outcome:
    """The results that are in a folder."""
    found = {run: result_in(run.folder(output)) for run in runs_of(matrix)}
    return Outcome({run: result for run, result in found.items() if result is not None}, {}, matrix)


def runs_of(matrix: Matrix) -> list[Run]:
    """All runs, the first seed of every row before the second of any: a whole table stands early."""
    rows = matrix.expanded()
    longest = max(len(row.seeds) for row in rows)
    return [Run(row, row.seeds[place]) for place in range(longest) for row in rows if place < len(row.seeds)]


def run_matrix(
    matrix: Matrix,
    output: Path,
    jobs: int | None = None,
    threads: int | None = None,
    changed: Callable[[Outcome], None] = lambda _: None,
    only: Run | None = None,
) -> Outcome:
    """Runs what is missing.

    A run is done when its ``result.json`` is there, which appears whole or not at all. One that was killed goes on from
    the checkpoint of its last whole epoch. Several processes, on one machine or on several with a shared folder, can
    work on one matrix at a time: each run belongs to one of them while it lives, and all wait for the last run.

    Args:
        matrix: what to run.
        output: folder for everything.
        jobs: runs at a time; ``None`` for one per GPU, or one on the CPU.
        threads: of each run on the CPU; ``None`` for ``OMP_NUM_THREADS``, or a share of the cores.
        changed: is called after every run.
        only: this run alone; ``None`` for all.

    Raises:
        UserError: before anything is run, a configuration that doesn't parse, or nonsensical numbers.
    """
    if (jobs is not None and jobs < 1) or (threads is not None and threads < 1):
        raise UserError("jobs and threads are numbers from 1")
    outcome = outcome_so_far(matrix, output)
    missing = deque(run for run in ([only] if only else runs_of(matrix)) if run not in outcome.results)
    folders = {run: run.folder(output) for run in missing}
    for row, run in {run.row: run for run in missing}.items():
        try:
            check(run.words())
        except UserError as error:
            hint = (
                ""
                if matrix.base
                else "the matrix has no base; list data and pair after it, -c DATA.yaml -c PAIR.yaml: "
            )
            raise UserError(f"{row.label}: {hint}{error}") from error
    devices = _devices()
    jobs = jobs or max(1, len(devices))
    threads = threads or _threads_of_environment() or max(1, _cores() // jobs)
    with MatrixProgress(len(outcome.results), len(missing)) as progress:
        workers: list[_Worker] = []
        free = deque(range(jobs))
        try:
            while missing or workers:
                while free and (chosen := _startable(missing, folders, outcome)):
                    slot = free.popleft()
                    device = devices[slot % len(devices)] if devices else None
                    workers.append(_Worker(chosen, output, slot, threads, device))
                if missing and not workers:
                    progress.wait(len(missing))
                    time.sleep(1)
                progress.show({worker.run.label: worker.share for worker in workers}, len(missing))
                for worker in _ready(workers):
                    if worker.finished():
                        workers.remove(worker)
                        free.append(worker.slot)
                        if worker.busy:
                            missing.append(worker.run)
                            continue
                        _settle(worker, outcome)
                        progress.told(_told(worker.run, outcome), {w.run.label: w.share for w in workers}, len(missing))
                        changed(outcome)
        finally:
            for worker in workers:
                worker.process.kill()
    return outcome


class _Worker:
    """A run that is going on."""

    def __init__(self, run: Run, output: Path, slot: int, threads: int, device: str | None) -> None:
        self.run = run
        self.folder = run.folder(output)  # kept, as it would be another if a file were edited meanwhile
        self.slot = slot
        self.share = 0.0
        self.failure: str | None = None
        self.busy = False
        about = {
            "names": run.row.names,
            "seed": run.seed,
            "fingerprint": run.fingerprint,
            "command": run.command,
        }
        self.channel, theirs = CONTEXT.Pipe(duplex=False)
        task = Task(run.words(), self.folder, about, threads, device)
        if CONTEXT.get_start_method() == "forkserver":
            CONTEXT.set_forkserver_preload([work.__module__])
        self.process: BaseProcess = CONTEXT.Process(target=work, args=(task, theirs))
        self.process.start()
        theirs.close()

    def finished(self) -> bool:
        """Listens to what the process has to say; whether it is over."""
        over = not self.process.is_alive()  # asked first: what it said before it ended is then in the channel
        with suppress(EOFError):
            while self.channel.poll():
                kind, content = self.channel.recv()
                if kind == "share":
                    self.share = content
                elif kind == "failed":
                    self.failure = content
                self.busy = kind == "busy"
        return over


def _startable(missing: deque[Run], folders: dict[Run, Path], outcome: Outcome) -> Run | None:
    """Takes the first run that no process is at work on; runs that others have done meanwhile leave the queue."""
    for run in list(missing):
        if (result := result_in(folders[run])) is not None:
            missing.remove(run)
            outcome.results[run] = result
        elif not is_taken(folders[run]):
            missing.remove(run)
            return run
    return None


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """Those that have something to say or are over, waited for a second."""
    spoken = connection.wait([x for worker in workers for x in (worker.channel, worker.process.sentinel)], timeout=1.0)
    return [worker for worker in workers if worker.channel in spoken or worker.process.sentinel in spoken]


def _settle(worker: _Worker, outcome: Outcome) -> None:
    result = result_in(worker.folder)
    if result is not None:
        outcome.results[worker.run] = result
        return
    died = f"its process ended with {worker.process.exitcode}"
    line = worker.failure or (f"{died}: probably killed, or out of memory" if worker.process.exitcode else died)
    outcome.failures[worker.run] = f"{line} (see {worker.folder / 'run.log'})"


def _told(run: Run, outcome: Outcome) -> str:
    if run in outcome.failures:
        return f"{run.label}: failed: {outcome.failures[run]}"
    result = outcome.results[run]
    minutes, seconds = divmod(round(result["seconds"]), 60)
    return f"{run.label}: {100 * result['last'][score(result)]:.2f} % in {minutes}:{seconds:02}"


def _devices() -> list[str]:
    """The GPUs, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _threads_of_environment() -> int:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP takes a list, one for each level
    return int(first) if first.isdecimal() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
