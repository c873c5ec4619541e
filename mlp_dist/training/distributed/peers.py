"""The other processes of a training: agreement among them, and which of them have died."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from mlp_dist.console.processes import Interrupted, StopSignals
from mlp_dist.core.errors import MlpDistError, ProcessLostError
from mlp_dist.training.distributed.network import machine

T = TypeVar("T")

_POLL_SECONDS = 0.01
GRACE_SECONDS = 1.0
"""How long `lost` waits for a process to end: its connections close first."""


class Peers:
    """All processes of the training; this one has `rank`.

    To be made on all processes together, after the process group. Without a group, this process is alone.
    Messages go over gloo, so they wait for no GPU.
    """

    def __init__(self) -> None:
        from torch import distributed

        self.rank, self.size = 0, 1
        self._group: Any = None
        self._is_reporter: bool | None = None
        self._pids: dict[int, int] = {}
        self._file: int | None = None
        if distributed.is_initialized():
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        if self.size == 1:
            return
        self._group = distributed.new_group(backend="gloo")
        own_file = os.memfd_create("speakers") if hasattr(os, "memfd_create") else None
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, (machine(), os.getpid(), own_file), group=self._group)
        here = {rank: (pid, file) for rank, (where, pid, file) in enumerate(found) if where == machine()}
        self._pids = {rank: pid for rank, (pid, _) in here.items()}
        # The processes of a machine share the file of their first one.
        pid, file = here[min(here)]
        with contextlib.suppress(OSError):
            self._file = os.open(f"/proc/{pid}/fd/{file}", os.O_RDWR | os.O_APPEND)

    def largest(self, *values: float) -> list[float]:
        """The maximum of each value over all processes, which all call this together.

        Raises RuntimeError if a process has died.
        """
        if self.size == 1:
            return [float(value) for value in values]
        import torch
        from torch import distributed

        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self._group)
        return [float(value) for value in tensor]

    def on_main(self, work: Callable[[], T]) -> T:
        """Call `work` on the main process; returns its result, or raises its error, on all processes.

        An error of another package is raised on the main process only; the others raise MlpDistError.
        """
        if self.size == 1:
            return work()
        result, problem = None, None
        if self.rank == 0:
            try:
                result = work()
            except BaseException as error:
                problem = error
        ours = problem is None or isinstance(problem, MlpDistError | Interrupted)
        outcome: list[Any] = [result, problem if ours else MlpDistError("the main process has failed")]
        from torch import distributed

        distributed.broadcast_object_list(outcome, src=0, group=self._group)
        if problem is not None:
            raise problem
        if outcome[1] is not None:
            raise outcome[1]
        return cast(T, outcome[0])

    @contextlib.contextmanager
    def watched(self, signals: StopSignals | None = None) -> Iterator[None]:
        """Turn a RuntimeError into ProcessLostError if another process has died.

        Into Interrupted, if this process received one of the `signals`.
        """
        try:
            yield
        except RuntimeError as error:
            if lost := self.lost():
                raise ProcessLostError(lost, is_reporter=self.is_reporter()) from error
            if signals is not None:
                signals.check()
            raise

    def lost(self) -> list[str]:
        """The other processes of this machine that have ended, as "process 1 (pid 4711)".

        Waits up to GRACE_SECONDS for the first one.
        """
        deadline = time.monotonic() + GRACE_SECONDS
        while not (ended := self._ended()) and len(self._pids) > 1 and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return [f"process {rank} (pid {self._pids[rank]})" for rank in ended]

    def is_reporter(self) -> bool:
        """Whether this process reports the loss: the lowest surviving rank of this machine does.

        Waits as `lost` does; the answer never changes.
        """
        if self._is_reporter is None:
            self.lost()
            ended = self._ended()
            lowest = min((rank for rank in self._pids if rank not in ended), default=self.rank)
            self._is_reporter = lowest == self.rank and self._is_first()
            # Wait for the report before ending, or the reporting process counts this one as lost.
            deadline = time.monotonic() + GRACE_SECONDS
            while self._file is not None and not os.fstat(self._file).st_size and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        return self._is_reporter

    def _ended(self) -> list[int]:
        return [rank for rank, pid in self._pids.items() if rank != self.rank and _has_ended(pid)]

    def _is_first(self) -> bool:
        """False if a process of this machine has already reported, and perhaps ended since."""
        if self._file is None:
            return True
        # Appending is atomic, so one process alone finds its byte at the start.
        os.write(self._file, b".")
        return os.lseek(self._file, 0, os.SEEK_CUR) == 1


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # A zombie still accepts signals. The process's name, before its state, may contain brackets.
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return Path("/proc/self/stat").exists()
