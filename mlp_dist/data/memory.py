"""Arrays, tensors, data frames and torch data sets -> Dataset."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image

from mlp_dist.core.catalog import MEMORY
from mlp_dist.core.errors import DataError, UsageError
from mlp_dist.core.image import to_pixels
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset, ImageSet, mean_and_std
from mlp_dist.data.folder import hold_out

_FORMS = "(x, y), (x, y, x_test, y_test), or a data set with __len__ and __getitem__, of (image, label)"
_SHAPES = "(N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or flattened (N, F)"

_Array = np.ndarray[Any, Any]


def read_memory(data: Any, class_names: Sequence[str] | None = None, *, image_size: int = 28) -> Dataset:
    """The Dataset of images and labels in memory; without test images, one in seven is held out.

    Args:
        data: (x, y), (x, y, x_test, y_test), or a map-style data set of (image, label). Arrays, tensors and
            data frames x hold images (N, H, W), (N, C, H, W), (N, H, W, C) or (N, F): integers from 0 to 255,
            or float from 0 to 1. Lists and data sets may hold PIL images, which are resized to `image_size` x
            `image_size` if their sizes differ. Labels are integers or texts.
        class_names: The names of the labels 0, 1, ...; default: the data set's `classes`, else the labels.

    Raises UsageError for other forms of data, DataError for wrong shapes and values.
    """
    names = class_names if class_names is not None else getattr(data, "classes", None)
    parts = _parts(data)
    images = _pixels([images for images, _ in parts], image_size)
    classes, labels = _labels([labels for _, labels in parts], names)
    sets = [ImageSet(*pair) for pair in zip(images, labels, strict=True)]
    for part in sets:
        if len(part.images) != len(part.labels) or not len(part.labels):
            raise DataError(f"data has {len(part.images)} images and {len(part.labels)} labels in one part")
    train, test = sets if len(sets) == 2 else hold_out(sets[0], "data")
    mean, std = mean_and_std(train)
    _, _, height, width = train.images.shape
    image = ImageSpec(height, width, len(mean), mean, std)
    return Dataset(MEMORY, "data in memory", image, classes, train, test)


def _parts(data: Any) -> list[tuple[Any, Any]]:
    """The images and labels of the training part, and of the test part, if there is one."""
    if isinstance(data, tuple) and len(data) in (2, 4):
        return list(zip(data[::2], data[1::2], strict=True))
    if isinstance(data, tuple) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        found = f"a tuple of {len(data)}" if isinstance(data, tuple) else type(data).__name__
        raise UsageError(f"data is {found}; it must be {_FORMS}")
    try:
        items = [data[index] for index in range(len(data))]
        pairs = [item.values() if isinstance(item, Mapping) else item for item in items]
        images, labels = zip(*pairs, strict=True)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"data does not hold pairs ({error}); it must be {_FORMS}") from error
    return [(images, labels)]


def _array(values: Any) -> _Array:
    """A tensor, data frame, array or list of numbers, texts, arrays or tensors as one array."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, list | tuple) and len(values) and hasattr(values[0], "__array__"):
        values = [np.asarray(value) for value in values]
    try:
        array = np.asarray(values)
        # A data frame's column may hold an array in each row.
        return np.stack(list(array)) if array.dtype == object and hasattr(array[0], "shape") else array
    except ValueError as error:
        raise DataError(f"data holds arrays of different shapes ({error}); give PIL images") from error


# Labels


def _labels(parts: list[Any], names: Sequence[str] | None) -> tuple[tuple[str, ...], list[torch.Tensor]]:
    """The names of the classes, and each part's labels, int64 (N,)."""
    arrays = [_array(part) for part in parts]
    for array in arrays:
        is_whole = array.dtype.kind in "iubU" or (array.dtype.kind == "f" and not (array % 1).any())
        if array.ndim != 1 or not (is_whole or all(isinstance(each, str) for each in array)):
            raise DataError(
                f"the labels are {array.dtype} of shape {array.shape}; give one integer or text an image"
            )
    lists = [(array.astype(int) if array.dtype.kind == "f" else array).tolist() for array in arrays]
    found = sorted({label for labels in lists for label in labels})
    classes = tuple(map(str, found if names is None else names))
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"the classes are {classes}; there must be two or more, with different names")
    keys = found if names is None else range(len(classes)) if arrays[0].dtype.kind in "iubf" else classes
    number = {key: label for label, key in enumerate(keys)}
    if absent := [label for label in found if label not in number]:
        raise DataError(
            f"there is a label {absent[0]!r}; the {len(classes)} classes are {', '.join(classes)}"
        )
    if absent := [classes[label] for key, label in number.items() if key not in set(lists[0])]:
        raise DataError(f"there are no training images of the classes {', '.join(absent)}")
    return classes, [torch.tensor([number[label] for label in labels]) for labels in lists]


# Images


def _pixels(parts: list[Any], image_size: int) -> list[torch.Tensor]:
    """Each part's images, uint8 (N, C, H, W), of one size and number of channels."""
    rows = [list(part) if hasattr(part, "__len__") and not hasattr(part, "shape") else part for part in parts]
    if isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], Image.Image):
        return _decoded(rows, image_size)
    arrays = [_with_channels(_array(part)) for part in rows]
    if len({array.shape[1:] for array in arrays}) > 1:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise DataError(f"the training and test images have the shapes {shapes}; they must agree")
    low, high = min(array.min() for array in arrays), max(array.max() for array in arrays)
    are_shares = any(array.dtype.kind in "fb" for array in arrays) and high <= 1
    if not (low >= 0 and high <= 255) or not (are_shares or all(not (array % 1).any() for array in arrays)):
        raise DataError(
            f"the images hold values from {low:g} to {high:g}; give integers from 0 to 255, or float from 0 "
            "to 1, before any normalization"
        )
    return [
        torch.from_numpy(np.rint(array * (255 if are_shares else 1)).astype(np.uint8)) for array in arrays
    ]


def _with_channels(array: _Array) -> _Array:
    """(N, C, H, W) of the other shapes."""
    shape = array.shape
    if array.dtype.kind not in "iufb" or not array.size:
        raise DataError(f"the images are {array.dtype} of shape {shape}; give numbers, {_SHAPES}")
    if len(shape) == 2:
        sizes = [(channels, isqrt(shape[1] // channels)) for channels in (1, 3)]
        square = next(((c, side, side) for c, side in sizes if c * side**2 == shape[1]), (1, 1, shape[1]))
        return array.reshape(len(array), *square)
    if len(shape) == 3:
        return array[:, None]
    if len(shape) == 4 and shape[1] in (1, 3):
        return array
    if len(shape) == 4 and shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    raise DataError(f"the images have the shape {shape}; it must be {_SHAPES}")


def _decoded(parts: list[list[Image.Image]], image_size: int) -> list[torch.Tensor]:
    images = [image for part in parts for image in part]
    sizes = {image.size for image in images}
    width, height = sizes.pop() if len(sizes) == 1 else (image_size, image_size)
    channels = 1 if all(image.mode in ("1", "L", "LA", "I", "F", "I;16") for image in images) else 3
    spec = ImageSpec(height, width, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    return [torch.stack([to_pixels(image, spec) for image in part]) for part in parts]
