"""Files -> Dataset: torchvision's MNIST and its relatives, scikit-learn's digits, the user's own files."""

import gzip
import math
import os
import shutil
import socket
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import torch
from PIL import Image

from mlp_dist.console import progress
from mlp_dist.core.catalog import ARRAYS_PREFIX, CATALOG, FOLDER_PREFIX, DatasetFacts
from mlp_dist.core.errors import DataError, DownloadError
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset, ImageSet, read_arrays
from mlp_dist.data.batches import generator
from mlp_dist.data.folder import read_folder

_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

NUM_TEST_DIGITS = 360
"""One image in five."""


PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between one try and the next."""

STALL_SECONDS = 5.0
"""How long one request may bring nothing."""

RETRY_SECONDS = 20.0
"""How long a file is tried; a request that brings data may take longer."""


def default_data_dir() -> Path:
    """$MLP_DIST_DATA, else `data` in the current directory."""
    return Path(os.environ.get("MLP_DIST_DATA") or "data")


def prepare_dataset(name: str, data_dir: Path) -> None:
    """Download the files that `read_dataset` needs and that are missing. Raises DownloadError."""
    facts = CATALOG.get(name)
    if facts is None or facts.source is None:
        return
    directory = _raw_directory(facts, data_dir)
    missing = [
        f"{file}.gz"
        for file in _FILES
        if not (directory / f"{file}.gz").exists() and not (directory / file).exists()
    ]
    if not missing:
        return
    try:
        download(facts.source, missing, directory)
    except DownloadError as error:
        raise DownloadError(
            f"Could not download {facts.title}: {error}\n"
            f"To use files that you have, copy {', '.join(missing)} to {directory}, or pass --data-dir with "
            f"the directory that contains {facts.source}/raw. --dataset digits needs no network."
        ) from error


def read_dataset(
    name: str, data_dir: Path, *, image_size: int = 28, skip_bad_images: bool = False
) -> Dataset:
    """Read a data set of core/catalog.py, `folder:DIR` or `arrays:DIR`, at image_size x image_size pixels.

    `skip_bad_images` leaves out the unreadable files of a folder.

    Raises DataError if files are missing or damaged. Nothing is written to `data_dir`.
    """
    if name.startswith(FOLDER_PREFIX):
        directory = Path(name.removeprefix(FOLDER_PREFIX))
        return read_folder(directory, image_size=image_size, skip_bad_images=skip_bad_images)
    if name.startswith(ARRAYS_PREFIX):
        return read_arrays(Path(name.removeprefix(ARRAYS_PREFIX)), image_size=image_size)
    facts = CATALOG[name]
    train, test = _read_digits() if facts.source is None else _read_idx(facts, data_dir)
    spec = replace(facts.image, height=image_size, width=image_size)
    train, test = _resized(train, spec), _resized(test, spec)
    return Dataset(name, facts.title, spec, facts.classes, train, test, facts.preprocess)


def _resized(part: ImageSet, spec: ImageSpec) -> ImageSet:
    """Gray images (N, 1, H, W) resized as `decode_image` resizes the image files."""
    size = (spec.width, spec.height)
    if part.images.shape[2:] == (spec.height, spec.width):
        return part
    images = np.empty((len(part), 1, spec.height, spec.width), dtype=np.uint8)
    for index, image in enumerate(part.images[:, 0].numpy()):
        images[index, 0] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return ImageSet(torch.from_numpy(images), part.labels)


# MNIST and its relatives


def _raw_directory(facts: DatasetFacts, data_dir: Path) -> Path:
    return data_dir / str(facts.source) / "raw"


def _read_idx(facts: DatasetFacts, data_dir: Path) -> tuple[ImageSet, ImageSet]:
    directory = _raw_directory(facts, data_dir)
    train_images, train_labels, test_images, test_labels = (
        _read_idx_file(directory / f"{file}.gz", (28, 28) if "images" in file else ()) for file in _FILES
    )
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels) or labels.max(initial=0) >= len(facts.classes):
            raise DataError(
                f"images and labels in {directory} do not match; delete them to download them again"
            )
    return _image_set(train_images, train_labels), _image_set(test_images, test_labels)


def _read_idx_file(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """uint8 (N, *size) of an IDX file, compressed (`path`) or not (without .gz).

    torchvision reads extracted files alone, would have to extract them into the data directory, which may be
    read-only, and takes 1 to 2 seconds to import.
    """
    path = path if path.exists() else path.with_suffix("")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        header = struct.Struct(f">HBB{1 + len(size)}I")
        zeros, element_type, num_dimensions, number, *found = header.unpack_from(data)
        if (zeros, element_type, num_dimensions, *found) != (0, 8, 1 + len(size), *size):
            raise ValueError(f"it is not an IDX file of {'x'.join(map(str, size)) or 'single'} bytes")
        return np.frombuffer(data, np.uint8, offset=header.size).reshape(number, *size)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _image_set(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


# Downloads by torchvision, with retries and in a bounded time


def download(source: str, names: Sequence[str], directory: Path) -> None:
    """Download the files `names` of `source`, a class in torchvision.datasets, into `directory`.

    torchvision has the mirrors and checksums. A file appears in `directory` once it is complete and its
    checksum is right.

    Raises DownloadError with the reason in one line.
    """
    # Importing torchvision takes 1 to 2 seconds.
    from torchvision import datasets

    dataset = getattr(datasets, source)
    checksums = dict(dataset.resources)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="mlp_dist-") as temporary:
            arrived = _download(name, checksums[name], dataset.mirrors, Path(temporary))
            try:
                with replacing_file(directory / name) as path:
                    shutil.copyfile(arrived, path)
            except OSError as error:
                raise DownloadError(
                    f"cannot write {directory / name} ({error.strerror or error}); "
                    "make the directory writable or choose another one with --data-dir"
                ) from error


def _download(name: str, md5: str, mirrors: Sequence[str], directory: Path) -> Path:
    """Try all mirrors in turn, five times, within RETRY_SECONDS."""
    from torchvision.datasets.utils import download_url

    end, reason = time.monotonic() + RETRY_SECONDS, ""
    for number, pause in enumerate((*PAUSES, math.inf), start=1):
        for mirror in mirrors:
            with _time_limit(min(STALL_SECONDS, max(0.1, end - time.monotonic()))):
                try:
                    download_url(f"{mirror}{name}", directory, name, md5)
                    return directory / name
                # The errors of torchvision, urllib and http.client.
                except (OSError, RuntimeError, HTTPException) as error:
                    reason = " ".join(str(error).split()).removeprefix("<urlopen error ").removesuffix(">")
                    if isinstance(error, HTTPError):
                        error.close()
        if time.monotonic() + pause > end:
            break
        trying = f"try {number + 1} of {len(PAUSES) + 1} in {pause:g} s"
        progress.tell(f"cannot download {name} ({reason}); {trying}", sys.stderr)
        time.sleep(pause)
    raise DownloadError(f"{name}: {reason}, tried {number} times")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """How long new connections wait for each piece of data; torchvision has no parameter for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# scikit-learn's digits


def _read_digits() -> tuple[ImageSet, ImageSet]:
    # The file that load_digits reads: importing scikit-learn takes as long as training on them.
    spec = find_spec("sklearn")
    assert spec is not None, "scikit-learn is not installed"
    [package] = spec.submodule_search_locations or []
    # 8x8 pixels from 0 to 16 and the label of each image, float64 (1797, 65).
    digits = np.loadtxt(Path(package) / "datasets/data/digits.csv.gz", delimiter=",")
    pixels = np.round(digits[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    enlarged = [Image.fromarray(gray).resize((28, 28), Image.Resampling.BICUBIC) for gray in pixels]
    everything = _image_set(np.stack([np.asarray(image) for image in enlarged]), digits[:, -1])
    # Neighbours are by one writer, so the test images are drawn from the whole set, always the same ones.
    order = torch.randperm(len(everything), generator=generator(0))
    return everything[order[NUM_TEST_DIGITS:]], everything[order[:NUM_TEST_DIGITS]]
