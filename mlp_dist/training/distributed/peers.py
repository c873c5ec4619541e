"""The other processes of a training: what they say, and which of them have ended."""

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

_POLL = 0.01
GRACE = 1.0
"""Seconds for which `lost` waits for a process to end: its connections close before it does."""


class Peers:
    """All processes of the training, of which `rank` is this one.

    Made on all of them at the same time, once a process group exists; without one the training is this
    process. What they exchange here goes over gloo and CPU memory: it waits for no GPU.
    """

    def __init__(self) -> None:
        from torch import distributed

        self.rank, self.size = 0, 1
        self._group: Any = None
        self._speaks: bool | None = None
        self._pids: dict[int, int] = {}
        self._told: int | None = None
        if distributed.is_initialized():
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        if self.size == 1:
            return
        self._group = distributed.new_group(backend="gloo")
        told = os.memfd_create("told") if hasattr(os, "memfd_create") else None
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, (machine(), os.getpid(), told), group=self._group)
        here = {rank: (pid, file) for rank, (where, pid, file) in enumerate(found) if where == machine()}
        self._pids = {rank: pid for rank, (pid, _) in here.items()}
        pid, file = here[min(here)]
        with contextlib.suppress(OSError):
            self._told = os.open(f"/proc/{pid}/fd/{file}", os.O_RDWR | os.O_APPEND)

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all processes, which all call this alike; the same on all.

        Raises RuntimeError where one of them has ended.
        """
        if self.size == 1:
            return [float(value) for value in values]
        import torch
        from torch import distributed

        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self._group)
        return [float(value) for value in tensor]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main process, or the error that it raises there: on all processes.

        An error that is none of ours is raised on the main process alone; on the others a MlpDistError.
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
        """Where what is inside fails because another process has ended, raise ProcessLostError.

        Interrupted where this process has got one of the `signals`.
        """
        try:
            yield
        except RuntimeError as error:
            if lost := self.lost():
                raise ProcessLostError(lost, speaks=self.speaks()) from error
            if signals is not None:
                signals.check()
            raise

    def lost(self) -> list[str]:
        """The other processes of this machine that have ended, as "process 1 (pid 4711)".

        Waits a second for the first to end; those of other machines are never among them.
        """
        deadline = time.monotonic() + GRACE
        while not (ended := self._ended()) and len(self._pids) > 1 and time.monotonic() < deadline:
            time.sleep(_POLL)
        return [f"process {rank} (pid {self._pids[rank]})" for rank in ended]

    def speaks(self) -> bool:
        """Whether this is the one of this machine's processes that tells what happened to the others.

        That is the lowest of those that are left. Waits as `lost` does, and always answers the same.
        """
        if self._speaks is None:
            self.lost()
            ended = self._ended()
            lowest = min((rank for rank in self._pids if rank not in ended), default=self.rank)
            self._speaks = lowest == self.rank and self._is_first()
            # Whoever speaks must not take those for lost that have nothing to say and end.
            deadline = time.monotonic() + GRACE
            while self._told is not None and not os.fstat(self._told).st_size and time.monotonic() < deadline:
                time.sleep(_POLL)
        return self._speaks

    def _ended(self) -> list[int]:
        return [rank for rank, pid in self._pids.items() if rank != self.rank and _has_ended(pid)]

    def _is_first(self) -> bool:
        """Whether none of this machine has spoken: one that has, and then ended, looks like a lost one."""
        if self._told is None:
            return True
        # The file is all processes', and no two appended bytes come to the same place.
        os.write(self._told, b".")
        return os.lseek(self._told, 0, os.SEEK_CUR) == 1


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # A zombie takes signals until its parent has asked for its exit code. The name before may hold brackets.
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return Path("/proc/self/stat").exists()
