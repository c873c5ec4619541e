"""Images and labels as arrays, in memory or on disk, and the data set that they make up.

`arrays:DIR` is a data set in numpy's files, whose large parts stay on disk:

    numpy.save("DIR/train_images.npy", images)    uint8 (N, H, W), (N, 1, H, W) or (N, 3, H, W), H equal to W
    numpy.save("DIR/train_labels.npy", labels)    integers (N,), from 0 on
    and test_images.npy, test_labels.npy

`numpy.lib.format.open_memmap` writes such a file piece by piece. DIR/classes.json may hold a list of class
names; the default names are "0", "1", ....
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlp_dist.core.catalog import ARRAYS_PREFIX
from mlp_dist.core.errors import DataError
from mlp_dist.core.spec import EXACT, ImageSpec

_PIECE_BYTES = 2**22

MOST_IN_MEMORY = 2**28
"""Bytes of images up to which a part is read into memory at the start."""

WINDOW_BYTES = 2**26
"""Bytes of images that are shuffled with each other; see batches.py's `training_order`."""


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

    `preprocess`, one of core.spec's PREPROCESS, is how a model of it reads images by default. `val` are its
    own validation images; if it has none, they are held out from `train`.
    """

    name: str
    title: str
    image: ImageSpec
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    preprocess: str = EXACT
    val: ImageSet | None = None

    def digest(self) -> str:
        """sha256 over all images and labels, in hexadecimal; the same for a set in memory and on disk."""
        digest = hashlib.sha256()
        for part in filter(None, (self.train, self.test, self.val)):
            for piece in part.pieces():
                digest.update(piece.images.numpy().data)
            digest.update(part.labels.numpy().data)
        return digest.hexdigest()


def mean_and_std(part: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 0 to 1; a constant channel gets std 1."""
    # How often each value occurs in each channel, (C, 256).
    counts = sum(
        torch.stack([channel.flatten().bincount(minlength=256) for channel in piece.images.unbind(dim=1)])
        for piece in part.pieces()
    )
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in torch.as_tensor(counts).double():
        average = (channel * values).sum() / channel.sum()
        variance = (channel * (values - average) ** 2).sum() / channel.sum()
        mean.append(round(average.item(), 4))
        std.append(round(variance.sqrt().item(), 4) or 1.0)
    return tuple(mean), tuple(std)


class StoredSet(ImageSet):
    """Images that stay in a .npy file, and their labels in memory; takes 16 bytes of memory per image.

    A slice of it is a StoredSet again; int64 positions (B,) read the images, an ImageSet on the CPU.
    `images` reads all of them; `to` only sets the device of `images`, `labels` and batches.py's `prefetch`.

    Raises DataError, when indexed, if the file cannot be read any more.
    """

    path: Path
    shape: tuple[int, ...]
    rows: torch.Tensor

    def __init__(self, path: Path, shape: tuple[int, ...], rows: torch.Tensor, labels: torch.Tensor) -> None:
        # The base class is frozen.
        vars(self).update(path=path, shape=shape, rows=rows, labels=labels)

    @property
    def images(self) -> torch.Tensor:
        return self._read(self.rows).to(self.labels.device)

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self.shape[1:]))

    def to(self, device: torch.device | str) -> "StoredSet":
        return StoredSet(self.path, self.shape, self.rows, self.labels.to(device))

    def __getitem__(self, index: torch.Tensor | slice) -> ImageSet:
        if isinstance(index, slice):
            return StoredSet(self.path, self.shape, self.rows[index], self.labels[index])
        return ImageSet(self._read(self.rows[index.cpu()]), self.labels[index.to(self.labels.device)].cpu())

    def subset(self, indices: torch.Tensor) -> "StoredSet":
        """In the order of `indices`; in the file's order if the set is larger than WINDOW_BYTES."""
        if len(self) * self.image_bytes > WINDOW_BYTES:
            indices = indices.sort().values
        return StoredSet(self.path, self.shape, self.rows[indices], self.labels[indices])

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        # Mapped for each read: a mapping that stays would let all pages read so far count as the process's
        # memory, and a file that was cut short since would end the process by a signal.
        array = _load(self.path, mapped=True)
        if array.shape != self.shape:
            raise DataError(f"{self.path} has changed since the training started; restore it, then resume")
        # Unlike indexing, numpy.take releases Python's lock.
        images = torch.from_numpy(np.take(array, rows.numpy(), axis=0))
        return images if images.dim() == 4 else images.unsqueeze(1)


def read_arrays(directory: Path, *, image_size: int = 28, most_in_memory: int = MOST_IN_MEMORY) -> Dataset:
    """Read `directory`; a part whose images take more than `most_in_memory` bytes becomes a StoredSet.

    Mean and standard deviation are measured on the training part.

    Raises DataError that names the file and what is wrong with it.
    """
    directory = directory.expanduser().resolve()
    if not directory.is_dir():
        raise DataError(
            f"{directory} is not a directory; arrays:DIR needs train_images.npy and others in DIR"
        )
    train, test = (_read_part(directory, part, image_size, most_in_memory) for part in ("train", "test"))
    if train.image_bytes != test.image_bytes:
        raise DataError(f"the images in {directory} must be all gray or all RGB")
    classes = _classes(directory, max(int(part.labels.max()) for part in (train, test)) + 1)
    for name, part in (("train", train), ("test", test)):
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= len(classes):
            raise DataError(
                f"{directory / name}_labels.npy has the label {low if low < 0 else high}, "
                f"but the {len(classes)} classes are 0 to {len(classes) - 1}"
            )
    mean, std = mean_and_std(train)
    spec = ImageSpec(image_size, image_size, len(mean), mean, std)
    return Dataset(f"{ARRAYS_PREFIX}{directory}", directory.name, spec, classes, train, test)


def _read_part(directory: Path, part: str, image_size: int, most_in_memory: int) -> ImageSet:
    path, labels_path = (directory / f"{part}_{kind}.npy" for kind in ("images", "labels"))
    images, labels = _load(path, mapped=True), _load(labels_path)
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] not in (1, 3)):
        raise DataError(
            f"{path} holds {images.dtype} of shape {shape}; "
            "images must be uint8 of shape (N, H, W), (N, 1, H, W) or (N, 3, H, W)"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{labels_path} holds {labels.dtype} of shape {labels.shape}; "
            "labels must be integers of shape (N,)"
        )
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{path} holds {len(images)} images and {labels_path} {len(labels)} labels; "
            "their numbers must be equal and at least 1"
        )
    if shape[-2:] != (image_size, image_size):
        fix = f"use --image-size {shape[-1]}" if shape[-1] == shape[-2] else "they must be square"
        raise DataError(
            f"{path} holds images of {shape[-2]}x{shape[-1]} pixels, not {image_size}x{image_size}; {fix}"
        )
    stored = StoredSet(path, shape, torch.arange(len(labels)), torch.from_numpy(labels.astype(np.int64)))
    return stored if images.nbytes > most_in_memory else ImageSet(stored.images, stored.labels)


def _load(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        array: Any = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or not an array that numpy.save wrote: {error}") from error
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise DataError(f"{path} is not one array in C order; write it with numpy.save")
    return array


def _classes(directory: Path, number: int) -> tuple[str, ...]:
    path = directory / "classes.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tuple(str(label) for label in range(max(2, number)))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    valid = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
    if not valid or len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"{path} must be a list of two or more different names, not {json.dumps(names)[:100]}"
        )
    return tuple(names)
