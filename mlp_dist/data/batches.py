"""The order in which a training sees its images.

The order is a function of (seed, epoch) alone, and each process takes its share of every global batch,
so one process or eight take the same steps.
"""

from collections.abc import Iterator

import numpy as np
import torch

from mlp_dist.data.dataset import ImageSet

INITIALIZATION, ORDER = range(2)
"""The independent streams of random numbers that flow from a run's seed."""


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, stream), mixed by numpy's SeedSequence."""
    (state,) = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def split_validation(train: ImageSet, val_size: int) -> tuple[ImageSet, ImageSet]:
    """(the rest, `val_size` held out images).

    Which ones depends on nothing but the two numbers: runs with other seeds are compared on the same
    validation images.
    """
    order = torch.randperm(len(train), generator=generator(0))
    return train[order[val_size:]], train[order[:val_size]]


def epoch_order(num_images: int, *, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of all images, int64 (num_images,): a function of its arguments alone."""
    return torch.randperm(num_images, generator=generator(seed, ORDER, epoch))


def global_batches(
    data: ImageSet, order: torch.Tensor, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[ImageSet, int]]:
    """For each global batch this process's share of it, and the whole batch's size.

    Every process yields as many times as any other, so none waits for ever; of a batch smaller than
    the world some shares are empty.
    """
    order = order.to(data.labels.device)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        yield data[batch[rank::world_size]], len(batch)
