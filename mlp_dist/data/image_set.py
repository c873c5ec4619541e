"""Images and labels, in memory; stored.py has those on disk."""

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
        # Rows of a matrix are copied whole, many times as fast as images[index] does it.
        rows = torch.index_select(self.images.flatten(1), 0, index)
        return ImageSet(rows.view(-1, *self.images.shape[1:]), self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A data set on the CPU, each part in memory or a StoredSet. `name` is what `read_dataset` takes.

    `known_digest` is the digest where it has been computed before. `preprocess` is how a model of it reads
    pictures, where a question does not say: one of core.spec's PREPROCESS.
    """

    name: str
    title: str
    image: ImageSpec
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    known_digest: str = ""
    preprocess: str = EXACT

    def digest(self) -> str:
        """sha256 over the training and test images and labels, in hexadecimal.

        The same for the same images in memory and on disk.
        """
        if self.known_digest:
            return self.known_digest
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for piece in pieces(part, self.image.num_features):
                digest.update(piece.images.numpy().data)
            for piece in pieces(part, self.image.num_features):
                digest.update(piece.labels.numpy().data)
        return digest.hexdigest()


def pieces(part: ImageSet, image_bytes: int) -> Iterator[ImageSet]:
    """The images in order, some megabytes at a time."""
    rows = max(1, _PIECE_BYTES // image_bytes)
    for start in range(0, len(part), rows):
        yield part[start : start + rows]
