"""Images inside JSON and text: base64 and data URLs to file bytes, lists of numbers to arrays."""

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mlp_dist.core import inputs
from mlp_dist.core.errors import ImageError
from mlp_dist.core.spec import ImageSpec
from serve.inference.request_errors import RequestError

_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]+={0,2}")

_FLOATS = ("FP16", "FP32", "FP64")
_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
"""Numeric datatypes of protocol v2."""

_MAX_INTEGER = np.iinfo(np.uint16).max
_MAX_DIMENSIONS = 4


def decode_text(text: str | bytes, where: str) -> bytes:
    """`inputs.decode_text`. Raises RequestError."""
    try:
        return inputs.decode_text(text, where)
    except ImageError as error:
        raise RequestError(str(error)) from error


def is_text(data: bytes) -> bool:
    """True for a data URL or base64. No image file starts with as many letters."""
    if data[:64].lstrip()[:5].lower() == b"data:":
        return True
    # Strip first: trailing blanks in the pattern would make it quadratic.
    return len(data) >= 24 and _BASE64.fullmatch(data.strip()) is not None


@dataclass(frozen=True)
class Array:
    """One or several images as integers from 0 to 255 or floats from 0 to 1.

    `where` names it in error messages. With `one` it must hold exactly one image.
    """

    values: np.ndarray
    where: str
    one: bool = False

    def num_images(self, spec: ImageSpec) -> int:
        return len(self.values) if self.is_batch(spec) else 1

    def is_batch(self, spec: ImageSpec) -> bool:
        """True if a dimension counts images. The response is then a list, even for one image."""
        *_, last = shape = self.values.shape
        if len(shape) == 3 and spec.channels == 3:
            return shape != (3, spec.height, spec.width) and last != 3
        return len(shape) > 2 or (len(shape) == 2 and last == spec.num_features)


def from_lists(values: list[Any], where: str, *, one: bool = False) -> Array:
    """Convert nested lists. Raises RequestError unless they hold numbers in rows of equal length."""
    if not _holds_numbers(values):
        raise _not_an_image(where, "no numbers")
    try:
        array = np.array(values)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RequestError(f"{where} is not an array of numbers: {error}") from error
    if not array.size or array.dtype.kind not in "uif":
        raise _not_an_image(where, "no numbers")
    if array.ndim > _MAX_DIMENSIONS:
        raise _not_an_image(where, f"{array.ndim} dimensions")
    return Array(array, where, one)


def from_tensor(values: Any, shape: Any, datatype: Any, where: str) -> Array:
    """Convert a tensor of protocol v2, whose data may be flat. Raises RequestError."""
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
        # Some clients write 255.0 for 255.
        if not ((np.trunc(array) == array) & (np.abs(array) <= _MAX_INTEGER)).all():
            raise RequestError(f"{where} has the datatype {datatype} but fractional or too large numbers")
        array = array.astype(np.int64)
    if datatype == "UINT16" and array.min() >= 0 and array.max() <= _MAX_INTEGER:
        array = array.astype(np.uint16)
    return Array(array.reshape(shape), where)


def check_shape(shape: Any, size: int, where: str) -> None:
    """Raise RequestError if `shape` is invalid for a tensor of protocol v2 with `size` elements."""
    counts = isinstance(shape, list) and all(type(each) is int and each > 0 for each in shape)
    if not counts or not 1 <= len(shape) <= _MAX_DIMENSIONS:
        raise RequestError(f"{where} needs a shape: a list of 1 to 4 numbers above 0")
    if prod(shape) != size:
        raise RequestError(f"{where} has {size} elements, but its shape {shape} needs {prod(shape)}")


def _holds_numbers(values: list[Any]) -> bool:
    """Check before numpy does: it would pad every string to the length of the longest."""
    waiting = [values]
    while waiting:
        for each in waiting.pop():
            if type(each) is list:
                waiting.append(each)
            elif type(each) not in (int, float):
                return False
    return True


def _not_an_image(where: str, found: str) -> RequestError:
    return RequestError(
        f"{where} is not an image ({found}); give rows of numbers, integers from 0 to 255 or floats from "
        '0 to 1; send several base64 files as {"instances": [{"b64": ...}, ...]}'
    )
