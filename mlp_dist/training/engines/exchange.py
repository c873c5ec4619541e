"""What the processes of a training tell each other in a step: over gloo, or through memory on one machine."""

import mmap
import os
import select
import weakref
from typing import Any, Protocol

import torch
from torch import distributed
from torch.distributed.constants import default_pg_timeout

from mlp_dist.training.distributed.network import machine

_TIMEOUT = default_pg_timeout.total_seconds()


class Exchange(Protocol):
    """`flat`, float32 (N,), is each process's own; all call this alike.

    Raises RuntimeError where another process has ended.
    """

    flat: torch.Tensor

    def gather(self) -> tuple[int, list[torch.Tensor]]:
        """Everyone's `flat`, by rank, which stay until the call after the next; and a number that is the same
        whenever it is the same memory."""

    def start(self, part: slice) -> None:
        """Begin to sum a part of `flat` over all processes."""

    def finish(self) -> None:
        """From here on the parts are the sums, the same bits on all processes."""


class OverGloo:
    def __init__(self, flat: torch.Tensor) -> None:
        self.flat, self._waiting = flat, list[Any]()
        self._received = torch.empty(0)

    def gather(self) -> tuple[int, list[torch.Tensor]]:
        if not len(self._received):
            self._received = torch.empty(distributed.get_world_size(), len(self.flat))
        distributed.all_gather_into_tensor(self._received.view(-1), self.flat)
        return 0, list(self._received)

    def start(self, part: slice) -> None:
        self._waiting.append(distributed.all_reduce(self.flat[part], async_op=True))

    def finish(self) -> None:
        for each in self._waiting:
            each.wait()
        self._waiting.clear()


class ThroughMemory:
    """Each process has memory that the others see, and a pipe from each of them that says when to look there.

    Gloo's own threads are a third and a fourth on two cores, and each message waits until the scheduler gives
    them a turn; here nobody is woken but those who train. The memory is there twice, and used in turn: what a
    process has written for one step may be read until it hears of the next one from all others.
    """

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat
        self._rank, self._size = distributed.get_rank(), distributed.get_world_size()
        self._turn, self._parts = 0, list[slice]()
        self._memory: list[torch.Tensor] = []
        self._read, self._write = dict[int, int](), dict[int, int]()

    @classmethod
    def connected(cls, flat: torch.Tensor) -> "ThroughMemory | None":
        """None where not all processes, which call this together, find each other's memory and pipes."""
        self = cls(flat)
        others = [rank for rank in range(self._size) if rank != self._rank]
        found, reached = list[Any]([None] * self._size), list[bool]([False] * self._size)
        memory = os.memfd_create("exchange") if hasattr(os, "memfd_create") else None
        if memory is not None:
            os.ftruncate(memory, 2 * flat.numel() * flat.element_size())
        pipes = {rank: os.pipe() for rank in others}
        own = (machine(), os.getpid(), memory, {rank: write for rank, (_, write) in pipes.items()})
        distributed.all_gather_object(found, own)
        distributed.all_gather_object(reached, self._reaches(found))
        self._read = {rank: read for rank, (read, _) in pipes.items()}
        # A pipe ends for its reader when nobody is left who could write to it.
        for file in [write for _, write in pipes.values()] + ([memory] if memory is not None else []):
            os.close(file)
        weakref.finalize(self, _close, [*self._read.values(), *self._write.values()])
        return self if all(reached) else None

    def _reaches(self, found: list[Any]) -> bool:
        here = machine()
        try:
            for rank, (where, pid, memory, pipes) in enumerate(found):
                if where != here or memory is None:
                    return False
                file = os.open(f"/proc/{pid}/fd/{memory}", os.O_RDWR)
                try:
                    seen = mmap.mmap(file, 0)
                finally:
                    os.close(file)
                self._memory.append(torch.frombuffer(seen, dtype=self.flat.dtype).view(2, -1))
                if rank != self._rank:
                    self._write[rank] = os.open(f"/proc/{pid}/fd/{pipes[self._rank]}", os.O_WRONLY)
        except (OSError, ValueError):
            return False
        return True

    def gather(self) -> tuple[int, list[torch.Tensor]]:
        turn, self._turn = self._turn, 1 - self._turn
        self._memory[self._rank][turn].copy_(self.flat)
        self._tell()
        self._hear()
        return turn, [memory[turn] for memory in self._memory]

    def start(self, part: slice) -> None:
        self._memory[self._rank][self._turn][part].copy_(self.flat[part])
        self._tell()
        self._parts.append(part)

    def finish(self) -> None:
        for part in self._parts:
            self._hear()
            first, *others = (memory[self._turn][part] for memory in self._memory)
            total = torch.add(first, others[0], out=self.flat[part])
            for other in others[1:]:
                total.add_(other)
        self._parts.clear()
        self._turn = 1 - self._turn

    def _tell(self) -> None:
        for rank, file in self._write.items():
            try:
                os.write(file, b".")
            except OSError as error:
                raise RuntimeError(f"process {rank} does not listen any more") from error

    def _hear(self) -> None:
        for rank, file in self._read.items():
            poll = select.poll()
            poll.register(file, select.POLLIN)
            if not poll.poll(1000 * _TIMEOUT):
                raise RuntimeError(f"process {rank} has said nothing for {_TIMEOUT:g} s")
            if not os.read(file, 1):
                raise RuntimeError(f"process {rank} has ended")


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def build_exchange(flat: torch.Tensor) -> Exchange:
    """To be called on all processes together."""
    return ThroughMemory.connected(flat) or OverGloo(flat)
