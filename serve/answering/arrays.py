"""Numbers in JSON -> arrays of images, as bundle.predict_proba takes them."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mlp_dist.core.spec import ImageSpec
from serve.answering.errors import RequestError

_FLOATS = ("FP16", "FP32", "FP64")
_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
"""Of protocol v2, the types of numbers that images are made of."""

_MOST = np.iinfo(np.uint16).max
"""What an integer is at most."""

_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Array:
    """`values` are integers from 0 to 255 or floats from 0 to 1, one image or several; where `one` is set,
    it must be one.
    """

    values: np.ndarray
    where: str
    one: bool = False

    def number(self, spec: ImageSpec) -> int:
        """Of the images in it, before any of them is looked at."""
        return len(self.values) if self.holds_many(spec) else 1

    def holds_many(self, spec: ImageSpec) -> bool:
        """Whether the answer is a list, also of one: the array has a dimension that counts images."""
        *_, last = shape = self.values.shape
        if len(shape) == 3 and spec.channels == 3:
            return shape != (3, spec.height, spec.width) and last != 3
        return len(shape) > 2 or (len(shape) == 2 and last == spec.num_features)


def from_lists(values: list[Any], where: str, *, one: bool = False) -> Array:
    """Raises RequestError unless they are numbers in rows of equal length."""
    if not _holds_numbers(values):
        raise _no_numbers(where, "no numbers")
    try:
        array = np.array(values)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RequestError(f"{where} is no array of numbers: {error}") from error
    return Array(_checked(array, where), where, one)


def from_tensor(values: Any, shape: Any, datatype: Any, where: str) -> Array:
    """A tensor of protocol v2, whose numbers may come flat. Raises RequestError."""
    if datatype not in (*_FLOATS, *_INTEGERS):
        known = ", ".join(("BYTES", *_FLOATS, *_INTEGERS))
        raise RequestError(f"{where} has the datatype {str(datatype)[:40]!r}; give one of {known}")
    if not isinstance(values, list):
        raise RequestError(f"{where} needs its data as a list")
    array = from_lists(values, where).values
    check_shape(shape, array.size, where)
    if datatype in _FLOATS:
        return Array(array.astype(np.float64).reshape(shape), where)
    if array.dtype.kind == "f":
        # Some programs write 255.0 for 255.
        if not ((np.trunc(array) == array) & (np.abs(array) <= _MOST)).all():
            raise RequestError(f"{where} has the datatype {datatype}, but numbers that are not whole")
        array = array.astype(np.int64)
    if datatype == "UINT16" and array.min() >= 0 and array.max() <= _MOST:
        array = array.astype(np.uint16)
    return Array(array.reshape(shape), where)


def check_shape(shape: Any, size: int, where: str) -> None:
    """Raise RequestError unless a tensor of protocol v2 with so many elements may have this shape."""
    counts = isinstance(shape, list) and all(type(each) is int and each > 0 for each in shape)
    if not counts or not 1 <= len(shape) <= _MOST_DIMENSIONS:
        raise RequestError(f"{where} needs its shape as a list of 1 to 4 numbers above 0")
    if prod(shape) != size:
        raise RequestError(f"{where} has {size} elements, but its shape {shape} needs {prod(shape)}")


def _holds_numbers(values: list[Any]) -> bool:
    """Whether lists in lists end in numbers: of texts numpy would make copies as long as the longest."""
    waiting = [values]
    while waiting:
        for each in waiting.pop():
            if type(each) is list:
                waiting.append(each)
            elif type(each) not in (int, float):
                return False
    return True


def _checked(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind not in "uif" or array.ndim > _MOST_DIMENSIONS or not array.size:
        found = (
            "no numbers" if not array.size or array.dtype.kind not in "uif" else f"{array.ndim} dimensions"
        )
        raise _no_numbers(where, found)
    return array


def _no_numbers(where: str, found: str) -> RequestError:
    return RequestError(
        f"{where} has {found} where an image should be; give rows of numbers, integers from 0 to 255 or "
        'floats from 0 to 1; several files in base64 are sent as {"instances": [{"b64": ...}, ...]}'
    )
