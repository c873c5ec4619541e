"""Image bytes -> uint8 pixels -> the model's input.

`decode_image` is what stands between a file and the pixels, in training on image folders and in serving;
`normalize` equals torchvision's Compose([ToTensor(), Normalize(mean, std), flatten]), bit for bit, on
every device.
"""

import io
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from mlp_dist.core.errors import ImageError
from mlp_dist.core.spec import ImageSpec

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded: their pixels alone would take over 150 MB."""


def decode_image(data: bytes, spec: ImageSpec) -> torch.Tensor:
    """The image file's pixels, uint8 (C, H, W) as `spec` wants them.

    Turned as its EXIF orientation says; the first frame of several; transparency over black; 16-bit
    gray scaled to 8 bits; gray or RGB as `spec` has channels; resized where the size differs (bilinear,
    with anti-aliasing).

    Raises ImageError for anything but a PNG, JPEG, GIF, BMP, WebP or TIFF of at most MAX_PIXELS.
    """
    if not data:
        raise ImageError(f"the image is empty; send the bytes of a {_listed(FORMATS)} file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return to_pixels(image, spec)
    # Pillow has limits of its own, of which the lower one is a warning.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image has more than {MAX_PIXELS} pixels; send a smaller one") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{len(data)} bytes are not a {_listed(FORMATS)} image (they start with {data[:8]!r})"
        ) from error
    # Pillow's decoders raise what they please on damaged files (OSError, SyntaxError, struct.error, ...);
    # whatever it is, the bytes are at fault.
    except Exception as error:
        raise ImageError(f"the image is damaged: {error}") from error


def to_pixels(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    """An opened image's pixels, as `decode_image` gives them. Raises what Pillow does on damaged files."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        upright = Image.fromarray(_float_to_8_bits(np.asarray(upright)))
    elif upright.mode.startswith("I"):
        gray = np.asarray(upright, dtype=np.int64).clip(0, 65535)
        gray[gray == upright.info.get("transparency", -1)] = 0
        upright = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    elif "transparency" in upright.info or upright.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        opaque = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", opaque.size, "black"), opaque).convert("RGB")
    upright = upright.convert("L" if spec.channels == 1 else "RGB")
    if upright.size != (spec.width, spec.height):
        upright = upright.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(upright, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


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
