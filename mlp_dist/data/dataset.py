"""Images and labels in memory."""

import hashlib
from dataclasses import dataclass

import torch

from mlp_dist.core.spec import ImageSpec


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
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, on the CPU. `name` is what `read_dataset` takes."""

    name: str
    title: str
    image: ImageSpec
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet

    def digest(self) -> str:
        """sha256 over the training and test images and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part.images.numpy().data)
            digest.update(part.labels.numpy().data)
        return digest.hexdigest()
