"""Images and labels in memory, and the data set that they make up; arrays.py has those on disk."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mlp_dist.core.spec import EXACT, ImageSpec

_PIECE_BYTES = 2**22


@dataclass(frozen=True)
class ImageSet:
    """uint8 images (N, C, H, W) and int64 labels (N,), on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        return ImageSet(self.images.to(device), self.labels.to(device))

    def __getitem__(self, index: torch.Tensor | slice) -> "ImageSet":
        if isinstance(index, slice):
            return ImageSet(self.images[index], self.labels[index])
        # index_select copies whole rows of a matrix, many times as fast as images[index].
        rows = torch.index_select(self.images.flatten(1), 0, index)
        return ImageSet(rows.view(-1, *self.images.shape[1:]), self.labels[index])

    def subset(self, indices: torch.Tensor) -> "ImageSet":
        """The images at `indices`, int64 (M,); those of a set on disk stay on disk."""
        return self[indices]

    def pieces(self) -> Iterator["ImageSet"]:
        """The images in order, some megabytes at a time."""
        rows = max(1, _PIECE_BYTES // max(1, self.image_bytes))
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    @property
    def image_bytes(self) -> int:
        return self.images[0].numel() if len(self) else 0


@dataclass(frozen=True)
class Dataset:
    """A data set on the CPU. `name` is what `read_dataset` takes.

    `preprocess`, one of core.spec's PREPROCESS, is how a model of it reads images by default.
    """

    name: str
    title: str
    image: ImageSpec
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    preprocess: str = EXACT

    def digest(self) -> str:
        """sha256 over all images and labels, in hexadecimal; the same for a set in memory and on disk."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for piece in part.pieces():
                digest.update(piece.images.numpy().data)
            digest.update(part.labels.numpy().data)
        return digest.hexdigest()


def mean_and_std(part: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 0 to 1; a constant channel gets std 1."""
    counts = torch.stack([_pixel_counts(piece.images) for piece in part.pieces()]).sum(dim=0)
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in counts.double():
        average = (channel * values).sum() / channel.sum()
        variance = (channel * (values - average) ** 2).sum() / channel.sum()
        mean.append(round(average.item(), 4))
        std.append(round(variance.sqrt().item(), 4) or 1.0)
    return tuple(mean), tuple(std)


def _pixel_counts(images: torch.Tensor) -> torch.Tensor:
    """How often each value occurs in each channel: uint8 (N, C, H, W) -> int64 (C, 256)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(dim=1)])
