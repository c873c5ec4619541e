"""Image bytes -> uint8 pixels -> the model's input.

Training on image folders and serving both use `decode_image`. `normalize` equals torchvision's
Compose([ToTensor(), Normalize(mean, std), flatten]) bit for bit, on every device.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from mlp_dist.core.digits import are_framed, as_mnist
from mlp_dist.core.errors import ImageError, ImageTooLargeError, UnsupportedFormatError
from mlp_dist.core.plain_png import read_plain
from mlp_dist.core.spec import AUTO, EXACT, PREPROCESS, ImageSpec

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

MAX_PIXELS = 25_000_000
"""Limit on the pixels of an image, checked before it is decoded. They alone take up to 75 MB."""

MAX_SIDE = 65_535
"""JPEG's limit. A strip one pixel high takes many times the memory of a page with as many pixels."""

MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
"""Limit on pixels times scans: a progressive JPEG may have any number of scans over all of its pixels."""

BACKGROUNDS = ("black", "white")

_UNSUPPORTED = (
    *(("HEIC or AVIF", b"ftyp" + brand, 4) for brand in (b"he", b"mif1", b"msf1", b"avi")),
    ("a video", b"ftyp", 4),
    *(("PDF", b"%PDF", 0), ("SVG", b"<svg", 0), ("XML", b"<?xml", 0), ("ZIP", b"PK\3\4", 0)),
    *(("HTML", beginning, 0) for beginning in (b"<!DOCTYPE html", b"<html")),
    *(("JPEG XL", b"\xff\x0a", 0), ("JPEG XL", b"JXL ", 4), ("gzip", b"\x1f\x8b", 0)),
    *(("a URL", scheme, 0) for scheme in (b"http://", b"https://")),
    ("a Git LFS pointer", b"version https://git-lfs", 0),
)
"""Other content: name, magic bytes, and their offset."""

_TIFF = (b"II*\0", b"MM\0*")

_SAVE_OTHERWISE = "; save it as PNG or JPEG"

_INSTEAD = {
    "gzip": "; send it uncompressed, without Content-Encoding",
    "a URL": "; nothing is downloaded: send the image itself",
    "a Git LFS pointer": "; get the file itself: git lfs pull",
}
"""What to do about content that is not an image; otherwise _SAVE_OTHERWISE."""


@dataclass(frozen=True)
class Reading:
    """How images become pixels. Raises ImageError for unknown values.

    `preprocess` is one of PREPROCESS. `background`, one of BACKGROUNDS, shows through transparent pixels. By
    default it is black, but for "auto" the color that contrasts with the opaque pixels.
    """

    preprocess: str = EXACT
    background: str | None = None

    def __post_init__(self) -> None:
        if self.preprocess not in PREPROCESS:
            raise ImageError(f"preprocess is {self.preprocess!r}; it can be {' or '.join(PREPROCESS)}")
        if self.background not in (None, *BACKGROUNDS):
            raise ImageError(f"background is {self.background!r}; it can be {' or '.join(BACKGROUNDS)}")


DEFAULT_READING = Reading()


def decode_image(data: bytes, spec: ImageSpec, reading: Reading = DEFAULT_READING) -> torch.Tensor:
    """Decode an image file to uint8 pixels (C, H, W) of the size and channels of `spec`.

    Applies the EXIF orientation, takes the first frame, puts transparent pixels on a background, scales 16
    bits to 8, and converts to gray or RGB. Images of another size are resized (bilinear, with
    anti-aliasing); with `preprocess` "auto" the digit in them is found and framed as in MNIST.

    Raises ImageError unless the file is a PNG, JPEG, GIF, BMP, WebP or TIFF with at most MAX_PIXELS.
    """
    if not data:
        raise ImageError(f"the image is empty; send the bytes of a {_listed(FORMATS)} file")
    plain = read_plain(data, spec)
    if plain is not None:
        return _fitted(plain, spec, reading)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, data)
            return to_pixels(image, spec, reading)
    except ImageError:
        raise
    # The warning is for Pillow's own, lower limit.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(
            f"the image has more than {MAX_PIXELS} pixels; send a smaller one"
        ) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    # On damaged files Pillow's decoders raise OSError, SyntaxError, struct.error, and others.
    except Exception as error:
        or_else = f", or it is a TIFF of a rare kind{_SAVE_OTHERWISE}" if data.startswith(_TIFF) else ""
        raise ImageError(f"the image is damaged: {error}{or_else}") from error


def num_pixels(data: bytes) -> int:
    """The number of pixels in an image file's header; 0 if it cannot be read or is over a limit."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, data)
            return image.width * image.height
    # `decode_image` raises the error.
    except Exception:
        return 0


def decode_plain(files: Sequence[bytes], spec: ImageSpec, reading: Reading) -> tuple[list[int], torch.Tensor]:
    """Indices and uint8 pixels (N, C, H, W) of the files that `read_plain` reads and that need no framing.

    The pixels are those of `decode_image`, which takes several times as long.
    """
    read = ((index, read_plain(data, spec)) for index, data in enumerate(files))
    images = {index: image for index, image in read if image is not None}
    stored = np.frombuffer(bytearray().join(image.data for image in images.values()), np.uint8)
    array = stored.reshape(-1, spec.height, spec.width, spec.channels)
    indices = list(images)
    if reading.preprocess == AUTO:
        framed = are_framed(array[..., 0]) if spec.channels == 1 else [False] * len(array)
        if not all(framed):
            indices, array = list(compress(indices, framed)), array[framed]
    return indices, torch.from_numpy(array.transpose(0, 3, 1, 2))


def _check_size(image: Image.Image, data: bytes) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if max(image.size) > MAX_SIDE:
        raise ImageTooLargeError(f"the image is {max(image.size)} pixels long; send at most {MAX_SIDE}")
    if image.format in ("JPEG", "MPO"):
        # Compressed pixels do not contain this marker.
        scans = data.count(b"\xff\xda")
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ImageTooLargeError(
                f"the JPEG has {scans} scans of {image.width * image.height} pixels; "
                "save it as a JPEG that is not progressive"
            )


def check_format(data: bytes) -> None:
    """Raise UnsupportedFormatError if `data` begins like a known format that is not supported."""
    for name, magic, position in _UNSUPPORTED:
        if data.startswith(magic, position) or data[:64].lstrip().startswith(magic):
            instead = _INSTEAD.get(name, _SAVE_OTHERWISE)
            raise UnsupportedFormatError(
                f"{len(data)} bytes are not a {_listed(FORMATS)} image but {name}{instead}"
            )


def _unidentified(data: bytes) -> ImageError:
    check_format(data)
    if data.startswith(_TIFF):
        return ImageError(
            f"the image is damaged: a TIFF without its pixels, or of a rare kind{_SAVE_OTHERWISE}"
        )
    return ImageError(f"{len(data)} bytes are not a {_listed(FORMATS)} image (they start with {data[:8]!r})")


def to_pixels(image: Image.Image, spec: ImageSpec, reading: Reading = DEFAULT_READING) -> torch.Tensor:
    """An opened image's pixels, as in `decode_image`. Raises Pillow's errors for damaged files."""
    if image.mode == "LAB":
        raise UnsupportedFormatError(f"the image's colours are LAB{_SAVE_OTHERWISE}")
    mode = "L" if spec.channels == 1 else "RGB"
    image.load()
    # Of an upright image, exif_transpose makes a copy: up to 100 MB.
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = _opaque(ImageOps.exif_transpose(image) if is_turned else image, mode, reading)
    if image.mode.startswith("I;16") and _is_white_zero(image):
        # Pillow inverts only images of 8 bits.
        upright = ImageOps.invert(upright)
    return _fitted(np.asarray(upright.convert(mode)), spec, reading)


def _fitted(array: np.ndarray, spec: ImageSpec, reading: Reading) -> torch.Tensor:
    """Pixels (C, H, W) of a gray image (H, W) or an RGB image (H, W, 3), as `spec` has it."""
    if reading.preprocess == AUTO:
        if spec.channels != 1:
            raise ImageError("preprocess 'auto' is for gray drawings, but this model takes RGB; use 'exact'")
        array = as_mnist(array)
    if array.shape[:2] != (spec.height, spec.width):
        resized = Image.fromarray(array).resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        array = np.asarray(resized)
    pixels = torch.tensor(array).reshape(spec.height, spec.width, spec.channels)
    return pixels.permute(2, 0, 1).contiguous()


def _opaque(image: Image.Image, mode: str, reading: Reading) -> Image.Image:
    """The image with 8 bits per channel and without transparency; in `mode` if it was transparent."""
    if image.mode == "F":
        return Image.fromarray(_float_to_8_bits(np.asarray(image)))
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int32).clip(0, 65535)
        gray[gray == image.info.get("transparency", -1)] = 65535 if reading.background == "white" else 0
        # Images of 32-bit integers hold 8-bit or 16-bit gray levels.
        scale = 1 if image.mode == "I" and gray.max(initial=0) <= 255 else 257
        return Image.fromarray(((gray + scale // 2) // scale).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        drawn = image.convert("RGBA")
        background = reading.background or (_contrast(drawn) if reading.preprocess == AUTO else "black")
        page = Image.new(mode, drawn.size, background)
        page.paste(drawn.convert(mode), mask=drawn.getchannel("A"))
        return page
    return image


def _is_white_zero(image: Image.Image) -> bool:
    """True for a TIFF whose photometric interpretation is WhiteIsZero."""
    photometric = 262
    return isinstance(image, TiffImageFile) and image.tag_v2.get(photometric) == 0


def _contrast(drawn: Image.Image) -> str:
    """The background that contrasts with the opaque pixels of an RGBA image, often a black drawing."""
    # Of large images, a sample of the pixels.
    sample = [max(1, side // (1 + max(drawn.size) // 2048)) for side in drawn.size]
    few = drawn.resize(sample, Image.Resampling.NEAREST) if sample != [*drawn.size] else drawn
    light, opacity = (np.asarray(channel, dtype=np.float32) for channel in few.convert("LA").split())
    return "white" if (light * opacity).sum() < 127.5 * opacity.sum() else "black"


def _float_to_8_bits(gray: np.ndarray) -> np.ndarray:
    """Gray values from 0 to 1, or from 0 to 255."""
    scale = 255 if np.nanmax(gray, initial=0) <= 1 else 1
    pixels: np.ndarray = np.nan_to_num(gray * scale).round().clip(0, 255).astype(np.uint8)
    return pixels


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def encode_png(pixels: torch.Tensor) -> bytes:
    """Encode uint8 pixels (C, H, W), C 1 or 3, as a PNG file, without loss."""
    array = pixels.cpu().numpy()
    image = Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0).copy())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def normalize(pixels: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Images (B, C, H, W) -> the model's input, float32 (B, C*H*W), on the device of `pixels`.

    Takes uint8 from 0 to 255 or float32 from 0 to 1. Raises ImageError for other types and shapes.
    """
    known = pixels.dtype in (torch.uint8, torch.float32)
    if not known or pixels.shape[1:] != (spec.channels, spec.height, spec.width):
        raise ImageError(
            f"normalize takes uint8 or float32 (B, {spec.channels}, {spec.height}, {spec.width}), "
            f"not {pixels.dtype} {tuple(pixels.shape)}"
        )
    scale, mean, std = _constants(spec, pixels.device)
    scaled = pixels.to(torch.float32).div_(scale) if pixels.dtype == torch.uint8 else pixels.clone()
    return scaled.sub_(mean).div_(std).flatten(1)


@lru_cache
def _constants(spec: ImageSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ToTensor's divisor, mean and std, cached on the device to avoid a synchronizing copy for each batch.

    The divisor is a tensor because CUDA divides by a number through its reciprocal, which may be off by one
    bit.
    """
    scale = torch.full((1,), 255.0, device=device)
    mean = torch.tensor(spec.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(spec.std, device=device).view(-1, 1, 1)
    return scale, mean, std
