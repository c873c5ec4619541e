"""Training images moved by a few pixels, each step anew, alike however many processes train."""

import torch

from mlp_dist.data.batches import AUGMENTATION, generator


def offsets(
    max_shift: int, *, seed: int, step: int, batch_size: int, positions: torch.Tensor | slice
) -> torch.Tensor:
    """How far to move each image, in pixels down and right, int64 (N, 2) on the CPU.

    All numbers from -max_shift to max_shift are equally likely. `positions` are the N images' places in the
    global batch of `batch_size`, int64 (N,) on the CPU or a slice; an image's offset is a function of the
    seed, the step and its place.
    """
    source = generator(seed, AUGMENTATION, step)
    return torch.randint(-max_shift, max_shift + 1, (batch_size, 2), generator=source)[positions]


def shift(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W), each moved by its whole pixels, int64 (N, 2), down and right; on one device.

    What becomes free is filled with the nearest pixel of the image's border.
    """
    _, channels, height, width = images.shape
    down, right = offsets[:, :1], offsets[:, 1:]
    rows = (torch.arange(height, device=images.device) - down).clamp_(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp_(0, width - 1)
    sources = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = images.flatten(2).gather(2, sources[:, None].expand(-1, channels, -1))
    return moved.view(images.shape)
