"""The workers of a sweep: processes that share this machine's cores, or have a GPU each."""

import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mlp_dist.console.processes import num_cores

_STOPPING_SECONDS = 60.0
"""What a worker has to write a checkpoint and to say so to MLflow."""


@dataclass(frozen=True)
class Worker:
    index: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def ending(self) -> str:
        """How it has ended; empty while it works, and where it ended well."""
        code = self.process.poll()
        if not code:
            return ""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"worker {self.index} (pid {self.process.pid}) {how}{self._said()}; {self.log} tells more"

    def _said(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return next((f": {line}" for line in reversed(lines) if line.startswith("error: ")), "")


class Crew:
    """While open, `number` workers on the sweep in `directory`. They hold the `lock` on it too: whoever goes
    on with the sweep when this process was killed waits for them.
    """

    def __init__(self, directory: Path, number: int, lock: int) -> None:
        session = uuid.uuid4().hex
        self.workers: list[Worker] = []
        self._told: set[int] = set()
        self.is_stopped = False
        for index in range(number):
            log = directory / f"worker-{index}.log"
            words = [
                sys.executable,
                "-m",
                "mlp_dist.sweep.worker",
                str(directory),
                session,
                str(os.getpid()),
            ]
            with log.open("ab") as file:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **environment(index, number)},
                    pass_fds=[lock],
                    # Ctrl-C reaches this process alone, which stops each of them once.
                    start_new_session=True,
                )
            self.workers.append(Worker(index, process, log))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            with suppress(subprocess.TimeoutExpired):
                for worker in self.workers:
                    worker.process.wait(_STOPPING_SECONDS)
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.wait()

    @property
    def is_working(self) -> bool:
        return any(worker.process.poll() is None for worker in self.workers)

    def stop(self) -> None:
        """Have each write a checkpoint and end; said once, since the second signal ends a program at once."""
        stopped, self.is_stopped = self.is_stopped, True
        for worker in self.workers:
            if not stopped and worker.process.poll() is None:
                worker.process.terminate()

    def endings(self) -> list[str]:
        """Of the workers that have ended before their time, what is not told yet."""
        if self.is_stopped:
            return []
        new = [worker for worker in self.workers if worker.ending and worker.index not in self._told]
        self._told.update(worker.index for worker in new)
        return [worker.ending for worker in new]


def environment(index: int, number: int) -> dict[str, str]:
    """The variables that give worker `index` of `number` its share of this machine."""
    gpus = visible_gpus()
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}
    # What the user chose stands.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, num_cores() // number)))
    return {"OMP_NUM_THREADS": threads}


def visible_gpus() -> list[str]:
    """Their names for CUDA_VISIBLE_DEVICES; none where training is on the CPU."""
    import torch

    from mlp_dist.console.processes import use_cpu

    if use_cpu():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
