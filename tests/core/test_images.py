import contextlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import PIL
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
COLOUR = ImageSpec(height=28, width=28, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SPECS = {"gray": GRAY, "colour": COLOUR}

MODES = {
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA"),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "GIF": ("1", "L", "P", "LA", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "CMYK", "YCbCr"),
    "TIFF": ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "CMYK"),
}
if int(PIL.__version__.split(".")[0]) >= 13:
    # Those before cannot read the files that they write.
    MODES["TIFF"] += ("YCbCr",)
KINDS = [(name, mode) for name, modes in MODES.items() for mode in modes]


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


def over_black(data: bytes) -> np.ndarray:
    """The file's pixels, uint8 (H, W, 3), each times its opacity."""
    with Image.open(io.BytesIO(data)) as image:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    return np.round(rgba[..., :3] * rgba[..., 3:] / 255).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that has no pixels, only their number."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT"
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def check_image_or_error(data: bytes) -> None:
    """Decode as a server would, where warnings do not stop it; nothing but ImageError may come out."""
    with warnings.catch_warnings(), contextlib.suppress(ImageError):
        warnings.simplefilter("ignore")
        assert decode_image(data, COLOUR).shape == (3, 28, 28)


# normalize


def torchvision_pipeline(spec: ImageSpec) -> transforms.Compose:
    return transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std), transforms.Lambda(torch.flatten)]
    )


def test_normalize_equals_torchvision_s_on_every_test_image(image_data: Dataset) -> None:
    images, spec = image_data.test.images, image_data.image
    pipeline = torchvision_pipeline(spec)
    expected = torch.stack([pipeline(Image.fromarray(image[0].numpy())) for image in images])
    assert expected.shape == (len(images), spec.num_features)
    assert torch.equal(normalize(images, spec), expected)
    assert torch.equal(torch.cat([normalize(image[None], spec) for image in images]), expected)


def test_normalize_equals_torchvision_s_in_colour() -> None:
    images = torch.from_numpy(random_pixels(50, 3, 28, 28))
    pipeline = torchvision_pipeline(COLOUR)
    expected = [pipeline(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
    assert torch.equal(normalize(images, COLOUR), torch.stack(expected))


@pytest.mark.parametrize("mean", [0.0, 0.1307, 0.2860, 0.3333, 1.0])
@pytest.mark.parametrize("std", [0.3081, 0.3530, 0.0007, 1.0, 3.0])
def test_normalize_equals_torchvision_s_for_every_pixel_value(mean: float, std: float) -> None:
    spec = ImageSpec(height=16, width=16, channels=1, mean=(mean,), std=(std,))
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = torchvision_pipeline(spec)(Image.fromarray(values[0, 0].numpy()))
    assert torch.equal(normalize(values, spec)[0], expected)


def test_normalize_leaves_its_input_alone_and_takes_no_images_at_all() -> None:
    pixels = torch.from_numpy(random_pixels(2, 1, 28, 28))
    before = pixels.clone()
    normalize(pixels, GRAY)
    assert torch.equal(pixels, before)
    assert normalize(pixels[:0], GRAY).shape == (0, 784)


def test_normalize_serves_training_after_inference() -> None:
    spec = ImageSpec(height=28, width=28, channels=1, mean=(0.123,), std=(0.456,))
    pixels = torch.from_numpy(random_pixels(2, 1, 28, 28))
    with torch.inference_mode():
        expected = normalize(pixels, spec)
    model = torch.nn.Linear(784, 2)
    model(normalize(pixels, spec)).sum().backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad[0], expected.sum(dim=0))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_normalize_takes_what_to_tensor_gives(spec: ImageSpec) -> None:
    draw = torch.Generator().manual_seed(3)
    size = (50, spec.channels, spec.height, spec.width)
    pixels = torch.randint(0, 256, size, generator=draw).to(torch.uint8)
    scaled = pixels.to(torch.float32).div(255)
    before = scaled.clone()
    assert torch.equal(normalize(scaled, spec), normalize(pixels, spec))
    assert torch.equal(scaled, before)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 1, 28, 28, dtype=torch.float64),
        torch.zeros(1, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 1, 28, 27, dtype=torch.uint8),
        torch.zeros(2, 784, dtype=torch.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}-{tuple(pixels.shape)}",
)
def test_normalize_names_what_it_takes_and_what_it_got(pixels: torch.Tensor) -> None:
    shape = ", ".join(map(str, pixels.shape))
    message = rf"takes uint8 or float32 \(B, 1, 28, 28\), not {pixels.dtype} \({shape}\)"
    with pytest.raises(ImageError, match=message):
        normalize(pixels, GRAY)


# Formats, modes and sizes


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (300, 200)], ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_every_format_mode_and_size(name: str, mode: str, size: tuple[int, int], spec: ImageSpec) -> None:
    data = file_of(picture(mode, size), name)
    shown = Image.fromarray(over_black(data)).convert("L" if spec.channels == 1 else "RGB")
    expected = transforms.PILToTensor()(transforms.Resize((28, 28), antialias=True)(shown))
    pixels = decode_image(data, spec)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (spec.channels, 28, 28))
    assert pixels.is_contiguous()
    assert (pixels.int() - expected.int()).abs().max() <= (1 if size == (28, 28) else 2)


def test_all_formats_are_covered() -> None:
    assert set(MODES) == set(FORMATS)


@pytest.mark.parametrize(
    ("name", "spec"),
    [(name, spec) for name in ("PNG", "BMP", "WEBP", "TIFF") for spec in (GRAY, COLOUR)] + [("GIF", GRAY)],
)
def test_lossless_files_are_read_exactly(name: str, spec: ImageSpec) -> None:
    array = random_pixels(28, 28, spec.channels)
    pixels = decode_image(file_of(Image.fromarray(array.squeeze()), name), spec)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (14, 14), (28, 29), (300, 200), (7, 900)], ids=str)
def test_resizing_equals_torchvision_s(mode: str, size: tuple[int, int]) -> None:
    image = picture(mode, size)
    resize = transforms.Resize((28, 28), interpolation=transforms.InterpolationMode.BILINEAR, antialias=True)
    pixels = decode_image(file_of(image, "PNG"), GRAY if mode == "L" else COLOUR)
    assert torch.equal(pixels, transforms.PILToTensor()(resize(image)))


# 16 and 32 bits


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(
    ("name", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32), ("TIFF", ">u2")]
)
def test_16_bit_gray_is_scaled(name: str, dtype: Any, spec: ImageSpec) -> None:
    array = np.full((28, 28), 65535, dtype=np.int64)
    array.flat[:256] = np.arange(256) * 257
    array.flat[256:260] = (128, 129, 65535 - 129, 65535 - 128)
    data = file_of(Image.fromarray(array.astype(np.dtype(dtype))), name)
    pixels = decode_image(data, spec)
    for channel in pixels.flatten(1).tolist():
        assert channel[:256] == list(range(256))
        assert channel[256:260] == [0, 1, 254, 255]
        assert set(channel[260:]) == {255}


def test_32_bit_integers_are_cut_to_16() -> None:
    array = np.zeros((28, 28), dtype=np.int32)
    array.flat[:3] = (-5, 70_000, 65_535)
    pixels = decode_image(file_of(Image.fromarray(array), "TIFF"), GRAY).flatten().tolist()
    assert pixels[:4] == [0, 255, 255, 0]


@pytest.mark.parametrize("largest", [1, 255])
def test_32_bit_integers_up_to_255_are_gray_levels(largest: int) -> None:
    array = (np.arange(784).reshape(28, 28) % (largest + 1)).astype(np.int32)
    pixels = decode_image(file_of(Image.fromarray(array), "TIFF"), GRAY)[0]
    assert np.array_equal(pixels.numpy(), array)


def with_photometric(tiff: bytes, value: int) -> bytes:
    """A little-endian TIFF that says another meaning of its values."""
    tag = struct.pack("<HHI", 262, 3, 1)
    place = tiff.index(tag) + len(tag)
    return tiff[:place] + struct.pack("<H", value) + tiff[place + 2 :]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_may_say_that_its_white_is_0(dtype: type[np.integer[Any]]) -> None:
    levels = np.arange(784).reshape(28, 28) % 256
    array = (levels * (257 if dtype is np.uint16 else 1)).astype(dtype)
    data = with_photometric(file_of(Image.fromarray(array), "TIFF"), 0)
    assert np.array_equal(decode_image(data, GRAY)[0].numpy(), 255 - levels)


def test_tiffs_of_kinds_that_are_not_read_are_told_what_to_do() -> None:
    with pytest.raises(UnsupportedFormatError, match="the image's colours are LAB; save it as PNG or JPEG"):
        decode_image(file_of(Image.new("LAB", (28, 28)), "TIFF"), GRAY)
    gray = file_of(Image.fromarray(random_pixels(28, 28)), "TIFF")
    for data in (with_photometric(gray, 999), gray[:100]):
        with pytest.raises(
            ImageError, match=r"the image is damaged: .* of a rare kind; save it as PNG or JPEG"
        ):
            decode_image(data, GRAY)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_floats_are_the_values_from_0_to_255(spec: ImageSpec) -> None:
    array = random_pixels(28, 28)
    pixels = decode_image(file_of(Image.fromarray(array.astype(np.float32)), "TIFF"), spec)
    assert all(np.array_equal(channel.numpy(), array) for channel in pixels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 1e30])
def test_strange_floats_give_an_image_or_an_image_error(value: float) -> None:
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
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(name: str, orientation: int) -> None:
    quarters = np.kron(np.array([[10, 80], [160, 240]], dtype=np.uint8), np.ones((8, 16), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = UPRIGHT[orientation](quarters)
    height, width = expected.shape
    spec = ImageSpec(height=height, width=width, channels=1, mean=(0.0,), std=(1.0,))
    pixels = decode_image(file_of(Image.fromarray(quarters), name, exif=exif), spec)
    assert np.abs(pixels[0].numpy().astype(int) - expected).max() <= 2


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_of_several_frames(name: str) -> None:
    frames = [random_pixels(28, 28) // scale for scale in (1, 3, 9)]
    first, *others = map(Image.fromarray, frames)
    data = file_of(first, name, save_all=True, append_images=others)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.array_equal(decode_image(data, GRAY)[0].numpy(), frames[0])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("alpha", "shown"), [(0, 0), (128, 128), (255, 255)])
def test_white_shines_as_far_as_it_is_opaque(alpha: int, shown: int, spec: ImageSpec) -> None:
    data = file_of(Image.new("RGBA", (28, 28), (255, 255, 255, alpha)), "PNG")
    assert decode_image(data, spec).unique().tolist() == [shown]


@pytest.mark.parametrize(
    ("mode", "white", "transparent"),
    [
        ("1", 1, 1),
        ("L", 255, 255),
        ("P", 255, 255),
        ("P", 255, bytes(255) + b"\0"),
        ("RGB", (255, 255, 255), (255, 255, 255)),
        ("I;16", 65535, 65535),
    ],
)
def test_a_colour_named_transparent_is_black(mode: str, white: Any, transparent: Any) -> None:
    image = Image.new(mode, (28, 28), white)
    if mode == "P":
        image.putpalette(bytes([200] * 765 + [255] * 3))
    assert decode_image(file_of(image, "PNG"), GRAY).unique().tolist() == [255]
    assert decode_image(file_of(image, "PNG", transparency=transparent), GRAY).unique().tolist() == [0]


def test_what_is_transparent_is_shown_over_the_background_that_is_asked_for() -> None:
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (10, 10, 18, 18))
    data = file_of(image, "PNG")
    assert decode_image(data, GRAY).unique().tolist() == [0]
    assert decode_image(data, GRAY, Reading(background="black")).unique().tolist() == [0]
    assert decode_image(data, GRAY, Reading(background="white")).unique().tolist() == [0, 255]
    gray16 = Image.new("I;16", (28, 28), 1000)
    data = file_of(gray16, "PNG", transparency=1000)
    assert decode_image(data, GRAY, Reading(background="white")).unique().tolist() == [255]


def test_a_reading_that_is_none() -> None:
    with pytest.raises(ImageError, match="preprocess is 'fast'; it can be exact or auto"):
        Reading(preprocess="fast")
    with pytest.raises(ImageError, match="background is 'red'; it can be black or white"):
        Reading(background="red")


# What is refused

DAMAGED = "the image is damaged: .|bytes are not a PNG, JPEG, GIF, BMP, WEBP or TIFF image"


@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_truncated_files(name: str, mode: str) -> None:
    data = file_of(picture(mode, (40, 30)), name)
    for cut in {
        *range(1, 60),
        *range(60, len(data), max(1, len(data) // 40)),
        *range(len(data) - 20, len(data)),
    }:
        check_image_or_error(data[:cut])
    with pytest.raises(ImageError, match=DAMAGED):
        decode_image(data[: len(data) // 2], COLOUR)


@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_files_with_wrong_bytes(name: str, mode: str) -> None:
    data = file_of(picture(mode), name)
    random = np.random.default_rng(0)
    for _ in range(60):
        wrong = bytearray(data)
        for position in random.integers(0, min(len(data), 400), 4):
            wrong[position] = random.integers(256)
        check_image_or_error(bytes(wrong))
    for _ in range(20):
        check_image_or_error(data[:24] + random.bytes(300))


def test_random_bytes() -> None:
    random = np.random.default_rng(0)
    for length in [*range(1, 100), 1000, 100_000]:
        data = random.bytes(length)
        with pytest.raises(
            ImageError, match=rf"{length} bytes are not a PNG, .* or TIFF image \(they start with b"
        ):
            decode_image(data, GRAY)


@pytest.mark.parametrize("data", [b"<svg/>", b"%PDF-1.7", b"P5 1 1 255 \0", b"\0\0\1\0\1\0\1\1", b"hello"])
def test_other_files(data: bytes) -> None:
    with pytest.raises(
        ImageError, match=f"{len(data)} bytes are not a PNG, JPEG, GIF, BMP, WEBP or TIFF image"
    ):
        decode_image(data, GRAY)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC or AVIF"),
        (b"\0\0\0\x18ftypavif", "HEIC or AVIF"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"  \n<svg/>", "SVG"),
        (b"\0\0\1\0\1\0\1\1", "ICO"),
        (b"P5 1 1 255 \0", "PNM"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=f"bytes are not .* but {name}; save it as PNG"):
        decode_image(data, GRAY)


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = file_of(picture("L", (100, 100)), "JPEG", progressive=True)
    assert decode_image(data, GRAY).shape == (1, 28, 28)
    with pytest.raises(ImageTooLargeError, match=r"passes over its 10000 pixels \d+ times"):
        decode_image(data + b"\xff\xda" * (MAX_SCANNED_PIXELS // 10_000), GRAY)


def test_no_bytes() -> None:
    with pytest.raises(ImageError, match=r"the image is empty; send the bytes of a PNG, .* or TIFF file"):
        decode_image(b"", GRAY)


@pytest.mark.parametrize(
    "size", [(MAX_PIXELS + 1, 1), (5001, 5000), (10_000, 10_000), (20_000, 20_000)], ids=str
)
def test_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    width, height = size
    with pytest.raises(
        ImageTooLargeError, match=f"the image has more than {MAX_PIXELS} pixels; send a smaller one"
    ):
        decode_image(png_header(width, height), GRAY)


def test_a_small_image_without_its_pixels_is_damaged() -> None:
    with pytest.raises(ImageError, match=r"the image is damaged: ."):
        decode_image(png_header(5000, 5000), GRAY)


# encode_png


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 1, 1), (3, 5, 9), (1, 300, 200)], ids=str)
def test_encode_png_round_trip(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    spec = ImageSpec(height, width, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    pixels = torch.from_numpy(random_pixels(*shape))
    data = encode_png(pixels)
    assert data.startswith(b"\x89PNG")
    assert torch.equal(decode_image(data, spec), pixels)
    turned = pixels.transpose(1, 2).contiguous().transpose(1, 2)
    assert encode_png(turned) == data
