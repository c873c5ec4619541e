"""Arrays, tensors, PIL images and paths give the same input as image files."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.errors import ImageError
from mlp_dist.core.image import decode_image, encode_png, normalize
from mlp_dist.core.inputs import model_input
from mlp_dist.core.spec import ImageSpec

GRAY = ImageSpec(height=28, width=28, channels=1, mean=(0.1307,), std=(0.3081,))
COLOR = ImageSpec(height=32, width=30, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
SPECS = pytest.mark.parametrize("spec", [GRAY, COLOR], ids=["gray", "color"])


def pixels_of(spec: ImageSpec, number: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(spec.channels)
    return torch.randint(0, 256, (number, spec.channels, spec.height, spec.width), generator=generator).to(
        torch.uint8
    )


def opened(pixels: torch.Tensor) -> Image.Image:
    return Image.open(io.BytesIO(encode_png(pixels)))


def last(pixels: torch.Tensor) -> np.ndarray:
    return pixels.movedim(-3, -1).numpy()


BATCHES: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda pixels: pixels,
    "float tensor": lambda pixels: pixels.float().div(255).requires_grad_(),
    "float64 tensor": lambda pixels: pixels.double().div(255) * (1 + 1e-9),
    "int64 tensor": lambda pixels: pixels.long(),
    "tuple of flat tensors": lambda pixels: tuple(pixels.flatten(1)),
    "float array, channels last": lambda pixels: last(pixels.float().div(255)),
    "16-bit array": lambda pixels: pixels.numpy().astype(np.uint16) * 257,
    "big-endian array": lambda pixels: pixels.numpy().astype(">i2"),
    "array with negative strides": lambda pixels: pixels.flip(0).numpy()[::-1],
    "files' bytes": lambda pixels: [encode_png(each) for each in pixels],
    "mixed list": lambda pixels: [pixels[0], last(pixels[1]), opened(pixels[2]), pixels[3:].float() / 255],
}


@SPECS
@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_batches(make: Callable[[torch.Tensor], Any], spec: ImageSpec) -> None:
    pixels = pixels_of(spec)
    assert torch.equal(model_input(make(pixels), spec), normalize(pixels, spec))


@SPECS
def test_single_images(spec: ImageSpec, tmp_path: Path) -> None:
    pixels, path = pixels_of(spec)[0], tmp_path / "0.png"
    path.write_bytes(encode_png(pixels))
    expected = normalize(pixels[None], spec)
    for one in (pixels, pixels.flatten(), last(pixels), opened(pixels), pixels / 255, path, str(path)):
        assert torch.equal(model_input(one, spec), expected)
        assert torch.equal(model_input([one, one], spec), expected.repeat(2, 1))


def test_gray_images_without_channel_dimension() -> None:
    pixels = pixels_of(GRAY)
    expected = normalize(pixels, GRAY)
    assert torch.equal(model_input(pixels[0, 0], GRAY), expected[:1])
    assert torch.equal(model_input(pixels[:3, 0].numpy(), GRAY), expected[:3])


@SPECS
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_other_sizes_and_colors_are_converted_as_in_files(mode: str, spec: ImageSpec) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    image.save(file, format="PNG")
    expected = normalize(decode_image(file.getvalue(), spec)[None], spec)
    array = np.asarray(image)
    for one in (image, array, array[None], np.ascontiguousarray(array / 255)):
        assert torch.equal(model_input(one, spec), expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "the list is empty"),
        (torch.zeros(0, 1, 28, 28), r"there is no image: the shape is \(0, 1, 28, 28\)"),
        (torch.full((28, 28), 1.5), "float32 hold values from 1.5 to 1.5, not 0 to 1; .* before any normal"),
        (torch.full((28, 28), float("nan")), "values from nan to nan, not 0 to 1"),
        (np.full((28, 28), 256), "int64 hold values from 256 to 256, not 0 to 255"),
        (np.full((28, 28), True), "an array of bool holds no image"),
        (torch.zeros(28, 28).to_sparse(), "a tensor of torch.float32 and torch.sparse_coo holds no image"),
        (torch.zeros(28), r"\(28,\) is not the shape of images; give \(H, W\), .* or \(N, 784\)"),
        ("a\0b", "cannot read a"),
        (7, "int is not an image; give a path, bytes, a PIL image, an array or a tensor"),
        ([torch.zeros(28, 28), "nowhere.png"], "cannot read nowhere.png: No such file or directory"),
    ],
    ids=itertools.count(),
)
def test_other_inputs_are_rejected(images: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        model_input(images, GRAY)


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.png: 5 bytes are not a PNG"):
        model_input([tmp_path / "text.png"], GRAY)


def test_ambiguous_shapes_are_rejected() -> None:
    message = r"\(3, 40, 20\) may be one color image or 3 gray ones; give \(1, 3, 40, 20\)"
    with pytest.raises(ImageError, match=message):
        model_input(np.zeros((3, 40, 20), np.uint8), GRAY)
    for certain, answers in (((1, 3, 40, 20), 1), ((3, 1, 40, 20), 3), ((5, 40, 20), 5)):
        assert len(model_input(np.zeros(certain, np.uint8), GRAY)) == answers


def test_integer_masks_are_rejected() -> None:
    mask = (pixels_of(GRAY) > 127).to(torch.uint8)
    for images in (mask, mask.numpy(), mask.long()):
        with pytest.raises(ImageError, match="hold only 0 and 1, not 0 to 255; give masks as float"):
            model_input(images, GRAY)
    assert torch.equal(model_input(mask.float(), GRAY), normalize(mask * 255, GRAY))


def test_damaged_pil_images_are_rejected() -> None:
    truncated = encode_png(pixels_of(COLOR)[0])[:200]
    with pytest.raises(ImageError, match="the image is damaged"):
        model_input(Image.open(io.BytesIO(truncated)), COLOR)
