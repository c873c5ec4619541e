"""Image bytes -> uint8 pixels -> the model's input.

`decode_image` is what stands between a file and the pixels, in training on image folders and in serving;
`normalize` equals torchvision's Compose([ToTensor(), Normalize(mean, std), flatten]), bit for bit, on
every device.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from mlp_dist.core.digits.framing import are_framed, as_mnist
from mlp_dist.core.errors import ImageError, ImageTooLargeError, UnsupportedFormatError
from mlp_dist.core.plain_png import read_plain
from mlp_dist.core.spec import AUTO, EXACT, PREPROCESS, ImageSpec

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")

MAX_PIXELS = 25_000_000
"""Larger images are refused before they are decoded: their pixels alone would take over 75 MB."""

MAX_SIDE = 65_535
"""As JPEG has it: a strip one pixel high costs many times the memory of a page with as many pixels."""

MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
"""A progressive JPEG may name any number of scans, each of which passes over all of its pixels."""

BACKGROUNDS = ("black", "white")

_OTHERS = (
    *(("HEIC or AVIF", b"ftyp" + brand, 4) for brand in (b"he", b"mif1", b"msf1", b"avi")),
    ("a video", b"ftyp", 4),
    ("PDF", b"%PDF", 0),
    ("SVG", b"<svg", 0),
    ("XML", b"<?xml", 0),
    ("PSD", b"8BPS", 0),
    ("JPEG 2000", b"jP  ", 4),
    ("JPEG 2000", b"\xff\x4f\xff\x51", 0),
    ("JPEG XL", b"\xff\x0a", 0),
    ("JPEG XL", b"JXL ", 4),
    ("ICO", b"\0\0\1\0", 0),
    ("PNM", b"P2", 0),
    ("PNM", b"P5", 0),
    ("PNM", b"P6", 0),
    ("EPS", b"%!PS", 0),
    ("HTML", b"<!DOCTYPE html", 0),
    ("HTML", b"<html", 0),
    ("gzip", b"\x1f\x8b", 0),
    ("ZIP", b"PK\3\4", 0),
)
"""What people send besides: its name, the bytes by which it is known, and where they stand."""

_TIFF = (b"II*\0", b"MM\0*")

_SAVE_OTHERWISE = "; save it as PNG or JPEG"


@dataclass(frozen=True)
class Reading:
    """How a picture becomes pixels. `preprocess` is one of PREPROCESS.

    What is transparent is shown over `background`, one of BACKGROUNDS; None: over black, and for "auto" over
    the one that sets off what is not transparent.

    Raises ImageError for other values.
    """

    preprocess: str = EXACT
    background: str | None = None

    def __post_init__(self) -> None:
        if self.preprocess not in PREPROCESS:
            raise ImageError(f"preprocess is {self.preprocess!r}; it can be {' or '.join(PREPROCESS)}")
        if self.background not in (None, *BACKGROUNDS):
            raise ImageError(f"background is {self.background!r}; it can be {' or '.join(BACKGROUNDS)}")


AS_IT_IS = Reading()


def decode_image(data: bytes, spec: ImageSpec, reading: Reading = AS_IT_IS) -> torch.Tensor:
    """The image file's pixels, uint8 (C, H, W) as `spec` wants them.

    Turned as its EXIF orientation says; the first frame of several; transparency over a background; 16-bit
    gray scaled to 8 bits; gray or RGB as `spec` has channels; resized where the size differs (bilinear,
    with anti-aliasing), or what is drawn on it found and framed, as `reading` says.

    Raises ImageError for anything but a PNG, JPEG, GIF, BMP, WebP or TIFF of at most MAX_PIXELS: of its
    kinds, ImageTooLargeError and UnsupportedFormatError.
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
    # Pillow has limits of its own, of which the lower one is a warning.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(
            f"the image has more than {MAX_PIXELS} pixels; send a smaller one"
        ) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    # Pillow's decoders raise what they please on damaged files (OSError, SyntaxError, struct.error, ...);
    # whatever it is, the bytes are at fault.
    except Exception as error:
        or_else = f", or it is a TIFF of a rare kind{_SAVE_OTHERWISE}" if data.startswith(_TIFF) else ""
        raise ImageError(f"the image is damaged: {error}{or_else}") from error


def num_pixels(data: bytes) -> int:
    """How many an image file says that it has; 0 for what is none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    # Whatever is wrong with it, `decode_image` tells.
    except Exception:
        return 0


def decode_images(
    files: Sequence[bytes], spec: ImageSpec, reading: Reading = AS_IT_IS
) -> tuple[torch.Tensor, dict[int, ImageError]]:
    """Many files at once: their pixels, uint8 (N, C, H, W), and what `decode_image` raises for those that it
    cannot read, by their place in `files`, where the pixels are 0.
    """
    places, plain = _decode_plain(files, spec, reading)
    if len(places) == len(files):
        return torch.from_numpy(plain), {}
    pixels = np.zeros((len(files), spec.channels, spec.height, spec.width), np.uint8)
    pixels[places] = plain
    errors = {}
    for place in set(range(len(files))).difference(places):
        try:
            pixels[place] = decode_image(files[place], spec, reading).numpy()
        except ImageError as error:
            errors[place] = error
    return torch.from_numpy(pixels), errors


def _decode_plain(
    files: Sequence[bytes], spec: ImageSpec, reading: Reading
) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Where in `files` the images are that stay as they lie in their files, and their pixels."""
    images = {place: image for place, data in enumerate(files) if (image := read_plain(data, spec))}
    stored = bytearray().join(image.tobytes() for image in images.values())
    array = np.frombuffer(stored, np.uint8).reshape(-1, spec.height, spec.width, spec.channels)
    places = list(images)
    if reading.preprocess == AUTO:
        framed = are_framed(array[..., 0]) if spec.channels == 1 else [False] * len(array)
        if not all(framed):
            places, array = list(compress(places, framed)), array[framed]
    return places, array.transpose(0, 3, 1, 2)


def _check_size(image: Image.Image, data: bytes) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if max(image.size) > MAX_SIDE:
        raise ImageTooLargeError(f"the image is {max(image.size)} pixels long; send at most {MAX_SIDE}")
    if image.format in ("JPEG", "MPO"):
        # Within the pixels' own data 0xFF is followed by no such byte.
        scans = data.count(b"\xff\xda")
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ImageTooLargeError(
                f"the image passes over its {image.width * image.height} pixels {scans} times; "
                "save it as a JPEG that is not progressive"
            )


def _unidentified(data: bytes) -> ImageError:
    message = f"{len(data)} bytes are not a {_listed(FORMATS)} image"
    for name, magic, position in _OTHERS:
        if data.startswith(magic, position) or data[:64].lstrip().startswith(magic):
            return UnsupportedFormatError(f"{message} but {name}{_SAVE_OTHERWISE}")
    if data.startswith(_TIFF):
        return ImageError(
            f"the image is damaged: a TIFF without its pixels, or of a rare kind{_SAVE_OTHERWISE}"
        )
    return ImageError(f"{message} (they start with {data[:8]!r})")


def to_pixels(image: Image.Image, spec: ImageSpec, reading: Reading = AS_IT_IS) -> torch.Tensor:
    """An opened image's pixels, as `decode_image` gives them. Raises what Pillow does on damaged files."""
    if image.mode == "LAB":
        raise UnsupportedFormatError(f"the image's colours are LAB{_SAVE_OTHERWISE}")
    upright = _opaque(ImageOps.exif_transpose(image), reading)
    if image.mode.startswith("I;16") and _is_white_zero(image):
        # Pillow minds it in images of 8 bits only.
        upright = ImageOps.invert(upright)
    return _fitted(upright.convert("L" if spec.channels == 1 else "RGB"), spec, reading)


def _fitted(image: Image.Image, spec: ImageSpec, reading: Reading) -> torch.Tensor:
    """An image of the mode L or RGB, as `spec` has channels, in the spec's size."""
    if reading.preprocess == AUTO:
        if spec.channels != 1:
            raise ImageError(
                "preprocess 'auto' is for drawings in gray, and this model takes RGB: say 'exact'"
            )
        framed = as_mnist(np.asarray(image))
        if framed.shape == (spec.height, spec.width):
            return torch.from_numpy(framed.copy())[None]
        image = Image.fromarray(framed)
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    if spec.channels == 1:
        return pixels.view(1, spec.height, spec.width)
    return pixels.view(spec.height, spec.width, spec.channels).permute(2, 0, 1).contiguous()


def _opaque(image: Image.Image, reading: Reading) -> Image.Image:
    """8 bits a channel, and nothing transparent."""
    if image.mode == "F":
        return Image.fromarray(_float_to_8_bits(np.asarray(image)))
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int32).clip(0, 65535)
        gray[gray == image.info.get("transparency", -1)] = 65535 if reading.background == "white" else 0
        # Integers of 32 bits hold gray levels of 8 or of 16.
        scale = 1 if image.mode == "I" and gray.max(initial=0) <= 255 else 257
        return Image.fromarray(((gray + scale // 2) // scale).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        drawn = image.convert("RGBA")
        background = reading.background or (_contrast(drawn) if reading.preprocess == AUTO else "black")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, background), drawn).convert("RGB")
    return image


def _is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF says that its white is 0."""
    photometric = 262
    return isinstance(image, TiffImageFile) and image.tag_v2.get(photometric) == 0


def _contrast(drawn: Image.Image) -> str:
    """The background that sets off what is opaque of an RGBA image: people draw in black on nothing."""
    light, opacity = (np.asarray(channel, dtype=np.float32) for channel in drawn.convert("LA").split())
    return "white" if (light * opacity).sum() < 127.5 * opacity.sum() else "black"


def _float_to_8_bits(gray: np.ndarray) -> np.ndarray:
    """Gray values from 0 to 1, or from 0 to 255."""
    scale = 255 if np.nanmax(gray, initial=0) <= 1 else 1
    pixels: np.ndarray = np.nan_to_num(gray * scale).round().clip(0, 255).astype(np.uint8)
    return pixels


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def encode_png(pixels: torch.Tensor) -> bytes:
    """A PNG file of uint8 pixels (C, H, W), C 1 or 3; `decode_image` gives the same pixels back."""
    array = pixels.cpu().numpy()
    image = Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0).copy())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def normalize(pixels: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Images (B, C, H, W) -> the model's input, float32 (B, C*H*W), on the device of `pixels`.

    uint8 from 0 to 255, or as ToTensor gives them: float32 from 0 to 1.
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
    """ToTensor's divisor, mean and std, on the device: a copy there for each batch would wait for it.

    The divisors are tensors because by a plain number CUDA multiplies with its reciprocal, which is off by
    one bit now and then.
    """
    scale = torch.full((1,), 255.0, device=device)
    mean = torch.tensor(spec.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(spec.std, device=device).view(-1, 1, 1)
    return scale, mean, std
