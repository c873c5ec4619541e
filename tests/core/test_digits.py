"""Pictures of digits become the images that MNIST would have of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.pictures import EMPTY, dark_corners, uneven
from mlp_dist.core.digits import are_framed, as_mnist
from mlp_dist.core.errors import EmptyPageError
from mlp_dist.core.image import Reading, decode_image
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.datasets import read_dataset
from tests.helpers.pens import FIVE, SEVEN, distance, drawn

SPEC = ImageSpec(28, 28, 1, (0.0,), (1.0,))
AUTO = Reading(preprocess="auto")
SHEET = drawn(paper=235, ink=30)


def check_frame(image: np.ndarray) -> None:
    """Check the bounding box and the center of mass that MNIST's images have."""
    assert (image.shape, image.dtype) == ((28, 28), np.uint8)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    center = [float(image.sum(axis) @ np.arange(28) / image.sum()) for axis in (0, 1)]
    assert center == pytest.approx([14, 14], abs=0.6)
    assert image.max() >= 250


def test_images_of_mnist_are_not_changed(mnist_dir: Path) -> None:
    images = read_dataset("mnist", mnist_dir).test.images[::10, 0].numpy()
    assert all(as_mnist(image) is image for image in images)
    assert all((as_mnist(255 - image) == image).all() for image in images[:100])


@pytest.mark.parametrize(
    ("points", "other", "changes"),
    [
        (SEVEN, FIVE, {"paper": 0, "ink": 255}),
        (FIVE, SEVEN, {"paper": 150, "ink": 60}),
        (SEVEN, FIVE, {"side": 60, "pen": 4}),
        (FIVE, SEVEN, {"side": 1500, "pen": 96}),
        (SEVEN, FIVE, {"side": 28, "pen": 1, "scale": 0.9}),
        (FIVE, SEVEN, {"side": 40, "pen": 1, "paper": 0, "ink": 255}),
        (SEVEN, FIVE, {"pen": 5, "scale": 0.25, "shift": (-0.05, 0.7)}),
    ],
    ids=["white on black", "gray", "small", "large", "28 pixels", "40 pixels", "in a corner"],
)
def test_paper_size_and_place_do_not_matter(points: Any, other: Any, changes: dict[str, Any]) -> None:
    image = as_mnist(drawn(points, **changes))
    check_frame(image)
    assert distance(image, as_mnist(drawn(points))) < 10
    assert distance(image, as_mnist(drawn(other))) > 20


@pytest.mark.parametrize(("side", "pen"), [(280, 45), (2000, 2)])
def test_strokes_get_the_width_of_mnist(side: int, pen: int) -> None:
    image = as_mnist(drawn(SEVEN, side=side, pen=pen))
    check_frame(image)
    stroke = image[14:18].sum(1) / 255
    assert ((stroke > 1.2) & (stroke < 5.5)).all()


def test_a_straight_line_is_a_one() -> None:
    page = np.full((28, 28), 255, np.uint8)
    page[3:25, 14] = 0
    assert (as_mnist(page)[4:24, 13:16] > 0).any(axis=1).all()


def test_light_noise_dust_and_borders_are_ignored() -> None:
    source = np.random.default_rng(0)
    lit = drawn(paper=220, ink=50) * uneven(280, source) + source.normal(0, 8, (280, 280))
    dusty, framed, corners = drawn().copy(), drawn(pen=14).copy(), drawn(pen=14) * dark_corners(280)
    dusty[10:14, 10:14] = dusty[250:253, 30:33] = 0
    framed[:8] = framed[-8:] = framed[:, :8] = framed[:, -8:] = 0
    for page in (lit, dusty, framed, corners):
        image = as_mnist(page.clip(0, 255).astype(np.uint8))
        check_frame(image)
        assert distance(image, as_mnist(drawn())) < 10


@pytest.mark.parametrize("name", [name for name in EMPTY if "280" in name])
def test_empty_pages_are_rejected(name: str) -> None:
    with pytest.raises(EmptyPageError, match=r"the page is empty.*send a picture of one digit"):
        decode_image(EMPTY[name](np.random.default_rng(1)), SPEC, AUTO)


def test_are_framed_recognizes_framed_images() -> None:
    image = as_mnist(drawn())
    image[image == image.max()] = 255
    larger = np.zeros((28, 28), np.uint8)
    larger[2:26, 12:16] = 255
    others = [255 - image, np.roll(image, 2, axis=1), np.roll(image, 2, axis=0), image // 2, larger]
    assert are_framed(np.stack([image, *others, image])) == [True, *[False] * len(others), True]


# Sheets, frames, ruled paper


def on_desk(sheet: np.ndarray, share: float, desk: int) -> np.ndarray:
    """A square sheet in the middle of a picture, with `share` of its 400 pixels."""
    length = round(400 * share)
    image = Image.fromarray(sheet).resize((length, length), Image.Resampling.BOX)
    picture = Image.new("L", (400, 400), desk)
    picture.paste(image, ((400 - length) // 2,) * 2)
    return np.asarray(picture)


@pytest.mark.parametrize(("share", "desk"), [(0.3, 150), (0.8, 20)])
def test_sheet_on_a_desk_is_found(share: float, desk: int) -> None:
    assert distance(as_mnist(on_desk(SHEET, share, desk)), as_mnist(SHEET)) < 5
    assert distance(as_mnist(255 - on_desk(SHEET, share, desk)), as_mnist(SHEET)) < 5
    with pytest.raises(EmptyPageError):
        as_mnist(on_desk(np.full((100, 100), 235, np.uint8), share, desk))


def test_a_square_zero_is_no_sheet() -> None:
    page = np.full((100, 100), 255, np.uint8)
    page[25:75, 30:70] = 20
    page[30:70, 35:65] = 255
    check_frame(as_mnist(page))


def test_ruled_lines_are_ignored() -> None:
    page = drawn(SEVEN, side=300, paper=240, ink=40)
    image = Image.new("L", (300, 300), 240)
    for place in range(-31, 331, 31):
        ImageDraw.Draw(image).line((0, place - 6, 300, place + 6), fill=150, width=2)
    ruled = np.asarray(image)
    with pytest.raises(EmptyPageError):
        as_mnist(ruled)
    assert distance(as_mnist(np.minimum(ruled, page)), as_mnist(page)) < 6
