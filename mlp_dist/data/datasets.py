"""Files -> Dataset: torchvision's MNIST and its relatives, scikit-learn's digits, the user's own files."""

import contextlib
import gzip
import math
import os
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mlp_dist.console import progress
from mlp_dist.core.catalog import ARRAYS_PREFIX, CATALOG, FOLDER_PREFIX, MEMORY, DatasetFacts
from mlp_dist.core.errors import DataError, DownloadError, UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset, ImageSet, mean_and_std, read_arrays
from mlp_dist.data.batches import generator
from mlp_dist.data.folder import read_folder

NUM_TEST_DIGITS = 360
"""One image in five."""


PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between one try and the next."""

STALL_SECONDS = 5.0
"""How long a download may bring nothing."""

RETRY_SECONDS = 20.0
"""How long a data set is tried; a download that brings data may take longer."""


def default_data_dir() -> Path:
    """$MLP_DIST_DATA, else `data` in the current directory."""
    return Path(os.environ.get("MLP_DIST_DATA") or "data")


def prepare_dataset(name: str, data_dir: Path) -> None:
    """Download the files that `read_dataset` needs and that are missing. Raises DownloadError."""
    facts = CATALOG.get(name)
    if facts is None or facts.source is None or _directory(facts, data_dir) is not None:
        return
    try:
        download(facts, data_dir)
    except DownloadError as error:
        raise DownloadError(
            f"Could not download {facts.title}: {error}\n"
            f"To use files that you have, pass --data-dir with the directory of {', '.join(facts.files)}. "
            "--dataset digits needs no network."
        ) from error


def _directory(facts: DatasetFacts, data_dir: Path) -> Path | None:
    """Where the files are: in torchvision's layout below `data_dir`, or in `data_dir` itself."""
    for directory in (data_dir / str(facts.source) / "raw", data_dir / "raw", data_dir):
        if all(_existing(directory / file).exists() for file in facts.files):
            return directory
    return None


def _existing(path: Path) -> Path:
    """The compressed file if it exists, else the other one."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.exists() else path


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
    if name == MEMORY:
        raise UsageError("this run's data was in memory; pass it to mlp_dist.train(..., data=...)")
    facts = CATALOG[name]
    train, test = _read_digits() if facts.source is None else _read_downloaded(facts, data_dir)
    train, test = _resized(train, image_size), _resized(test, image_size)
    if facts.image is None:
        mean, std = mean_and_std(train)
        spec = ImageSpec(image_size, image_size, 1, mean, std)
    else:
        spec = replace(facts.image, height=image_size, width=image_size)
    return Dataset(name, facts.title, spec, facts.classes, train, test, facts.preprocess)


def _resized(part: ImageSet, size: int) -> ImageSet:
    """Gray images (N, 1, H, W) resized as `decode_image` resizes the image files."""
    if part.images.shape[2:] == (size, size):
        return part
    images = np.empty((len(part), 1, size, size), dtype=np.uint8)
    for index, image in enumerate(part.images[:, 0].numpy()):
        images[index, 0] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return ImageSet(torch.from_numpy(images), part.labels)


# MNIST and its relatives


def _read_downloaded(facts: DatasetFacts, data_dir: Path) -> tuple[ImageSet, ImageSet]:
    directory = _directory(facts, data_dir)
    if directory is None:
        raise DataError(f"{data_dir} does not hold {facts.title}'s files {', '.join(facts.files)}")
    is_mnist = facts.files[0].startswith("train-")
    sets = []
    for part in (0, 1):
        images, labels = (
            _read_idx(facts, directory, part) if is_mnist else _read_others(facts, directory, part)
        )
        if (
            len(images) != len(labels)
            or labels.min(initial=0) < 0
            or labels.max(initial=0) >= len(facts.classes)
        ):
            raise DataError(
                f"images and labels in {directory} do not match; delete them to download them again"
            )
        sets.append(_image_set(images, labels))
    return sets[0], sets[1]


def _read_others(facts: DatasetFacts, directory: Path, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as torchvision reads them, upright and counted from 0."""
    # Importing torchvision takes 1 to 2 seconds.
    from torchvision import datasets

    source = str(facts.source)
    # The files may be in another directory than torchvision's.
    reader = type(source, (getattr(datasets, source),), {"raw_folder": str(directory)})
    try:
        found = reader(directory, train=part == 0, **facts.options)
    # Damaged files raise errors of struct, bz2 and numpy, and AssertionErrors.
    except Exception as error:
        raise DataError(f"{facts.title}'s files in {directory} are damaged: {error}; delete them") from error
    images, labels = np.asarray(found.data), np.asarray(found.targets)
    if source == "EMNIST":
        images = images.transpose(0, 2, 1)
    # QMNIST's labels also name the writer; the classes of EMNIST Letters begin at 1.
    labels = labels[:, 0] if labels.ndim > 1 else labels
    return images, labels - ("N/A" in getattr(found, "classes", ()))


def _read_idx(facts: DatasetFacts, directory: Path, part: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (_existing(directory / file) for file in facts.files[2 * part : 2 * part + 2])
    return _read_idx_file(images, (28, 28)), _read_idx_file(labels, ())


def _read_idx_file(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """uint8 (N, *size) of an IDX file, compressed or not.

    torchvision reads extracted files alone, would have to extract them into the data directory, which may be
    read-only, and takes 1 to 2 seconds to import.
    """
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


def download(facts: DatasetFacts, data_dir: Path) -> None:
    """Download a data set into `data_dir`, in torchvision's layout.

    torchvision has the mirrors and checksums. Files appear in `data_dir` once all are complete.

    Raises DownloadError with the reason in one line.
    """
    end = time.monotonic() + RETRY_SECONDS
    for number, pause in enumerate((*PAUSES, math.inf), start=1):
        # Each try has a directory of its own, because one that was given up may still write.
        with tempfile.TemporaryDirectory(prefix="mlp_dist-", ignore_cleanup_errors=True) as directory:
            try:
                limit = min(STALL_SECONDS, max(0.0, end - time.monotonic()))
                _fetch(_source(facts, number - 1), facts.options, Path(directory), limit)
                return _move(Path(directory), data_dir)
            except DownloadError:
                raise
            # The errors of torchvision, urllib and http.client.
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
        if time.monotonic() + pause > end:
            break
        trying = f"try {number + 1} of {len(PAUSES) + 1} in {pause:g} s"
        progress.tell(f"cannot download {facts.title} ({reason}); {trying}", sys.stderr)
        time.sleep(pause)
    raise DownloadError(f"{reason}, tried {number} times")


def _source(facts: DatasetFacts, number: int) -> Any:
    """torchvision's class, whose mirrors, if it has some, are asked in another order at each try."""
    # Importing torchvision takes 1 to 2 seconds.
    from torchvision import datasets

    source = getattr(datasets, str(facts.source))
    mirrors = getattr(source, "mirrors", None) or [""]
    first = number % len(mirrors)
    return type(source.__name__, (source,), {"mirrors": mirrors[first:] + mirrors[:first]})


def _fetch(source: Any, options: Mapping[str, str], directory: Path, seconds: float) -> None:
    """Download into an empty directory; raises TimeoutError if nothing arrives for `seconds`."""

    errors: list[Exception] = []

    def work() -> None:
        try:
            for train in (True, False):
                source(directory, train=train, download=True, **options)
        except Exception as error:
            errors.append(error)

    # torchvision sets no time limit, and a lookup of a host name cannot be stopped. It prints to stdout.
    with contextlib.redirect_stdout(sys.stderr):
        thread, size, since = threading.Thread(target=work, daemon=True), -1, time.monotonic()
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            found = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
            if found > size:
                size, since = found, time.monotonic()
            elif time.monotonic() - since > seconds:
                raise TimeoutError(f"no answer for {seconds:.0f} seconds")
    if errors:
        raise errors[0]


def _move(source: Path, target: Path) -> None:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        if place.exists():
            continue
        try:
            with replacing_file(place) as temporary:
                temporary.write_bytes(path.read_bytes())
        except OSError as error:
            raise DownloadError(
                f"cannot write {place} ({error.strerror or error}); make the directory writable or choose "
                "another one with --data-dir"
            ) from error


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
