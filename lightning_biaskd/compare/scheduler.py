"""All runs of a matrix: what is missing is run, several at a time, and nothing that fails stops the rest."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lightning_biaskd.compare.matrix import Matrix, Run
from lightning_biaskd.compare.progress import MatrixProgress
from lightning_biaskd.compare.worker import RESULT, Task, check, work
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
    """

    results: dict[Run, dict[str, Any]]
    failures: dict[Run, str]


def runs_of(matrix: Matrix) -> list[Run]:
    """All runs, the first seed of every row before the second of any: a whole table stands early."""
    rows = matrix.expanded()
    longest = max(len(row.seeds) for row in rows)
    return [Run(row, row.seeds[place]) for place in range(longest) for row in rows if place < len(row.seeds)]


def result_in(folder: Path) -> dict[str, Any] | None:
    """The result of the run in a folder, if it is done."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def run_matrix(
    matrix: Matrix,
    output: Path,
    jobs: int | None = None,
    threads: int | None = None,
    changed: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Runs what is missing.

    A run is done when its ``result.json`` is there, which appears whole or not at all. One that was killed goes on from
    the checkpoint of its last whole epoch.

    Args:
        matrix: what to run.
        output: folder for everything.
        jobs: runs at a time; ``None`` for one per GPU, or one on the CPU.
        threads: of each run on the CPU; ``None`` for ``OMP_NUM_THREADS``, or a share of the cores.
        changed: is told after every run how things stand.

    Raises:
        UserError: before anything is run, a configuration that doesn't parse, or nonsensical numbers.
    """
    if (jobs is not None and jobs < 1) or (threads is not None and threads < 1):
        raise UserError("jobs and threads are numbers from 1")
    outcome = Outcome({}, {})
    missing = deque[Run]()
    for run in runs_of(matrix):
        result = result_in(run.folder(output))
        if result is None:
            missing.append(run)
        else:
            outcome.results[run] = result
    for row, run in {run.row: run for run in missing}.items():
        try:
            check(run.words())
        except UserError as error:
            raise UserError(f"{row.label}: {error}") from error
    devices = _devices()
    jobs = jobs or max(1, len(devices))
    threads = threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, _cores() // jobs)
    with MatrixProgress(len(outcome.results), len(missing)) as progress:
        workers: list[_Worker] = []
        free = deque(range(jobs))
        try:
            while missing or workers:
                while missing and free:
                    slot = free.popleft()
                    device = devices[slot % len(devices)] if devices else None
                    workers.append(_Worker(missing.popleft(), output, slot, threads, device))
                progress.show({worker.run.label: worker.share for worker in workers}, len(missing))
                for worker in _ready(workers):
                    if worker.finished():
                        workers.remove(worker)
                        free.append(worker.slot)
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
        return over


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
    return f"{run.label}: {100 * result['last']['acc1']:.2f} % in {minutes}:{seconds:02}"


def _devices() -> list[str]:
    """The GPUs, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
