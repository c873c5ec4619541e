"""Images for the training loop, read from disk while it works on those before."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from mlp_dist.data.batches import epoch_order
from mlp_dist.data.image_set import ImageSet
from mlp_dist.data.order import BLOCK_BYTES, WINDOW_BLOCKS, BlockOrder
from mlp_dist.data.stored import StoredSet

Order = torch.Tensor | BlockOrder


def order_of(part: ImageSet, *, seed: int, epoch: int) -> Order:
    """An epoch's order of all images of `part`; `order[start:stop]` are positions, int64 (stop - start,).

    Of those in memory every order is as likely; of those on disk `BlockOrder` tells what it is.
    """
    if isinstance(part, StoredSet):
        return BlockOrder(len(part), row_bytes=part.image_bytes, seed=seed, epoch=epoch)
    return epoch_order(len(part), seed=seed, epoch=epoch).to(part.images.device)


def fetched(part: ImageSet, chunks: Iterable[torch.Tensor]) -> Generator[ImageSet, None, None]:
    """For each chunk of positions, int64 (B,), the images of `part`, on its device.

    Those on disk are read by a thread, which is some megabytes ahead in `chunks`, and ends when the iterator
    does, or is closed. A generator of chunks is advanced in that thread.

    Raises DataError where a file cannot be read any more.
    """
    if not isinstance(part, StoredSet):
        for chunk in chunks:
            yield part[chunk]
        return
    groups = _groups(chunks, rows=WINDOW_BLOCKS * max(1, BLOCK_BYTES // part.image_bytes))
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = pool.submit(_read_next, part, groups)
        while images := ahead.result():
            ahead = pool.submit(_read_next, part, groups)
            for each in images:
                yield _on_device(each, torch.device(part.device))


def _groups(chunks: Iterable[torch.Tensor], rows: int) -> Iterator[list[torch.Tensor]]:
    """As many chunks together as have `rows` positions: what is near on disk is read at once."""
    group: list[torch.Tensor] = []
    left = rows
    for chunk in chunks:
        group.append(chunk)
        left -= len(chunk)
        if left <= 0:
            yield group
            group, left = [], rows
    if group:
        yield group


def _read_next(part: StoredSet, groups: Iterator[list[torch.Tensor]]) -> list[ImageSet]:
    """The images of each chunk in the next group; none after the last."""
    group = next(groups, [])
    if not group:
        return []
    sizes = [len(chunk) for chunk in group]
    read = part[torch.cat(group)]
    parts = zip(torch.split(read.images, sizes), torch.split(read.labels, sizes), strict=True)
    return [ImageSet(images, labels) for images, labels in parts]


def _on_device(images: ImageSet, device: torch.device) -> ImageSet:
    if device.type != "cuda":
        return images.to(device)
    # Only from pinned memory is a copy made while the GPU works.
    pinned = (tensor.pin_memory().to(device, non_blocking=True) for tensor in (images.images, images.labels))
    return ImageSet(*pinned)
