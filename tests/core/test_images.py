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
    encode_png,
    normalize,
)
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.image_set import Dataset

GRAY = ImageSpec(height=28, width=28, channels=1, mean=(0.1307,), std=(0.3081,))
COLOR = ImageSpec(height=28, width=28, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SPECS = {"gray": GRAY, "color": COLOR}

KINDS = [
    *(("PNG", mode) for mode in ("1", "L", "P", "LA", "RGB", "RGBA")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("GIF", mode) for mode in ("P", "RGBA")),
    *(("BMP", mode) for mode in ("1", "RGB")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("TIFF", mode) for mode in ("1", "L", "PA", "RGBA", "CMYK")),
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
    gray, color = image_data.test.images[:500], torch.from_numpy(random_pixels(50, 3, 28, 28))
    for images, spec in ((gray, image_data.image), (color, COLOR)):
        pipeline = torchvision_pipeline(spec)
        arrays = images.permute(0, 2, 3, 1).squeeze(3).numpy()
        expected = torch.stack([pipeline(Image.fromarray(array)) for array in arrays])
        assert torch.equal(normalize(images, spec), expected)
        assert torch.equal(normalize(images[:1], spec), expected[:1])
        assert torch.equal(normalize(images.to(torch.float32).div(255), spec), expected)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.1307, 0.3081), (0.3333, 0.0007), (1.0, 3.0)])
def test_normalize_equals_torchvision_for_every_value(mean: float, std: float) -> None:
    spec = ImageSpec(height=16, width=16, channels=1, mean=(mean,), std=(std,))
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = torchvision_pipeline(spec)(Image.fromarray(values[0, 0].numpy()))
    assert torch.equal(normalize(values, spec)[0], expected)


def test_normalize_does_not_change_its_input() -> None:
    pixels = torch.from_numpy(random_pixels(2, 1, 28, 28))
    for images in (pixels, pixels.float().div(255)):
        before = images.clone()
        normalize(images, GRAY)
        assert torch.equal(images, before)
    assert normalize(pixels[:0], GRAY).shape == (0, 784)


def test_normalize_works_for_training_after_inference() -> None:
    spec = ImageSpec(height=28, width=28, channels=1, mean=(0.123,), std=(0.456,))
    pixels = torch.from_numpy(random_pixels(2, 1, 28, 28))
    with torch.inference_mode():
        normalize(pixels, spec)
    model = torch.nn.Linear(784, 2)
    model(normalize(pixels, spec)).sum().backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(2, 1, 28, 28, dtype=torch.float64), torch.zeros(2, 784, dtype=torch.uint8)],
    ids=lambda pixels: f"{pixels.dtype}",
)
def test_normalize_rejects_other_types_and_shapes(pixels: torch.Tensor) -> None:
    shape = ", ".join(map(str, pixels.shape))
    message = rf"takes uint8 or float32 \(B, 1, 28, 28\), not {pixels.dtype} \({shape}\)"
    with pytest.raises(ImageError, match=message):
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


@pytest.mark.parametrize("size", [(1, 1), (28, 29), (7, 900)], ids=str)
def test_resizing_equals_torchvision(size: tuple[int, int]) -> None:
    resize = transforms.Resize((28, 28), interpolation=transforms.InterpolationMode.BILINEAR, antialias=True)
    for mode, spec in (("L", GRAY), ("RGB", COLOR)):
        image = picture(mode, size)
        pixels = decode_image(file_of(image, "PNG"), spec)
        assert torch.equal(pixels, transforms.PILToTensor()(resize(image)))


# 16 and 32 bits


@pytest.mark.parametrize(("name", "dtype"), [("PNG", np.uint16), ("TIFF", np.int32), ("TIFF", ">u2")])
def test_16_bit_gray_is_scaled(name: str, dtype: Any) -> None:
    array = np.full((28, 28), 65535, dtype=np.int64)
    array.flat[:256] = np.arange(256) * 257
    array.flat[256:260] = (128, 129, 65535 - 129, 65535 - 128)
    data = file_of(Image.fromarray(array.astype(np.dtype(dtype))), name)
    for channel in decode_image(data, COLOR).flatten(1).tolist():
        assert channel[:256] == list(range(256))
        assert channel[256:260] == [0, 1, 254, 255]
        assert set(channel[260:]) == {255}


def with_photometric(tiff: bytes, value: int) -> bytes:
    """A little-endian TIFF with another photometric interpretation."""
    tag = struct.pack("<HHI", 262, 3, 1)
    place = tiff.index(tag) + len(tag)
    return tiff[:place] + struct.pack("<H", value) + tiff[place + 2 :]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_with_inverted_gray_levels(dtype: type[np.integer[Any]]) -> None:
    levels = np.arange(784).reshape(28, 28) % 256
    array = (levels * (257 if dtype is np.uint16 else 1)).astype(dtype)
    data = with_photometric(file_of(Image.fromarray(array), "TIFF"), 0)
    assert np.array_equal(decode_image(data, GRAY)[0].numpy(), 255 - levels)


def test_floats_are_values_from_0_to_255() -> None:
    array = random_pixels(28, 28)
    pixels = decode_image(file_of(Image.fromarray(array.astype(np.float32)), "TIFF"), COLOR)
    assert all(np.array_equal(channel.numpy(), array) for channel in pixels)
    for value in (float("nan"), float("inf"), -1e30):
        check_image_or_error(file_of(Image.fromarray(np.full((28, 28), value, dtype=np.float32)), "TIFF"))


# Orientation, frames, transparency

UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int) -> None:
    quarters = np.kron(np.array([[10, 80], [160, 240]], dtype=np.uint8), np.ones((8, 16), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = UPRIGHT[orientation](quarters)
    height, width = expected.shape
    spec = ImageSpec(height=height, width=width, channels=1, mean=(0.0,), std=(1.0,))
    pixels = decode_image(file_of(Image.fromarray(quarters), "JPEG", exif=exif), spec)
    assert np.abs(pixels[0].numpy().astype(int) - expected).max() <= 2


@pytest.mark.parametrize("name", ["GIF", "TIFF"])
def test_first_of_several_frames(name: str) -> None:
    frames = [random_pixels(28, 28) // scale for scale in (1, 3, 9)]
    first, *others = map(Image.fromarray, frames)
    data = file_of(first, name, save_all=True, append_images=others)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.array_equal(decode_image(data, GRAY)[0].numpy(), frames[0])


def test_opacity_scales_white() -> None:
    data = file_of(Image.new("RGBA", (28, 28), (255, 255, 255, 128)), "PNG")
    assert decode_image(data, GRAY).unique().tolist() == decode_image(data, COLOR).unique().tolist() == [128]


@pytest.mark.parametrize(
    ("mode", "white", "transparent"),
    [
        ("P", 255, bytes(255) + b"\0"),
        ("RGB", (255, 255, 255), (255, 255, 255)),
        ("I;16", 65535, 65535),
    ],
)
def test_transparent_color_is_black(mode: str, white: Any, transparent: Any) -> None:
    image = Image.new(mode, (28, 28), white)
    if mode == "P":
        image.putpalette(bytes([200] * 765 + [255] * 3))
    assert decode_image(file_of(image, "PNG"), GRAY).unique().tolist() == [255]
    assert decode_image(file_of(image, "PNG", transparency=transparent), GRAY).unique().tolist() == [0]


def test_background_shows_through_transparent_pixels() -> None:
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (10, 10, 18, 18))
    data = file_of(image, "PNG")
    assert decode_image(data, GRAY).unique().tolist() == [0]
    assert decode_image(data, GRAY, Reading(background="black")).unique().tolist() == [0]
    assert decode_image(data, GRAY, Reading(background="white")).unique().tolist() == [0, 255]
    gray16 = Image.new("I;16", (28, 28), 1000)
    data = file_of(gray16, "PNG", transparency=1000)
    assert decode_image(data, GRAY, Reading(background="white")).unique().tolist() == [255]


def test_unknown_reading_is_rejected() -> None:
    with pytest.raises(ImageError, match="preprocess is 'fast'; it can be exact or auto"):
        Reading(preprocess="fast")
    with pytest.raises(ImageError, match="background is 'red'; it can be black or white"):
        Reading(background="red")


# Errors

DAMAGED = "the image is damaged: .|bytes are not a PNG, JPEG, GIF, BMP, WEBP or TIFF image"


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(name: str) -> None:
    data = file_of(picture("RGB", (40, 30)), name)
    for length in {*range(1, 60), *range(60, len(data), 100), *range(len(data) - 20, len(data))}:
        check_image_or_error(data[:length])
    with pytest.raises(ImageError, match=DAMAGED):
        decode_image(data[: len(data) // 2], COLOR)


def test_other_bytes() -> None:
    random = np.random.default_rng(0)
    for length in (1, 5, 100, 100_000):
        message = rf"{length} bytes are not a PNG, JPEG, GIF, BMP, WEBP or TIFF image \(they start with b"
        with pytest.raises(ImageError, match=message):
            decode_image(random.bytes(length), GRAY)
    with pytest.raises(ImageError, match=r"the image is empty; send the bytes of a PNG, .* or TIFF file"):
        decode_image(b"", GRAY)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC or AVIF"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"  \n<svg/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_other_formats_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=f"bytes are not .* but {name}; save it as PNG"):
        decode_image(data, GRAY)


def test_jpeg_with_too_many_scans_is_rejected() -> None:
    data = file_of(picture("L", (100, 100)), "JPEG", progressive=True)
    assert decode_image(data, GRAY).shape == (1, 28, 28)
    with pytest.raises(ImageTooLargeError, match=r"the JPEG has \d+ scans of 10000 pixels"):
        decode_image(data + b"\xff\xda" * (MAX_SCANNED_PIXELS // 10_000), GRAY)


@pytest.mark.parametrize("size", [(MAX_PIXELS + 1, 1), (5001, 5000), (20_000, 20_000)], ids=str)
def test_too_many_pixels_are_rejected_before_decoding(size: tuple[int, int]) -> None:
    width, height = size
    with pytest.raises(
        ImageTooLargeError, match=f"the image has more than {MAX_PIXELS} pixels; send a smaller one"
    ):
        decode_image(png_header(width, height), GRAY)
    with pytest.raises(ImageError, match=r"the image is damaged: ."):
        decode_image(png_header(5000, 5000), GRAY)


# encode_png


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 9)], ids=str)
def test_encode_png_round_trip(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    spec = ImageSpec(height, width, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    pixels = torch.from_numpy(random_pixels(*shape))
    data = encode_png(pixels)
    assert data.startswith(b"\x89PNG")
    assert torch.equal(decode_image(data, spec), pixels)
    transposed = pixels.transpose(1, 2).contiguous().transpose(1, 2)
    assert encode_png(transposed) == data
