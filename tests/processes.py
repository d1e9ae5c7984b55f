"""Real processes, forked from a server that has imported everything: a tenth of a second each instead of ten."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing import connection

import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning_biaskd.__main__"])

NUMBERS = itertools.count()


def spawn(function, arguments, nprocs, join=True):
    """As :func:`torch.multiprocessing.spawn`."""
    return torch.multiprocessing.start_processes(function, arguments, nprocs, join, start_method="forkserver")


@contextlib.contextmanager
def process_group(rank, world, folder):
    """This process as one of several that have a folder in common, on one thread and the CPU."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    yield
    torch.distributed.destroy_process_group()


class Started:
    """A function in a process, a session and a folder; ``out`` and ``err`` are what it said."""

    def __init__(self, function, *arguments, folder, **environment):
        folder.mkdir(exist_ok=True)
        number = next(NUMBERS)
        logs = [folder / f"{name}{number}.log" for name in ("out", "err")]
        self.out, self.err = logs
        self.process = CONTEXT.Process(target=_begin, args=(function, arguments, folder, logs, environment))
        self.process.start()

    def kill(self):
        """With all that it has started."""
        with contextlib.suppress(ProcessLookupError):  # it is just starting, or over
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()

    def finished(self, seconds=200):
        """What it said, once it is done."""
        together([self], seconds)
        return self.out.read_text()


def _begin(function, arguments, folder, logs, environment):
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    for log, stream in zip(logs, (sys.stdout, sys.stderr), strict=True):
        with log.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    function(*arguments)


def together(started, seconds=200):
    """Waits for all; the first that fails ends the others."""
    end, left = time.monotonic() + seconds, list(started)
    try:
        while left:
            over = connection.wait([one.process.sentinel for one in left], max(0, end - time.monotonic()))
            assert over, f"after {seconds} s, {len(left)} of {len(started)} processes are still running"
            for one in [one for one in left if one.process.sentinel in over]:
                one.process.join()
                assert one.process.exitcode == 0, one.err.read_text()[-3000:]
                left.remove(one)
    finally:
        for one in left:
            one.kill()


def launch(function, *arguments, ranks, folder, **environment):
    """What each rank said of a function that runs on several, in the environment that torchrun makes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    place |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "tests", **environment}
    places = [{**place, "RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
    started = [
        Started(function, *arguments, folder=folder, **{name: str(value) for name, value in place.items()})
        for place in places
    ]
    together(started)
    return [one.out.read_text() for one in started]
