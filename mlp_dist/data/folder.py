"""A folder of images of one's own -> Dataset: one folder a class, or DIR/train and DIR/test."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from mlp_dist.core.errors import DataError, ImageError
from mlp_dist.core.images import FORMATS, decode_image
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.batches import generator
from mlp_dist.data.catalog import FOLDER_PREFIX
from mlp_dist.data.dataset import Dataset, ImageSet

TEST_SHARE = 7
"""One image in seven is held out where there is no test part, as 10,000 of MNIST's 70,000 are."""

SIZE = 28
"""Height and width that images are resized to, in pixels."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_GRAY_MODES = ("1", "L", "LA", "I", "F")


def read_folder(directory: Path) -> Dataset:
    """Read `directory`: classes are its folders' names, in order.

    Mean and standard deviation are measured on the training part. Gray where every training file is, else
    RGB. Raises DataError, naming every file that cannot be read.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; folder:DIR wants one folder a class in DIR")
    has_parts = (directory / "train").is_dir()
    if has_parts and not (directory / "test").is_dir():
        raise DataError(f"{directory} has a folder train but none named test; it needs both, or neither")
    root = directory / "train" if has_parts else directory
    classes = tuple(_class_names(root))
    if len(classes) < 2:
        raise DataError(f"{root} holds {len(classes)} folders; it needs two or more, one a class")
    files = _labelled_files(root, classes)
    empty = sorted(set(classes) - {classes[label] for _, label in files})
    if empty:
        raise DataError(f"{root} has no image to train on in the folders {', '.join(empty)}")
    channels = _num_channels([path for path, _ in files])
    spec = ImageSpec(SIZE, SIZE, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    train = _decode(files, spec)
    if has_parts:
        test = _decode(_labelled_files(directory / "test", classes), spec)
    else:
        order = torch.randperm(len(train), generator=generator(0))
        num_test = max(1, len(train) // TEST_SHARE)
        train, test = train[order[num_test:]], train[order[:num_test]]
    mean, std = _measure(train.images)
    spec = replace(spec, mean=mean, std=std)
    return Dataset(
        f"{FOLDER_PREFIX}{directory.absolute()}", directory.absolute().name, spec, classes, train, test
    )


def _class_names(root: Path) -> list[str]:
    """The folders in `root` but those that tools leave, as .ipynb_checkpoints and __MACOSX."""
    return sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))
    )


def _labelled_files(root: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    extra = sorted(set(_class_names(root)) - set(classes))
    if extra:
        raise DataError(f"{root} has folders that the training part lacks: {', '.join(extra)}")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"{root} holds no {', '.join(FORMATS)} files")
    return files


def _num_channels(paths: list[Path]) -> int:
    """1 where every file is gray, else 3. A file that cannot be opened is left to `_decode`."""
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                if not _is_gray(image):
                    return 3
        except (OSError, SyntaxError, ValueError):
            continue
    return 1


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P":
        palette = image.getpalette("RGB") or []
        return palette[0::3] == palette[1::3] == palette[2::3]
    return image.mode in _GRAY_MODES or image.mode.startswith("I;")


def _decode(files: list[tuple[Path, int]], spec: ImageSpec) -> ImageSet:
    images, bad = [], []
    for path, _ in files:
        try:
            images.append(decode_image(path.read_bytes(), spec))
        except (ImageError, OSError) as error:
            bad.append(f"  {path}: {error}")
    if bad:
        raise DataError("\n".join([f"{len(bad)} of {len(files)} images cannot be read; remove them:", *bad]))
    return ImageSet(torch.stack(images), torch.tensor([label for _, label in files]))


def _measure(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in units of 0 to 1; a channel that never varies gets std 1."""
    mean, std = [], []
    for channel in images.unbind(dim=1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        average = (counts * values).sum() / counts.sum()
        variance = (counts * (values - average) ** 2).sum() / counts.sum()
        mean.append(round(average.item(), 4))
        std.append(round(variance.sqrt().item(), 4) or 1.0)
    return tuple(mean), tuple(std)
