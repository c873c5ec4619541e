"""The order in which a training sees its images.

The order is a function of (seed, epoch) alone, and each process takes its share of every global batch,
so one process or eight take the same steps.
"""

from itertools import pairwise

import numpy as np
import torch

from mlp_dist.data.image_set import ImageSet
from mlp_dist.data.stored import StoredSet

INITIALIZATION, ORDER, DROPOUT, AUGMENTATION, DEFORMATION = range(5)
"""The independent streams of random numbers that flow from a run's seed."""


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, stream), mixed by numpy's SeedSequence."""
    (state,) = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def usual_val_size(num_images: int) -> int:
    """Of so many training images the number held out where none was asked for: one in twelve."""
    return round(num_images / 12)


def split_validation(train: ImageSet, val_size: int) -> tuple[ImageSet, ImageSet]:
    """(the rest, `val_size` held out images).

    Which ones depends on nothing but the two numbers: runs with other seeds are compared on the same
    validation images.
    """
    if isinstance(train, StoredSet):
        return _split_stored(train, val_size)
    order = torch.randperm(len(train), generator=generator(0))
    return train[order[val_size:]], train[order[:val_size]]


def _split_stored(train: StoredSet, val_size: int) -> tuple[ImageSet, ImageSet]:
    """The same images, each part in the order of the file; an index of those held out is all that is kept."""
    if not val_size:
        return train, train[:0]
    # torch draws the same permutation in int32, of half the size.
    order = torch.randperm(len(train), generator=generator(0), dtype=torch.int32)
    held_out = order[:val_size].sort().values.numpy().astype(np.int64)
    rest_before = held_out - np.arange(val_size)
    rest = train.located(
        lambda positions: positions + np.searchsorted(rest_before, positions, side="right"),
        len(train) - val_size,
    )
    return rest, train.located(lambda positions: held_out[positions], val_size)


def epoch_order(num_images: int, *, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of all images, int64 (num_images,): a function of its arguments alone."""
    return torch.randperm(num_images, generator=generator(seed, ORDER, epoch))


def shares(batch_size: int, *, rank: int = 0, world_size: int = 1, parts: int = 1) -> list[slice]:
    """The positions in a global batch that are one process's share, in `parts` slices, some maybe empty.

    Every process has as many slices as any other, so none waits for ever. Together, those of all processes
    are each position once.
    """
    rows = len(range(rank, batch_size, world_size))
    bounds = [rank + rows * part // parts * world_size for part in range(parts + 1)]
    return [slice(start, stop, world_size) for start, stop in pairwise(bounds)]
