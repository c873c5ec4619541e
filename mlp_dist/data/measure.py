"""Mean and standard deviation of images, whole or a piece at a time."""

import torch


def pixel_counts(images: torch.Tensor) -> torch.Tensor:
    """How often each value stands in each channel: uint8 (N, C, H, W) -> int64 (C, 256).

    Those of the parts of a set add up to its own.
    """
    channels = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(dim=1)]
    return torch.stack(channels)


def mean_and_std(counts: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each channel's, in units of 0 to 1, of `pixel_counts`; a channel that never varies gets std 1."""
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in counts.double():
        average = (channel * values).sum() / channel.sum()
        variance = (channel * (values - average) ** 2).sum() / channel.sum()
        mean.append(round(average.item(), 4))
        std.append(round(variance.sqrt().item(), 4) or 1.0)
    return tuple(mean), tuple(std)
