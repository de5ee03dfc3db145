"""Worker processes of a run: how one is started, and what it does then.

    python -m fedquilt.runs.workers DESCRIPTOR

is a worker: it reads a configuration and a partition from the pipe behind that file descriptor, loads data and model, and serves.
A program of its own: threads and GPUs forbid a fork, and importing the caller's script again would ask it for a guard.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from fedquilt.data.partition import Partition
from fedquilt.engine.process import Hire, Worker, serve
from fedquilt.errors import ConfigError
from fedquilt.runs.build import build
from fedquilt.runs.config import RunConfig


def hiring(config: RunConfig, partition: Partition, threads: int, client: int | None = None) -> Hire:
    """How to start a worker of this run, which uses ``threads`` threads of torch.

    Raises:
        ConfigError: this system cannot hand a pipe to a new process.
    """
    if os.name != "posix":
        raise ConfigError(f"{config.workers} workers need a POSIX system", where="workers", fix="set workers to 1")

    def hire(number: int) -> Worker:
        ours, theirs = socket.socketpair()
        # Its own session: Ctrl-C is for the process that talks to the person. Its path: plug-ins may lie anywhere.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )
        theirs.close()
        pipe = Connection(ours.detach())
        model = config.model.model_copy(update={"device": device(config.model.device, number)})
        with suppress(ConnectionError):  # one that is gone already shows when it is listened to
            pipe.send((config.model_copy(update={"workers": 1, "threads": threads, "model": model}), partition, client))
        return Worker(process, pipe)

    return hire


def device(name: str, number: int) -> str:
    """The device of a worker: "cuda" is each GPU in turn, a GPU with a number is meant.

    >>> device("cuda:1", 0), device("cpu", 3)
    ('cuda:1', 'cpu')
    """
    return f"cuda:{number % torch.cuda.device_count()}" if name == "cuda" else name


def main() -> None:
    """The worker's program."""
    pipe = Connection(int(sys.argv[1]))
    config, partition, client = pipe.recv()
    serve(pipe, build(config, saved=partition, client=client).engine)


if __name__ == "__main__":
    main()
