"""Images inside JSON, text and binary tensors: base64 and data URLs to file bytes, numbers to arrays."""

import re
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

import numpy as np

from mlp_dist.core import inputs
from mlp_dist.core.errors import ImageError
from mlp_dist.core.spec import ImageSpec
from serve.inference.limits import RequestError

_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]+={0,2}")

_NON_TEXT = re.compile(rb"[^\t\n\r\x20-\x7e]")

_FILES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
"""How files of the supported formats begin."""

DTYPES = {
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
}
"""Numeric datatypes of protocol v2."""

_MAX_DIMENSIONS = 4


def decode_text(text: str | bytes, where: str) -> bytes:
    """`inputs.decode_text`. Raises RequestError, and UnsupportedFormatError for URLs and other known text."""
    try:
        return inputs.decode_text(text, where)
    except ImageError as error:
        if type(error) is ImageError:
            raise RequestError(str(error)) from error
        raise


def is_text(data: bytes) -> bool:
    """True for a data URL or base64. No image file starts with as many letters."""
    if data[:64].lstrip()[:5].lower() == b"data:":
        return True
    # Strip first: trailing blanks in the pattern would make it quadratic.
    return len(data) >= 24 and _BASE64.fullmatch(data.strip()) is not None


def is_binary(value: Any) -> bool:
    """Every image format has a byte that is not text near its start."""
    return isinstance(value, bytes | bytearray) and bool(_NON_TEXT.search(value[:16]))


def holds_image(value: Any, depth: int) -> bool:
    """True for what is an image among other values: an image file as text, rows of numbers, or an object or
    list with one of these, at most `depth` levels down.
    """
    if isinstance(value, str | bytes | bytearray):
        start = (
            value[:64].encode(errors="replace") if isinstance(value, str) else bytes(value[:64])
        ).lstrip()
        try:
            return is_text(start[:5]) or inputs.decode_text(start[:16], "").startswith(_FILES)
        except ImageError:
            return False
    if isinstance(value, list) and value and type(value[0]) in (int, float):
        return len(value) > _MAX_DIMENSIONS
    inside = value.values() if isinstance(value, dict) else value[:1] if isinstance(value, list) else ()
    return depth > 0 and any(holds_image(each, depth - 1) for each in inside)


@dataclass(frozen=True)
class Array:
    """One or several images as integers from 0 to 255 or floats from 0 to 1.

    `where` names it in error messages. With `one` it must hold exactly one image.
    """

    values: np.ndarray
    where: str
    one: bool = False

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
    """Convert a numeric tensor of protocol v2, lists or bytes. Raises RequestError."""
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise RequestError(
            f"{where} has the datatype {str(datatype)[:40]!r}; give one of {', '.join(('BYTES', *DTYPES))}"
        )
    if isinstance(values, bytes):
        if not values or len(values) % dtype.itemsize:
            raise RequestError(f"{where} has {len(values)} bytes, which are not numbers of {datatype}")
        array = np.frombuffer(values, dtype)
        return Array(array.reshape(full_shape(shape, array.size, where)), where)
    if not isinstance(values, list):
        raise RequestError(f"{where} needs its data as a list")
    array = from_lists(values, where).values
    # In integers, some clients write 255.0 for 255.
    with np.errstate(invalid="ignore"):
        cast = array.astype(np.float64 if dtype.kind == "f" else dtype)
    if dtype.kind != "f" and (cast != array).any():
        raise RequestError(f"{where} has the datatype {datatype} but fractional or too large numbers")
    return Array(cast.reshape(full_shape(shape, array.size, where)), where)


def full_shape(shape: Any, size: int, where: str) -> list[int]:
    """The shape of a tensor of `size` elements, without -1. Raises RequestError if it does not fit."""
    shape = [shape] if type(shape) is int else shape
    counts = isinstance(shape, list) and all(type(each) is int and (each > 0 or each == -1) for each in shape)
    if not counts or not 1 <= len(shape) <= _MAX_DIMENSIONS or shape.count(-1) > 1:
        raise RequestError(f"{where} needs a shape: a list of 1 to 4 numbers above 0, or one of them -1")
    known = prod(each for each in shape if each > 0)
    full = [each if each > 0 else size // known for each in shape]
    if prod(full) != size:
        raise RequestError(f"{where} has {size} elements, but its shape {shape} needs {abs(prod(shape))}")
    return full


def texts(values: Any) -> list[Any]:
    """The elements of a BYTES tensor's data, which may be nested, or one element alone."""
    if not isinstance(values, list):
        return [values]
    elements: list[Any] = values
    while elements and all(isinstance(each, list) for each in elements):
        elements = [element for each in elements for element in each]
    return elements


def unpack(data: bytes, where: str) -> list[bytes]:
    """The elements of a binary BYTES tensor, each after its length in 4 bytes. Raises RequestError."""
    stream, elements = BytesIO(data), []
    while prefix := stream.read(4):
        length = int.from_bytes(prefix, "little")
        element = stream.read(length)
        if len(prefix) < 4 or len(element) < length:
            raise RequestError(f"{where} is cut off: {length} bytes were announced, {len(element)} came")
        elements.append(element)
    return elements


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
