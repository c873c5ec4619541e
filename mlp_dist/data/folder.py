"""A folder of image files -> Dataset: one folder per class, or DIR/train, DIR/val and DIR/test of them."""

import hashlib
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from mlp_dist.console import progress
from mlp_dist.console.process import is_main, num_cores
from mlp_dist.core.catalog import FOLDER_PREFIX
from mlp_dist.core.errors import DataError, ImageError
from mlp_dist.core.image import FORMATS, decode_image
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset, ImageSet, mean_and_std
from mlp_dist.data.batches import generator
from mlp_dist.data.listing import ImageFile, Listing, check_classes, list_folder

TEST_SHARE = 7
"""One image in seven is held out if there is no test part, as 10,000 of MNIST's 70,000 are."""

_SPLIT, _SHUFFLE = 2, 3
"""The streams of random numbers that choose the test images and mix the classes."""

_GRAY_MODES = ("1", "L", "LA", "I", "F")

_MOST_THREADS = 8
"""Small files gain nothing from more, since the threads wait for Python's lock."""

DECODING_VERSION = 3
"""Raise it with every change of the pixels that a file is decoded to, or of the cache file's layout."""

_CHUNK = 64


def read_folder(directory: Path, *, image_size: int = 28, skip_bad_images: bool = False) -> Dataset:
    """Read `directory`: classes are the sorted names of its folders; images become image_size x image_size.

    Mean and standard deviation are measured on the training part. Images are gray if every training file is
    gray, otherwise RGB. The decoded images are cached until a file changes.

    Raises DataError that names every unreadable file; with `skip_bad_images` these are left out and named on
    stderr.
    """
    directory = directory.expanduser().resolve()
    try:
        listing = list_folder(directory)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error
    files = [file for part in listing.parts.values() for file in part]
    images, errors = _read_files(directory, listing, image_size)
    if is_main():
        for note in listing.notes:
            progress.tell(f"note: {note}", sys.stderr)
    bad = [f"  {directory / files[index].path}: {reason}" for index, reason in errors.items()]
    _report_bad(bad, len(files), skip_bad_images)
    rows = torch.tensor([row for row in range(len(files)) if row not in errors], dtype=torch.int64)
    readable = ImageSet(torch.from_numpy(images), torch.tensor([file.label for file in files]))[rows]
    ends = np.cumsum([len(part) for part in listing.parts.values()])
    bounds = [0, *torch.searchsorted(rows, torch.from_numpy(ends)).tolist()]
    read = {
        part: readable[slice(*bound)] for part, bound in zip(listing.parts, pairwise(bounds), strict=True)
    }
    check_classes(directory, listing.classes, set(read["train"].labels.tolist()))
    if empty := [part for part in read if not len(read[part])]:
        raise DataError(f"the {empty[0]} part of {directory} has no readable images; it needs one or more")
    if "test" not in read:
        read["train"], read["test"] = hold_out(read["train"], str(directory))
    read = {name: _shuffled(part) for name, part in read.items()}
    mean, std = mean_and_std(read["train"])
    spec = ImageSpec(image_size, image_size, len(mean), mean, std)
    name, parts = f"{FOLDER_PREFIX}{directory}", (read["train"], read["test"])
    return Dataset(name, directory.name, spec, listing.classes, *parts, val=read.get("val"))


def _report_bad(lines: list[str], num_files: int, skip: bool) -> None:
    head = f"{len(lines)} of {num_files} images cannot be read"
    if lines and not skip:
        raise DataError("\n".join([f"{head}; remove them, or use --skip-bad-images:", *lines]))
    if lines and is_main():
        progress.tell("\n".join([f"{head} and are left out:", *lines]), sys.stderr)


# Decoding


def _read_files(directory: Path, listing: Listing, image_size: int) -> tuple[np.ndarray, dict[int, str]]:
    """uint8 images (N, C, H, W), the training images first, and why others are unreadable, by index.

    They are kept under $XDG_CACHE_HOME or ~/.cache, in one file a folder and size, as long as names, sizes
    and times of the folder's files stay the same. A damaged cache file is replaced.
    """
    facts = hashlib.sha256(f"{DECODING_VERSION} {PIL.__version__} {image_size}\n".encode())
    for file in (file for part in listing.parts.values() for file in part):
        # Unlike mtime, ctime cannot be set back.
        status = file.status and (file.status.st_size, file.status.st_mtime_ns, file.status.st_ctime_ns)
        facts.update(f"{json.dumps(file.path)} {status}\n".encode())
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    name = hashlib.sha256(f"{directory} {image_size}".encode(errors="surrogateescape")).hexdigest()[:32]
    path, key = home / "mlp_dist" / "folders" / f"{name}.npz", facts.hexdigest()
    # A damaged file makes zipfile, numpy and json raise errors of many kinds.
    with suppress(Exception), np.load(path, allow_pickle=False) as kept:
        if str(kept["key"]) == key:
            errors = json.loads(str(kept["errors"]))
            return kept["images"], {int(index): reason for index, reason in errors.items()}
    images, errors, lasting = _decode(directory, listing, image_size)
    if lasting:
        try:
            with replacing_file(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, images=images, key=key, errors=json.dumps(errors))
        except OSError as error:
            progress.tell(f"cannot cache the decoded images of {directory} ({error})", sys.stderr)
    return images, errors


_Decoded = list[torch.Tensor | Exception]
"""The pixels of each file, uint8 (C, H, W), or the reason why it has none."""


def _decode(directory: Path, listing: Listing, image_size: int) -> tuple[np.ndarray, dict[int, str], bool]:
    """The result of `_read_files`, and whether it would be the same at the next start."""
    train, *others = listing.parts.values()
    other_files = [file for part in others for file in part]
    with progress.bar(directory.name, len(train) + len(other_files), " images") as bar:
        decoded = _decode_files(directory, train, image_size, None, bar)
        channels = max((len(image) for image in decoded if isinstance(image, torch.Tensor)), default=1)
        decoded += _decode_files(directory, other_files, image_size, channels, bar)
    images = np.zeros((len(decoded), channels, image_size, image_size), np.uint8)
    errors = {}
    for index, image in enumerate(decoded):
        if isinstance(image, torch.Tensor):
            # Gray files beside RGB ones get three equal channels.
            images[index] = image.numpy()
        else:
            errors[index] = getattr(image, "strerror", None) or str(image)
    # An error of the disk or network may be gone, though no file has changed.
    return images, errors, not any(isinstance(image, OSError) for image in decoded)


def _decode_files(
    directory: Path, files: list[ImageFile], image_size: int, channels: int | None, bar: progress.Bar
) -> _Decoded:
    """In threads. If `channels` is None, gray files get 1 channel, others 3."""
    gray, rgb = (ImageSpec(image_size, image_size, n, mean=(0.0,) * n, std=(1.0,) * n) for n in (1, 3))

    def decode(file: ImageFile) -> torch.Tensor | Exception:
        try:
            data = (directory / file.path).read_bytes()
            is_gray = _is_gray(data) if channels is None else channels == 1
            return decode_image(data, gray if is_gray else rgb)
        except (ImageError, OSError) as error:
            return error

    def decode_chunk(start: int) -> _Decoded:
        return [decode(file) for file in files[start : start + _CHUNK]]

    # Two threads that load Pillow's plugins at the same time may each miss some.
    Image.init()
    results: _Decoded = []
    with ThreadPoolExecutor(min(num_cores(), _MOST_THREADS)) as pool:
        try:
            for chunk in pool.map(decode_chunk, range(0, len(files), _CHUNK)):
                results += chunk
                bar.update(len(chunk))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return results


def _is_gray(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode == "P":
                palette = image.getpalette("RGB") or []
                return palette[0::3] == palette[1::3] == palette[2::3]
            return image.mode in _GRAY_MODES or image.mode.startswith("I;")
    # decode_image raises the error that tells what is wrong.
    except Exception:
        return True


# Splitting


def hold_out(images: ImageSet, place: str) -> tuple[ImageSet, ImageSet]:
    """(the rest, one in TEST_SHARE of each class): always the same ones, and never a class's only image."""
    counts = torch.bincount(images.labels)
    if counts.max() < 2:
        raise DataError(
            f"{place} holds fewer than two images in every class, so none can be held out for the test; "
            "add images, or a test part"
        )
    num_test = [round(count / TEST_SHARE) for count in counts.tolist()]
    if not any(num_test):
        num_test[int(counts.argmax())] = 1
    held_out = torch.zeros(len(images), dtype=torch.bool)
    for label, number in enumerate(num_test):
        members = (images.labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(0, _SPLIT, label))
        held_out[members[order[:number]]] = True
    return images[(~held_out).nonzero().flatten()], images[held_out.nonzero().flatten()]


def _shuffled(images: ImageSet) -> ImageSet:
    """Always in the same order, with the classes mixed, so that the first images represent them all."""
    return images[torch.randperm(len(images), generator=generator(0, _SHUFFLE))]
