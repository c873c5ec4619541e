"""The order in which a training sees its images, and reading them in that order.

The order is a function of (seed, epoch) alone, and each process takes its share of every global batch,
so one process or eight take the same steps.
"""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from mlp_dist.data.arrays import WINDOW_BYTES, ImageSet, StoredSet

INITIALIZATION, ORDER, DROPOUT, AUGMENTATION, DEFORMATION = range(5)
"""The independent streams of random numbers that a run's seed starts."""

BLOCK_BYTES = 2**17
"""Bytes of neighbouring images that are read together from a set on disk."""

_READ_BYTES = 2**23
"""Bytes of images that the reader thread reads at once."""


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for each (seed, stream), mixed by numpy's SeedSequence."""
    (state,) = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def usual_val_size(num_images: int) -> int:
    """The default number of training images held out for validation: one in twelve."""
    return round(num_images / 12)


def split_validation(train: ImageSet, val_size: int) -> tuple[ImageSet, ImageSet]:
    """(the rest, `val_size` held out images).

    The choice depends on the two sizes alone, so runs with other seeds are compared on the same images.
    """
    order = torch.randperm(len(train), generator=generator(0))
    return train.subset(order[val_size:]), train.subset(order[:val_size])


def epoch_order(num_images: int, *, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of all images, int64 (num_images,): a function of its arguments alone."""
    return torch.randperm(num_images, generator=generator(seed, ORDER, epoch))


def training_order(part: ImageSet, *, seed: int, epoch: int) -> torch.Tensor:
    """An epoch's order of the images of `part`, int64 (N,): a function of its size, seed and epoch alone.

    It is `epoch_order`, except for sets on disk larger than WINDOW_BYTES. To read those in large pieces,
    blocks of BLOCK_BYTES are put in random order, and images are shuffled within windows of WINDOW_BYTES.
    """
    window, block = (max(1, size // max(1, part.image_bytes)) for size in (WINDOW_BYTES, BLOCK_BYTES))
    if not isinstance(part, StoredSet) or len(part) <= window:
        return epoch_order(len(part), seed=seed, epoch=epoch).to(part.labels.device)
    source = generator(seed, ORDER, epoch)
    # The first block of the file begins at a random place, so that the blocks differ between epochs.
    shift = int(torch.randint(block, (), generator=source))
    starts = torch.randperm(len(part) // block + 2, generator=source) * block - shift
    order = (starts[:, None] + torch.arange(block)).flatten()
    order = order[(order >= 0) & (order < len(part))]
    windows = torch.split(order, window)
    return torch.cat([each[torch.randperm(len(each), generator=source)] for each in windows])


def shares(batch_size: int, *, rank: int = 0, world_size: int = 1, parts: int = 1) -> list[slice]:
    """The positions in a global batch that are one process's share, in `parts` slices, some maybe empty.

    Every process has the same number of slices, so none waits forever. The slices of all processes cover
    each position once.
    """
    rows = len(range(rank, batch_size, world_size))
    bounds = [rank + rows * part // parts * world_size for part in range(parts + 1)]
    return [slice(start, stop, world_size) for start, stop in pairwise(bounds)]


def prefetch(part: ImageSet, chunks: Iterable[torch.Tensor]) -> Generator[ImageSet, None, None]:
    """For each chunk of positions, int64 (B,), the images of `part`, on its device.

    Images on disk are read ahead by a thread, some megabytes at a time. It ends when the generator does or
    is closed. `chunks` is advanced in that thread.

    Raises DataError if a file cannot be read any more.
    """
    if not isinstance(part, StoredSet):
        yield from (part[chunk] for chunk in chunks)
        return
    remaining = iter(chunks)

    def read() -> list[ImageSet]:
        """The next chunks, read together; [] after the last one."""
        group: list[torch.Tensor] = []
        while sum(map(len, group)) * part.image_bytes < _READ_BYTES:
            if (chunk := next(remaining, None)) is None:
                break
            group.append(chunk)
        if not group:
            return []
        images = part[torch.cat(group)]
        sizes = [len(chunk) for chunk in group]
        pairs = zip(torch.split(images.images, sizes), torch.split(images.labels, sizes), strict=True)
        return [ImageSet(*pair) for pair in pairs]

    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = pool.submit(read)
        while parts := ahead.result():
            ahead = pool.submit(read)
            for each in parts:
                yield _on_device(each, part.labels.device)


def _on_device(part: ImageSet, device: torch.device) -> ImageSet:
    if device.type != "cuda":
        return part.to(device)
    # Only copies from pinned memory run while the GPU computes.
    pinned = (tensor.pin_memory().to(device, non_blocking=True) for tensor in (part.images, part.labels))
    return ImageSet(*pinned)
