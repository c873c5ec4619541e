"""A folder of images of one's own -> Dataset: one folder a class, or DIR/train and DIR/test."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from mlp_dist.console import progress
from mlp_dist.console.processes import is_main, num_cores
from mlp_dist.core.catalog import FOLDER_PREFIX
from mlp_dist.core.errors import DataError, ImageError
from mlp_dist.core.image import FORMATS, decode_image
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.batches import generator
from mlp_dist.data.cache import DecodedFolder, cached, folder_fingerprint
from mlp_dist.data.image_set import Dataset, ImageSet
from mlp_dist.data.listing import ImageFile, Listing, check_classes, list_folder
from mlp_dist.data.measure import mean_and_std, pixel_counts

TEST_SHARE = 7
"""One image in seven is held out where there is no test part, as 10,000 of MNIST's 70,000 are."""

_SPLIT, _SHUFFLE = 2, 3
"""The streams of random numbers that draw them and mix the classes; batches.py has those of a training."""

_GRAY_MODES = ("1", "L", "LA", "I", "F")

_BYTES_A_THREAD = 2500
"""The bytes that are decoded in the time for which Python holds its lock for each file."""

_CHUNK = 64


def read_folder(directory: Path, *, image_size: int = 28, skip_bad_images: bool = False) -> Dataset:
    """Read `directory`: classes are its folders' names, in order; images become image_size x image_size.

    Mean and standard deviation are measured on the training part. Gray where every training file is, else
    RGB. The decoded images are cached until a file changes.

    Raises DataError, naming every file that cannot be read; with `skip_bad_images` these are left out, and
    named on stderr.
    """
    directory = directory.expanduser().resolve()
    try:
        listing = list_folder(directory)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error
    files = [*listing.train, *(listing.test or [])]
    decoded = cached(
        directory,
        image_size,
        folder_fingerprint(listing.classes, ((file.path, file.status) for file in files)),
        lambda: _decode(directory, listing, image_size),
    )
    if is_main():
        for note in listing.notes:
            progress.tell(f"note: {note}", sys.stderr)
    _report_bad(directory, decoded.bad, len(files), skip_bad_images)
    train, test = decoded.train, decoded.test
    check_classes(directory, listing.classes, set(train.labels.tolist()))
    if test is None:
        train, test = _split(directory, train)
    if len(test) == 0:
        raise DataError(f"{directory / 'test'} has no image that can be read; it needs one or more")
    train, test = _shuffled(train), _shuffled(test)
    mean, std = mean_and_std(pixel_counts(train.images))
    spec = ImageSpec(image_size, image_size, len(mean), mean, std)
    return Dataset(f"{FOLDER_PREFIX}{directory}", directory.name, spec, listing.classes, train, test)


def _report_bad(directory: Path, bad: dict[str, str], num_files: int, skip: bool) -> None:
    if not bad:
        return
    lines = [f"  {directory / path}: {reason}" for path, reason in bad.items()]
    head = f"{len(bad)} of {num_files} images cannot be read"
    if not skip:
        raise DataError(
            "\n".join([f"{head}; remove them, or leave them out with --skip-bad-images:", *lines])
        )
    if is_main():
        progress.tell("\n".join([f"{head} and are left out:", *lines]), sys.stderr)


# Decoding


_Decoded = list[torch.Tensor | Exception]
"""Of each file its pixels, uint8 (C, H, W), or why it has none."""


def _decode(directory: Path, listing: Listing, image_size: int) -> DecodedFolder:
    test_files = listing.test or []
    files = [*listing.train, *test_files]
    with progress.bar(directory.name, len(files), " images") as bar:
        train = _decode_files(directory, listing.train, image_size, None, bar)
        channels = max((len(image) for image in train if isinstance(image, torch.Tensor)), default=1)
        test = _decode_files(directory, test_files, image_size, channels, bar)
    errors = [
        (file.path, result)
        for file, result in zip(files, train + test, strict=True)
        if isinstance(result, Exception)
    ]
    shape = (channels, image_size, image_size)
    return DecodedFolder(
        _image_set(listing.train, train, shape),
        None if listing.test is None else _image_set(test_files, test, shape),
        {path: getattr(error, "strerror", None) or str(error) for path, error in errors},
        lasting=all(isinstance(error, ImageError | FileNotFoundError) for _, error in errors),
    )


def _image_set(files: list[ImageFile], decoded: _Decoded, shape: tuple[int, int, int]) -> ImageSet:
    """Those that have pixels; gray ones beside RGB ones get three equal channels."""
    images, labels = [torch.empty((0, *shape), dtype=torch.uint8)], []
    for file, image in zip(files, decoded, strict=True):
        if isinstance(image, torch.Tensor):
            images.append(image.expand(1, *shape))
            labels.append(file.label)
    return ImageSet(torch.cat(images), torch.tensor(labels, dtype=torch.int64))


def _decode_files(
    directory: Path, files: list[ImageFile], image_size: int, channels: int | None, bar: progress.Bar
) -> _Decoded:
    """In threads. With `channels` None gray files get 1 channel, others 3."""
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

    # Two threads that find the plugins of Pillow not all loaded may each miss some.
    Image.init()
    results: _Decoded = []
    with ThreadPoolExecutor(_num_threads(files)) as pool:
        try:
            for chunk in pool.map(decode_chunk, range(0, len(files), _CHUNK)):
                results += chunk
                bar.update(len(chunk))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return results


def _num_threads(files: list[ImageFile]) -> int:
    """As many as the cores, but for small files fewer: there threads wait for Python's lock.

    Processes are no better for these: each would first import torch.
    """
    num_bytes = sum(file.status.st_size for file in files if file.status is not None)
    return min(num_cores(), 1 + num_bytes // (_BYTES_A_THREAD * max(1, len(files))))


def _is_gray(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode == "P":
                palette = image.getpalette("RGB") or []
                return palette[0::3] == palette[1::3] == palette[2::3]
            return image.mode in _GRAY_MODES or image.mode.startswith("I;")
    # What is wrong with it `decode_image` tells.
    except Exception:
        return True


# Splitting and measuring


def _split(directory: Path, images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """(the rest, one in TEST_SHARE of each class): always the same ones, and never a class's only image."""
    counts = torch.bincount(images.labels)
    if counts.max() < 2:
        raise DataError(
            f"{directory} holds fewer than two images in every class, so none can be held out as a test; "
            "add images, or give DIR/train and DIR/test"
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
    """In an order that is always the same, with the classes mixed: the first images stand for them all."""
    return images[torch.randperm(len(images), generator=generator(0, _SHUFFLE))]
