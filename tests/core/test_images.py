import contextlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mlp_dist.core.errors import ImageError, ImageTooLargeError, UnsupportedFormatError
from mlp_dist.core.image import (
    FORMATS,
    MAX_PIXELS,
    MAX_SCANNED_PIXELS,
    Reading,
    decode_image,
    normalize,
)
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset

GRAY = ImageSpec(height=28, width=28, channels=1, mean=(0.1307,), std=(0.3081,))
COLOR = ImageSpec(height=28, width=28, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SPECS = {"gray": GRAY, "color": COLOR}

KINDS = [
    *(("PNG", mode) for mode in ("1", "P", "LA", "RGBA")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    ("GIF", "RGBA"),
    ("BMP", "RGB"),
    ("WEBP", "RGBA"),
    *(("TIFF", mode) for mode in ("L", "PA", "CMYK")),
]
"""Formats and Pillow modes that take different paths."""


def file_of(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **({"lossless": True} if name == "WEBP" else {}), **options)
    return file.getvalue()


def random_pixels(*shape: int, high: int = 256, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, high, shape, dtype=dtype)


def picture(mode: str, size: tuple[int, int] = (28, 28)) -> Image.Image:
    width, height = size
    image = Image.fromarray(random_pixels(height, width, 3))
    if mode not in ("LA", "PA", "RGBA"):
        return image.convert(mode)
    image = image.convert(mode) if mode == "RGBA" else image.convert(mode[0]).convert(mode)
    image.putalpha(Image.fromarray(random_pixels(height, width)))
    return image


def on_black(data: bytes) -> np.ndarray:
    """The file's pixels, uint8 (H, W, 3), multiplied by their opacity."""
    with Image.open(io.BytesIO(data)) as image:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    return np.round(rgba[..., :3] * rgba[..., 3:] / 255).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG file without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT"
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def check_image_or_error(data: bytes) -> None:
    """Decode with warnings ignored, as in a server; only ImageError may be raised."""
    with warnings.catch_warnings(), contextlib.suppress(ImageError):
        warnings.simplefilter("ignore")
        assert decode_image(data, COLOR).shape == (3, 28, 28)


# normalize


def torchvision_pipeline(spec: ImageSpec) -> transforms.Compose:
    return transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std), transforms.Lambda(torch.flatten)]
    )


def test_normalize_equals_torchvision(image_data: Dataset) -> None:
    gray, color = image_data.test.images[:100], torch.from_numpy(random_pixels(20, 3, 28, 28))
    every_value = torch.arange(784).remainder(256).to(torch.uint8).view(1, 1, 28, 28)
    for images, spec in ((gray, image_data.image), (every_value, GRAY), (color, COLOR)):
        pipeline = torchvision_pipeline(spec)
        arrays = images.permute(0, 2, 3, 1).squeeze(3).numpy()
        expected = torch.stack([pipeline(Image.fromarray(array)) for array in arrays])
        before = images.clone()
        assert torch.equal(normalize(images, spec), expected)
        assert torch.equal(normalize(images.to(torch.float32).div(255), spec), expected)
        assert torch.equal(images, before)


def test_normalize_works_for_training_after_inference() -> None:
    spec = ImageSpec(height=28, width=28, channels=1, mean=(0.123,), std=(0.456,))
    pixels = torch.from_numpy(random_pixels(2, 1, 28, 28))
    with torch.inference_mode():
        normalize(pixels, spec)
    model = torch.nn.Linear(784, 2)
    model(normalize(pixels, spec)).sum().backward()
    assert model.weight.grad is not None


def test_normalize_rejects_other_types_and_shapes() -> None:
    for pixels in (torch.zeros(2, 1, 28, 28, dtype=torch.float64), torch.zeros(2, 784, dtype=torch.uint8)):
        with pytest.raises(ImageError, match=r"takes uint8 or float32 \(B, 1, 28, 28\), not "):
            normalize(pixels, GRAY)


# Formats, modes and sizes


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_every_format_and_mode(name: str, mode: str, spec: ImageSpec) -> None:
    for size, tolerance in (((28, 28), 1), ((300, 200), 2)):
        data = file_of(picture(mode, size), name)
        image = Image.fromarray(on_black(data)).convert("L" if spec.channels == 1 else "RGB")
        expected = transforms.PILToTensor()(transforms.Resize((28, 28), antialias=True)(image))
        pixels = decode_image(data, spec)
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (spec.channels, 28, 28))
        assert pixels.is_contiguous()
        assert (pixels.int() - expected.int()).abs().max() <= tolerance


@pytest.mark.parametrize(("mode", "spec"), [("L", GRAY), ("RGB", COLOR)])
def test_resizing_equals_torchvision(mode: str, spec: ImageSpec) -> None:
    image = picture(mode, (7, 900))
    expected = transforms.PILToTensor()(transforms.Resize((28, 28), antialias=True)(image))
    assert torch.equal(decode_image(file_of(image, "PNG"), spec), expected)


# 16 and 32 bits


@pytest.mark.parametrize(("name", "dtype"), [("PNG", np.uint16), ("TIFF", ">u2")])
def test_16_bit_gray_is_scaled(name: str, dtype: Any) -> None:
    array = np.full((28, 28), 65535, dtype=np.int64)
    array.flat[:256] = np.arange(256) * 257
    array.flat[256:260] = (128, 129, 65535 - 129, 65535 - 128)
    data = file_of(Image.fromarray(array.astype(np.dtype(dtype))), name)
    for channel in decode_image(data, COLOR).flatten(1).tolist():
        assert channel[:256] == list(range(256))
        assert channel[256:260] == [0, 1, 254, 255]
        assert set(channel[260:]) == {255}


def test_tiff_with_inverted_gray_levels() -> None:
    levels = (np.arange(784).reshape(28, 28) % 256).astype(np.uint8)
    tiff, tag = file_of(Image.fromarray(levels), "TIFF"), struct.pack("<HHI", 262, 3, 1)
    place = tiff.index(tag) + len(tag)
    data = tiff[:place] + bytes(2) + tiff[place + 2 :]
    assert np.array_equal(decode_image(data, GRAY)[0].numpy(), 255 - levels)


# Orientation, frames, transparency


def test_exif_orientation_is_applied() -> None:
    quarters = np.kron(np.array([[10, 80], [160, 240]], dtype=np.uint8), np.ones((14, 14), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode_image(file_of(Image.fromarray(quarters), "JPEG", exif=exif), GRAY)
    assert np.abs(pixels[0].numpy().astype(int) - np.rot90(quarters, -1)).max() <= 10


@pytest.mark.parametrize("name", ["GIF", "TIFF"])
def test_first_of_several_frames(name: str) -> None:
    frames = [random_pixels(28, 28) // scale for scale in (1, 3)]
    first, *others = map(Image.fromarray, frames)
    data = file_of(first, name, save_all=True, append_images=others)
    assert np.array_equal(decode_image(data, GRAY)[0].numpy(), frames[0])


@pytest.mark.parametrize(("mode", "white"), [("RGB", (255, 255, 255)), ("I;16", 65535)])
def test_transparent_color_is_black(mode: str, white: Any) -> None:
    image = Image.new(mode, (28, 28), white)
    assert decode_image(file_of(image, "PNG"), GRAY).unique().tolist() == [255]
    assert decode_image(file_of(image, "PNG", transparency=white), GRAY).unique().tolist() == [0]


def test_background_shows_through_transparent_pixels() -> None:
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (10, 10, 18, 18))
    data = file_of(image, "PNG")
    assert decode_image(data, GRAY).unique().tolist() == [0]
    assert decode_image(data, GRAY, Reading(background="white")).unique().tolist() == [0, 255]


# Errors

DAMAGED = "the image is damaged: .|bytes are not a PNG, JPEG, GIF, BMP, WEBP, TIFF or PPM image"


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(name: str) -> None:
    data = file_of(picture("RGB", (40, 30)), name)
    for length in {*range(1, 60), *range(60, len(data), 100), *range(len(data) - 20, len(data))}:
        check_image_or_error(data[:length])
    with pytest.raises(ImageError, match=DAMAGED):
        decode_image(data[: len(data) // 2], COLOR)


def test_other_bytes() -> None:
    for data in (b"a", np.random.default_rng(0).bytes(100_000)):
        with pytest.raises(ImageError, match=f"{len(data)} bytes are not a PNG, JPEG, .*they start with b"):
            decode_image(data, GRAY)
    with pytest.raises(ImageError, match=r"the image is empty; send the bytes of a PNG, .* or PPM file"):
        decode_image(b"", GRAY)


def test_other_formats_are_named() -> None:
    for data, name in ((b"\0\0\0\x18ftypheic", "HEIC or AVIF"), (b"  \n<svg/>", "SVG"), (b"%PDF-1.7", "PDF")):
        with pytest.raises(UnsupportedFormatError, match=f"bytes are not .* but {name}; save it as PNG"):
            decode_image(data, GRAY)


def test_jpeg_with_too_many_scans_is_rejected() -> None:
    data = file_of(picture("L", (100, 100)), "JPEG", progressive=True)
    assert decode_image(data, GRAY).shape == (1, 28, 28)
    with pytest.raises(ImageTooLargeError, match=r"the JPEG has \d+ scans of 10000 pixels"):
        decode_image(data + b"\xff\xda" * (MAX_SCANNED_PIXELS // 10_000), GRAY)


@pytest.mark.parametrize(("width", "height"), [(MAX_PIXELS + 1, 1), (20_000, 20_000)])
def test_too_many_pixels_are_rejected_before_decoding(width: int, height: int) -> None:
    with pytest.raises(ImageTooLargeError, match=f"the image has more than {MAX_PIXELS} pixels"):
        decode_image(png_header(width, height), GRAY)


# encode_png
