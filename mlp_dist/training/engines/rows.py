"""The rows of a global batch that a process works on, and what it learns of the others'."""

from functools import lru_cache
from typing import NamedTuple

import torch

from mlp_dist.training.engines.exchange import build_exchange
from mlp_dist.training.engines.job import Job


class Buffers(NamedTuple):
    """Of each hidden layer the values after ReLU, and of each layer the loss's derivatives by its outputs.

    Float32 (rows, width) each, in memory that stays.
    """

    values: list[torch.Tensor]
    derivatives: list[torch.Tensor]


class OwnRows:
    """Each process works on its share of a batch, consecutive rows of it, and knows nothing of the others'.

    `widths` are those of the layers' outputs.
    """

    def __init__(self, job: Job, widths: list[int]) -> None:
        self.rank, self.world_size = job.rank, job.world_size
        self._columns = [*widths[:-1], *widths]
        self._most = -(-job.config.batch_size // job.world_size)
        self._flat = torch.zeros(self._most * sum(self._columns))
        # Of two sizes: the last batch of an epoch may be shorter than the others.
        self.buffers = lru_cache(maxsize=2)(self._buffers)

    def needed(self, batch_size: int) -> slice:
        """Which images of a batch the process needs."""
        return self._share(batch_size, self.rank)

    def own(self, batch_size: int) -> slice:
        """Which of the needed ones are its share."""
        return slice(0, self._size(batch_size, self.rank))

    def known(self, batch_size: int) -> Buffers:
        """What is known of all needed rows, once the process has filled its `buffers`."""
        return self.buffers(batch_size)

    def _buffers(self, batch_size: int) -> Buffers:
        return self._named(self._views(self._flat, self._size(batch_size, self.rank)))

    def _named(self, tensors: list[torch.Tensor]) -> Buffers:
        hidden = len(tensors) // 2
        return Buffers(tensors[:hidden], tensors[hidden:])

    def _views(self, flat: torch.Tensor, num_rows: int) -> list[torch.Tensor]:
        blocks = torch.split(flat, [self._most * width for width in self._columns])
        return [
            block.view(self._most, width)[:num_rows]
            for block, width in zip(blocks, self._columns, strict=True)
        ]

    def _share(self, batch_size: int, rank: int) -> slice:
        return slice(batch_size * rank // self.world_size, batch_size * (rank + 1) // self.world_size)

    def _size(self, batch_size: int, rank: int) -> int:
        return len(range(batch_size)[self._share(batch_size, rank)])


class SharedRows(OwnRows):
    """Each process works on its share, then they tell each other what they found, and know all rows.

    Every process makes the gradient itself, as one process alone would: the same product of the same rows in
    the same order. No gradient is sent, and no sum depends on the number of processes. With small batches it
    is also less to send (sufficient factors: Xie et al., Lighter-Communication Distributed Machine Learning
    via Sufficient Factor Broadcasting, 2016).
    """

    def __init__(self, job: Job, widths: list[int]) -> None:
        super().__init__(job, widths)
        self.exchange = build_exchange(self._flat)
        self._found = lru_cache(maxsize=2)(self._room)
        # Of two sizes, in one of two places each.
        self._parts = lru_cache(maxsize=4)(self._parts_of)

    @staticmethod
    def pays(job: Job, widths: list[int], num_parameters: int) -> bool:
        """Whether so little is sent that it makes up for the products which each process makes whole."""
        sent = job.config.batch_size * (sum(widths[:-1]) + sum(widths))
        return job.world_size > 1 and 2 * sent < num_parameters

    def needed(self, batch_size: int) -> slice:
        return slice(0, batch_size)

    def own(self, batch_size: int) -> slice:
        return self._share(batch_size, self.rank)

    def known(self, batch_size: int) -> Buffers:
        place, self._received = self.exchange.gather()
        found = self._found(batch_size)
        for whole, pieces in zip(found, self._parts(batch_size, place), strict=True):
            torch.cat(pieces, out=whole)
        return self._named(found)

    def _room(self, batch_size: int) -> list[torch.Tensor]:
        return [torch.empty(batch_size, width) for width in self._columns]

    def _parts_of(self, batch_size: int, place: int) -> list[tuple[torch.Tensor, ...]]:
        """Each layer's parts in what was received, which is the same memory for the same `place`."""
        views = [self._views(flat, self._size(batch_size, rank)) for rank, flat in enumerate(self._received)]
        return list(zip(*views, strict=True))


def build_rows(job: Job, widths: list[int], num_parameters: int) -> OwnRows:
    return SharedRows(job, widths) if SharedRows.pays(job, widths, num_parameters) else OwnRows(job, widths)
