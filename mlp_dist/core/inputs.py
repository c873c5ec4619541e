"""Paths, bytes, PIL images, numpy arrays, tensors and lists of these -> a model's input."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from PIL import Image

from mlp_dist.core.errors import ImageError
from mlp_dist.core.image import DEFAULT_READING, Reading, check_format, decode_image, normalize, to_pixels
from mlp_dist.core.spec import AUTO, ImageSpec

OneOrBatch = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor
Images = OneOrBatch | Sequence[OneOrBatch]

_CHANNELS_FIRST, _CHANNELS_LAST = (1, 3, 4), (1, 2, 3, 4)

_URL_SAFE = bytes.maketrans(b"-_", b"+/")

_ROUNDING = 1e-6
"""How far floats may exceed 0 to 1, as after an interpolation."""


def model_input(images: Images, spec: ImageSpec, reading: Reading = DEFAULT_READING) -> torch.Tensor:
    """Normalized float32 (N, C*H*W) on the CPU, one row per image.

    Bundle.predict_proba documents the shapes and types. Raises ImageError for others.
    """
    parts = images if isinstance(images, list | tuple) else [images]
    if not parts:
        raise ImageError("there is no image: the list is empty")
    return torch.cat([normalize(read_images(part, spec, reading), spec) for part in parts])


def decode_text(text: str | bytes, where: str) -> bytes:
    """Decode a data URL or base64, standard or URL-safe, with or without line breaks and padding.

    Raises ImageError; its message calls the input `where`.
    """
    encoded = (text.encode(errors="replace") if isinstance(text, str) else text).strip()
    start = repr(encoded[:20].decode(errors="replace"))
    if encoded[:5].lower() == b"data:":
        head, comma, content = encoded.partition(b",")
        if not comma:
            raise ImageError(f"{where} holds a data URL without a comma: it starts with {start}")
        if not head.rstrip().lower().endswith(b";base64"):
            return unquote_to_bytes(content)
        encoded = unquote_to_bytes(content)
    packed = b"".join(encoded.split()).translate(_URL_SAFE).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        check_format(encoded)
        raise ImageError(f"{where} is not base64 ({error}): it starts with {start}") from error


def read_images(part: Any, spec: ImageSpec, reading: Reading = DEFAULT_READING) -> torch.Tensor:
    """One of OneOrBatch -> (N, C, H, W), uint8 or float32 from 0 to 1. Raises ImageError."""
    if isinstance(part, str | Path):
        try:
            return decode_image(Path(part).read_bytes(), spec, reading)[None]
        except ImageError as error:
            raise ImageError(f"{part}: {error}") from error
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot read {part}: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(part, bytes):
        return decode_image(part, spec, reading)[None]
    if isinstance(part, Image.Image):
        try:
            return to_pixels(part, spec, reading)[None]
        except ImageError:
            raise
        # A lazily opened PIL image is decoded here, and damaged ones raise various exceptions.
        except Exception as error:
            raise ImageError(f"the image is damaged: {error}") from error
    if isinstance(part, np.ndarray | torch.Tensor):
        return convert(as_batch(part, spec), spec, reading)
    raise ImageError(
        f"{type(part).__name__} is not an image; give a path, bytes, a PIL image, an array or a tensor"
    )


def as_batch(images: np.ndarray | torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Images of any size, before `convert`: (N, C, H, W), uint8 or float32 from 0 to 1. Raises ImageError."""
    tensor = _tensor(images) if isinstance(images, np.ndarray) else images
    return _with_four_dimensions(_checked(tensor), spec)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A copy, because torch does not take negative strides, and not every byte order and type."""
    if array.dtype.kind not in "uif":
        raise ImageError(f"an array of {array.dtype} holds no image; give uint8 from 0 to 255")
    if array.dtype.itemsize <= 2 and array.dtype.kind == "u":
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64, order="C"))


def _checked(values: torch.Tensor) -> torch.Tensor:
    """Integers from 0 to 255 as uint8, uint16 scaled to uint8, floats from 0 to 1 as float32."""
    plain = values.layout == torch.strided and not (values.is_quantized or values.is_meta)
    if not plain or values.dtype == torch.bool or values.is_complex():
        raise ImageError(
            f"a tensor of {values.dtype} and {values.layout} holds no image; give uint8, 0 to 255, or float"
        )
    values = values.detach().cpu()
    if values.numel() == 0:
        raise ImageError(f"there is no image: the shape is {tuple(values.shape)}")
    if values.dtype == torch.uint16:
        return ((values.to(torch.int64) + 128) // 257).to(torch.uint8)
    floating = values.is_floating_point()
    wide = values.to(torch.float64 if floating else torch.int64)
    low, high, most, slack = wide.min().item(), wide.max().item(), (1 if floating else 255), _ROUNDING
    if high == 1 and not floating:
        raise ImageError(
            f"images of {values.dtype} hold only 0 and 1, not 0 to 255; give masks as float, or times 255"
        )
    # Negated, so that NaN fails too.
    if not (low >= -slack and high <= most + slack):
        raise ImageError(
            f"images of {values.dtype} hold values from {low:g} to {high:g}, not 0 to {most}; "
            "give uint8 from 0 to 255 or float from 0 to 1, before any normalization"
        )
    return wide.to(torch.float32).clamp_(0, 1) if floating else wide.to(torch.uint8)


def _with_four_dimensions(values: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """(N, C, H, W); C, H and W may differ from the spec."""
    shape, wanted = tuple(values.shape), (spec.channels, spec.height, spec.width)
    if len(shape) in (1, 2) and shape[-1] == spec.num_features:
        return values.reshape(-1, *wanted)
    if len(shape) == 2:
        return values[None, None]
    channels_last = len(shape) > 2 and shape[-1] in _CHANNELS_LAST and shape[-3:] != wanted
    if len(shape) == 3 and channels_last:
        return values.permute(2, 0, 1)[None]
    if len(shape) == 3:
        return _as_batch_of_planes(values, spec)
    if len(shape) == 4 and channels_last:
        return values.permute(0, 3, 1, 2)
    if len(shape) == 4 and shape[1] in _CHANNELS_FIRST:
        return values
    raise ImageError(
        f"{shape} is not the shape of images; give (H, W), (N, H, W), those with channels first or last, or "
        f"(N, {spec.num_features})"
    )


def _as_batch_of_planes(values: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Three dimensions: one image (C, H, W) or N gray ones (N, H, W). Raises ImageError if ambiguous."""
    number, *size = values.shape
    has_own_size = size == [spec.height, spec.width]
    if has_own_size and number == spec.channels:
        return values[None]
    if number in (1, 2) or number not in _CHANNELS_FIRST or (has_own_size and spec.channels == 1):
        return values[:, None]
    raise ImageError(
        f"{tuple(values.shape)} may be one color image or {number} gray ones; "
        f"give (1, {number}, {size[0]}, {size[1]}) or ({number}, 1, {size[0]}, {size[1]})"
    )


def needs_conversion(batch: torch.Tensor, spec: ImageSpec, reading: Reading) -> bool:
    return reading.preprocess == AUTO or batch.shape[1:] != (spec.channels, spec.height, spec.width)


def convert(batch: torch.Tensor, spec: ImageSpec, reading: Reading) -> torch.Tensor:
    """Convert other sizes and colors, and frame digits, as for image files, in 8 bits. Raises ImageError."""
    if not needs_conversion(batch, spec, reading):
        return batch
    pixels = batch if batch.dtype == torch.uint8 else (batch * 255).round().to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    read = torch.stack(
        [
            to_pixels(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), spec, reading)
            for array in arrays
        ]
    )
    # Without a change, return the batch in its own precision.
    return batch if read.shape == pixels.shape and torch.equal(read, pixels) else read
