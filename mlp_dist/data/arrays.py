"""A data set of one's own in numpy's files -> Dataset.

    numpy.save("DIR/train_images.npy", images)    uint8 (N, H, W), (N, 1, H, W) or (N, 3, H, W), H and W equal
    numpy.save("DIR/train_labels.npy", labels)    integers (N,), from 0 on
    and test_images.npy, test_labels.npy

`numpy.lib.format.open_memmap` writes such a file a piece at a time. DIR/classes.json may name the classes, as
a list; else they are "0", "1", ....
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlp_dist.console import progress
from mlp_dist.core.catalog import ARRAYS_PREFIX
from mlp_dist.core.errors import DataError
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.cache import cache_root
from mlp_dist.data.image_set import Dataset, ImageSet, pieces
from mlp_dist.data.measure import mean_and_std, pixel_counts
from mlp_dist.data.stored import StoredArray, StoredSet

MOST_IN_MEMORY = 2**28
"""The bytes of images up to which a part is read into memory at the start."""

_PARTS = ("train", "test")
_VERSION = 1
"""To be raised with every change of what is measured, or of how it is kept."""


@dataclass(frozen=True)
class Measured:
    """What takes a pass over all images; `lowest` and `highest` are the labels' of train and test."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    digest: str


def read_arrays(directory: Path, *, image_size: int = 28, most_in_memory: int = MOST_IN_MEMORY) -> Dataset:
    """Read `directory`; a part whose images are more than `most_in_memory` bytes becomes a StoredSet.

    Mean and standard deviation are measured on the training part, and the digest is taken, in one pass over
    all images; for parts on disk both are kept under $XDG_CACHE_HOME or ~/.cache until a file changes its
    size or times. DIR itself is left as it is.

    Raises DataError, with the file and what is wrong with it.
    """
    directory = directory.expanduser().resolve()
    if not directory.is_dir():
        raise DataError(
            f"{directory} is not a directory; arrays:DIR wants train_images.npy and others in DIR"
        )
    train, test = (_open(directory, part, image_size) for part in _PARTS)
    if train.image_bytes != test.image_bytes:
        raise DataError(
            f"{train.stored_images.path} and {test.stored_images.path} must be both gray or both RGB, "
            f"not {train.stored_images.shape} and {test.stored_images.shape}"
        )
    measured = _known(directory, (train, test), most_in_memory)
    classes = _classes(directory, max(measured.highest) + 1)
    for part, low, high in zip((train, test), measured.lowest, measured.highest, strict=True):
        if low < 0 or high >= len(classes):
            wrong = low if low < 0 else high
            raise DataError(
                f"{part.stored_labels.path} has the label {wrong}, but the {len(classes)} classes are "
                f"0 to {len(classes) - 1}"
            )
    spec = ImageSpec(image_size, image_size, len(measured.mean), measured.mean, measured.std)
    return Dataset(
        f"{ARRAYS_PREFIX}{directory}",
        directory.name,
        spec,
        classes,
        _in_memory(train, most_in_memory),
        _in_memory(test, most_in_memory),
        known_digest=measured.digest,
    )


def _open(directory: Path, part: str, image_size: int) -> StoredSet:
    images, labels = (StoredArray(directory / f"{part}_{what}.npy") for what in ("images", "labels"))
    shape = images.shape
    if images.dtype != np.uint8:
        raise DataError(f"{images.path} holds {images.dtype}; images must be uint8, from 0 to 255")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] not in (1, 3)):
        raise DataError(
            f"{images.path} is of shape {shape}; it must be (N, H, W), (N, 1, H, W) or (N, 3, H, W)"
        )
    if len(labels.shape) != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{labels.path} holds {labels.dtype} of shape {labels.shape}; "
            "labels must be integers of shape (N,)"
        )
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{images.path} holds {len(images)} images and {labels.path} {len(labels)} labels; "
            "there must be as many, and one or more"
        )
    if shape[-2:] != (image_size, image_size):
        fix = f"say --image-size {shape[-1]}" if shape[-1] == shape[-2] else "they must be square"
        raise DataError(
            f"{images.path} holds images of {shape[-2]}x{shape[-1]} pixels, "
            f"not {image_size}x{image_size}; {fix}"
        )
    return StoredSet(images, labels)


def _in_memory(part: StoredSet, most: int) -> ImageSet:
    if len(part) * part.image_bytes > most:
        return part
    return ImageSet(part.images, part.labels)


def _classes(directory: Path, number: int) -> tuple[str, ...]:
    path = directory / "classes.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tuple(str(label) for label in range(max(2, number)))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    known = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
    if not known or len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"{path} must be a list of two or more different names, not {json.dumps(names)[:100]}"
        )
    return tuple(names)


# What is measured


def _known(directory: Path, parts: tuple[StoredSet, StoredSet], most_in_memory: int) -> Measured:
    """Measured, or where a part is too large for memory, kept from when it was."""
    if all(len(part) * part.image_bytes <= most_in_memory for part in parts):
        return _measure(directory.name, parts)
    key = _state(parts)
    try:
        name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:32]
        path = cache_root() / "arrays" / f"{name}.json"
    except RuntimeError:
        return _measure(directory.name, parts)
    found = _kept(path, key)
    if found is None:
        found = _measure(directory.name, parts)
        kept = {"directory": str(directory), "key": key, "measured": asdict(found)}
        # Where it cannot be kept the next start takes as long as this one.
        try:
            with replacing_file(path) as temporary:
                temporary.write_text(json.dumps(kept))
        except OSError:
            pass
    return found


def _state(parts: tuple[StoredSet, StoredSet]) -> list[list[int]]:
    """What changes with the files; their ctime cannot be set back, as mtime can."""
    files = [array.path.stat() for part in parts for array in (part.stored_images, part.stored_labels)]
    return [[_VERSION], *([file.st_size, file.st_mtime_ns, file.st_ctime_ns, file.st_ino] for file in files)]


def _kept(path: Path, key: list[list[int]]) -> Measured | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        values = kept["measured"]
        return (
            Measured(**{name: _tuple(value) for name, value in values.items()})
            if kept["key"] == key
            else None
        )
    # Whatever a damaged file makes json raise, the answer is to measure again.
    except Exception:
        return None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _measure(title: str, parts: tuple[StoredSet, StoredSet]) -> Measured:
    digest, counts = hashlib.sha256(), torch.zeros(1, 256, dtype=torch.int64)
    lowest, highest = [], []
    with progress.bar(title, sum(map(len, parts)), " images") as bar:
        for part in parts:
            for piece in pieces(part, part.image_bytes):
                images = piece.images
                digest.update(images.numpy().data)
                if part is parts[0]:
                    counts = counts + pixel_counts(images)
                bar.update(len(images))
            low, high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
            for piece in pieces(part, part.image_bytes):
                labels = piece.labels
                digest.update(labels.numpy().data)
                low, high = min(low, int(labels.min())), max(high, int(labels.max()))
            lowest.append(low)
            highest.append(high)
    mean, std = mean_and_std(counts)
    return Measured(mean, std, tuple(lowest), tuple(highest), digest.hexdigest())
