"""Starts and stops the worker processes of a sweep, which share this machine's cores or have a GPU each."""

import os
import signal
import subprocess
import sys
import uuid
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlp_dist.console.hardware import num_cores, use_cpu

_STOP_SECONDS = 60.0
"""Time for a worker to write a checkpoint and to report it to MLflow."""


@dataclass(frozen=True)
class SweepWorker:
    index: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def problem(self) -> str:
        """How the process failed; empty while it runs and after a normal exit."""
        code = self.process.poll()
        if not code:
            return ""
        exit_text = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"worker {self.index} (pid {self.process.pid}) {exit_text}; see {self.log}"


class WorkerPool(AbstractContextManager["WorkerPool"]):
    """A context manager with `number` worker processes for the sweep in `directory`.

    Workers inherit the descriptor `lock`, so that a resumed sweep waits for them if this process was killed.
    """

    def __init__(self, directory: Path, number: int, lock: int) -> None:
        session = uuid.uuid4().hex
        module = [sys.executable, "-m", "mlp_dist.sweep.worker"]
        self.workers: list[SweepWorker] = []
        self._reported: set[int] = set()
        self.is_stopped = False
        for index in range(number):
            log = directory / f"worker-{index}.log"
            with log.open("ab") as file:
                process = subprocess.Popen(
                    [*module, str(directory), session, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **worker_environment(index, number)},
                    pass_fds=[lock],
                    # Ctrl-C then reaches only this process, which stops each worker once.
                    start_new_session=True,
                )
            self.workers.append(SweepWorker(index, process, log))

    def __exit__(self, *_: object) -> None:
        self.stop()
        try:
            with suppress(subprocess.TimeoutExpired):
                for worker in self.workers:
                    worker.process.wait(_STOP_SECONDS)
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.wait()

    @property
    def is_running(self) -> bool:
        return any(worker.process.poll() is None for worker in self.workers)

    def stop(self) -> None:
        """Make each worker write a checkpoint and exit. Only the first call has an effect, because a second
        signal would kill the workers at once.
        """
        if not self.is_stopped:
            self.is_stopped = True
            for worker in self.workers:
                if worker.process.poll() is None:
                    worker.process.terminate()

    def new_problems(self) -> list[str]:
        """Problems of workers that failed since the last call; none after `stop`."""
        failed = [worker for worker in self.workers if worker.problem and worker.index not in self._reported]
        self._reported.update(worker.index for worker in failed)
        return [] if self.is_stopped else [worker.problem for worker in failed]


def worker_environment(index: int, number: int) -> dict[str, str]:
    """The variables that give worker `index` of `number` its share of this machine."""
    if gpus := visible_gpus():
        return {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, num_cores() // number)))}


def visible_gpus() -> list[str]:
    """The GPUs' names for CUDA_VISIBLE_DEVICES; empty if training uses the CPU."""
    import torch

    if use_cpu():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
