"""Files -> Dataset: MNIST and its relatives, scikit-learn's digits; folder.py and arrays.py read others."""

import gzip
import hashlib
import os
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mlp_dist.core.catalog import ARRAYS_PREFIX, CATALOG, FOLDER_PREFIX, DatasetFacts, Files
from mlp_dist.core.errors import DataError, DownloadError
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import read_arrays
from mlp_dist.data.batches import generator
from mlp_dist.data.download import download
from mlp_dist.data.folder import read_folder
from mlp_dist.data.image_set import Dataset, ImageSet


def default_data_dir() -> Path:
    """$MLP_DIST_DATA, else `data` in the current directory."""
    return Path(os.environ.get("MLP_DIST_DATA") or "data")


def prepare_dataset(name: str, data_dir: Path) -> None:
    """Download what `read_dataset` needs and finds missing. Raises DownloadError where that fails."""
    facts = CATALOG.get(name)
    if facts is None or facts.files is None:
        return
    directory = _raw_directory(facts.files, data_dir)
    missing = {
        file: md5
        for file, md5 in facts.files.resources.items()
        if not (directory / file).exists() and not (directory / file).with_suffix("").exists()
    }
    if not missing:
        return
    try:
        download(missing, facts.files.mirrors, directory)
    except DownloadError as error:
        raise DownloadError(
            f"{facts.title} could not be had: {error}\n"
            f"To use files you have, put {', '.join(missing)} into {directory}, or name the directory that "
            f"holds {facts.files.directory}/raw with --data-dir; --dataset digits needs no network."
        ) from error


def read_dataset(
    name: str, data_dir: Path, *, image_size: int = 28, skip_bad_images: bool = False
) -> Dataset:
    """Read a data set of data/catalog.py, `folder:DIR` or `arrays:DIR`, of image_size x image_size pixels.

    `skip_bad_images` is for folders: files that cannot be read are left out.

    Raises DataError where files are missing or damaged; nothing in `data_dir` is changed.
    """
    if name.startswith(FOLDER_PREFIX):
        directory = Path(name.removeprefix(FOLDER_PREFIX))
        return read_folder(directory, image_size=image_size, skip_bad_images=skip_bad_images)
    if name.startswith(ARRAYS_PREFIX):
        return read_arrays(Path(name.removeprefix(ARRAYS_PREFIX)), image_size=image_size)
    facts = CATALOG[name]
    if facts.files is None:
        train, test = _read_digits()
    else:
        train, test = _read_idx(facts, facts.files, data_dir)
    spec = replace(facts.image, height=image_size, width=image_size)
    train, test = _resized(train, spec), _resized(test, spec)
    return Dataset(name, facts.title, spec, facts.classes, train, test, preprocess=facts.preprocess)


def _resized(data: ImageSet, spec: ImageSpec) -> ImageSet:
    """The gray images (N, 1, H, W) as `decode_image` gives them with `spec` from files of their own size."""
    size = (spec.width, spec.height)
    if data.images.shape[2:] == (spec.height, spec.width):
        return data
    images = np.empty((len(data), 1, spec.height, spec.width), dtype=np.uint8)
    for index, image in enumerate(data.images[:, 0].numpy()):
        images[index, 0] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return ImageSet(torch.from_numpy(images), data.labels)


# MNIST and its relatives


def _raw_directory(files: Files, data_dir: Path) -> Path:
    return data_dir / files.directory / "raw"


def _read_idx(facts: DatasetFacts, files: Files, data_dir: Path) -> tuple[ImageSet, ImageSet]:
    directory = _raw_directory(files, data_dir)
    size = (facts.image.height, facts.image.width)
    train_images, train_labels, test_images, test_labels = (
        _read_idx_file(directory / file, md5, size if "images" in file else ())
        for file, md5 in files.resources.items()
    )
    for labels in (train_labels, test_labels):
        if labels.max(initial=0) >= len(facts.classes):
            raise DataError(f"{directory} has the label {labels.max()}, but {len(facts.classes)} classes")
    return _image_set(train_images, train_labels, directory), _image_set(test_images, test_labels, directory)


def _read_idx_file(path: Path, md5: str, size: tuple[int, ...]) -> np.ndarray:
    """An IDX file of any number of items of `size`, packed (its md5 is checked) or unpacked.

    The format is the one that MNIST's authors describe beside their files.
    """
    try:
        if path.exists():
            packed = path.read_bytes()
            found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
            if found != md5:
                raise DataError(
                    f"{path} is damaged: its md5 is {found}, expected {md5}; "
                    "remove it, and the next start downloads it again"
                )
            data = gzip.decompress(packed)
        else:
            path = path.with_suffix("")
            data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    zeros, element_type, num_dimensions = struct.unpack_from(">HBB", data) if len(data) >= 4 else (1, 0, 0)
    header = 4 + 4 * num_dimensions
    if zeros != 0 or element_type != 8 or len(data) < header:
        raise DataError(f"{path} is not an IDX file of bytes; remove it, and it is downloaded again")
    shape = struct.unpack_from(f">{num_dimensions}I", data, 4)
    if len(data) != header + int(np.prod(shape)):
        raise DataError(
            f"{path} is damaged: {len(data)} bytes, but its header asks for {header + int(np.prod(shape))}; "
            "remove it, and it is downloaded again"
        )
    if shape[1:] != size or num_dimensions != 1 + len(size):
        raise DataError(f"{path} holds {shape} bytes, not N of {size}: it is another file; remove it")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _image_set(images: np.ndarray, labels: np.ndarray, source: Path | str) -> ImageSet:
    if len(images) != len(labels):
        raise DataError(f"{source} holds {len(images)} images, but {len(labels)} labels")
    return ImageSet(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


# scikit-learn's digits

DIGITS_TEST = 360
"""One image in five."""


def _read_digits() -> tuple[ImageSet, ImageSet]:
    digits = _sklearn_digits()
    images = np.stack(
        [
            np.asarray(
                Image.fromarray(np.round(gray * (255 / 16)).astype(np.uint8)).resize(
                    (28, 28), Image.Resampling.BICUBIC
                )
            )
            for gray in digits[:, :-1].reshape(-1, 8, 8)
        ]
    )
    everything = _image_set(images, digits[:, -1].astype(np.int64), "scikit-learn")
    # Neighbours are of one writer, so the test images are drawn from all over, always the same ones.
    order = torch.randperm(len(everything), generator=generator(0))
    return everything[order[DIGITS_TEST:]], everything[order[:DIGITS_TEST]]


def _sklearn_digits() -> np.ndarray:
    """8x8 pixels from 0 to 16 and the label of each image, float64 (1797, 65)."""
    # The file that load_digits reads: to import scikit-learn takes as long as to train on them.
    spec = find_spec("sklearn")
    assert spec is not None, "scikit-learn is not installed"
    [package] = spec.submodule_search_locations or []
    return np.loadtxt(Path(package) / "datasets/data/digits.csv.gz", delimiter=",")
