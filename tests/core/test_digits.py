"""Pictures of digits become the images that MNIST would have of them."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from benchmarks.pictures import EMPTY, dark_corners, uneven
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.digits.framing import are_framed, as_mnist
from mlp_dist.core.digits.ruled import without_lines
from mlp_dist.core.digits.sheets import find_sheets
from mlp_dist.core.errors import EmptyPageError
from mlp_dist.core.image import Reading, decode_image
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.datasets import read_dataset
from mlp_dist.data.image_set import Dataset
from tests.helpers import strokes
from tests.helpers.pens import FIVE, SEVEN, distance, drawn
from tests.helpers.strokes import WAYS

SPEC = ImageSpec(28, 28, 1, (0.0,), (1.0,))
AUTO = Reading(preprocess="auto")
SHEET = drawn(paper=235, ink=30)
FOUR = ((0.5, 0.2), (0.3, 0.6), (0.72, 0.6), (0.6, 0.6), (0.6, 0.2), (0.6, 0.85))


def check_frame(image: np.ndarray) -> None:
    """Check the bounding box and the center of mass that MNIST's images have."""
    assert (image.shape, image.dtype) == ((28, 28), np.uint8)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    center = [float(image.sum(axis) @ np.arange(28) / image.sum()) for axis in (0, 1)]
    assert center == pytest.approx([14, 14], abs=0.6)
    assert image.max() >= 250


def test_images_of_mnist_are_not_changed(mnist_dir: Path) -> None:
    mnist: Dataset = read_dataset("mnist", mnist_dir)
    images = mnist.test.images[:, 0].numpy()
    assert all(as_mnist(image) is image for image in images)
    assert all((as_mnist(255 - image) == image).all() for image in images[:300])


@pytest.mark.parametrize("points", [SEVEN, FIVE])
@pytest.mark.parametrize(
    "changes",
    [
        {"paper": 0, "ink": 255},
        {"paper": 150, "ink": 60},
        {"side": 60, "pen": 4},
        {"side": 1500, "pen": 96},
        {"pen": 5, "scale": 0.25, "shift": (-0.05, 0.7)},
    ],
    ids=str,
)
def test_paper_size_and_place_do_not_matter(
    points: tuple[tuple[float, float], ...], changes: dict[str, object]
) -> None:
    image = as_mnist(drawn(points, **changes))
    check_frame(image)
    assert distance(image, as_mnist(drawn(points))) < 10
    assert distance(image, as_mnist(drawn(FIVE if points == SEVEN else SEVEN))) > 20


@pytest.mark.parametrize(("side", "pen"), [(280, 2), (280, 45), (2000, 2)])
def test_strokes_get_the_width_of_mnist(side: int, pen: int) -> None:
    image = as_mnist(drawn(SEVEN, side=side, pen=pen))
    check_frame(image)
    stroke = image[14:18].sum(1) / 255
    assert ((stroke > 1.2) & (stroke < 5.5)).all()


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


@pytest.mark.parametrize("name", EMPTY)
def test_empty_pages_are_rejected(name: str) -> None:
    source = np.random.default_rng(1)
    for _ in range(5):
        with pytest.raises(EmptyPageError, match=r"the page is empty.*send a picture of one digit"):
            decode_image(EMPTY[name](source), SPEC, AUTO)


def test_are_framed_recognizes_framed_images() -> None:
    image = as_mnist(drawn())
    image[image == image.max()] = 255
    larger = np.zeros((28, 28), np.uint8)
    larger[2:26, 12:16] = 255
    others = [
        255 - image,
        np.roll(image, 2, axis=1),
        np.roll(image, 2, axis=0),
        image // 2,
        0 * image,
        larger,
    ]
    expected = [True, *[False] * len(others), True]
    assert are_framed(np.stack([image, *others, image])) == expected
    assert are_framed(np.zeros((0, 28, 28), np.uint8)) == []


def test_only_models_of_mnist_frame_pictures() -> None:
    assert {name for name, facts in CATALOG.items() if facts.preprocess == "auto"} == {"mnist"}


# Sheets, frames, ruled paper


def on_desk(sheet: np.ndarray, share: float, desk: int, *, angle: float = 0) -> np.ndarray:
    """A square sheet in the middle of a picture, with `share` of its 400 pixels."""
    length = round(400 * share)
    image = Image.fromarray(sheet).resize((length, length), Image.Resampling.BOX)
    cover = Image.new("L", image.size, 255).rotate(angle, Image.Resampling.BICUBIC, expand=True)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    picture = Image.new("L", (400, 400), desk)
    picture.paste(image, ((400 - image.width) // 2, (400 - image.height) // 2), cover)
    return np.asarray(picture)


@pytest.mark.parametrize("desk", [20, 150])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_sheet_on_a_desk_is_found(share: float, desk: int) -> None:
    assert distance(as_mnist(on_desk(SHEET, share, desk)), as_mnist(SHEET)) < 5
    assert distance(as_mnist(255 - on_desk(SHEET, share, desk)), as_mnist(SHEET)) < 5
    with pytest.raises(EmptyPageError):
        as_mnist(on_desk(np.full((100, 100), 235, np.uint8), share, desk))


def test_frame_around_the_digit_is_ignored() -> None:
    picture = Image.fromarray(drawn())
    ImageDraw.Draw(picture).rectangle((8, 8, 271, 271), outline=0, width=4)
    assert distance(as_mnist(np.asarray(picture)), as_mnist(drawn())) < 3


@pytest.mark.parametrize("digit", WAYS)
def test_digits_have_no_sheets_and_no_lines(digit: str) -> None:
    chance = random.Random(digit)
    for way in WAYS[digit] * 4:
        for squeezed in (0.6, 1.5):
            page = Image.new("L", (280, 280), 255)
            for stroke in strokes.drawn(way, chance, 280):
                points = [(squeezed * (x - 140) + 140, y) for x, y in stroke]
                ImageDraw.Draw(page).line(points, fill=0, width=chance.choice([5, 18, 36]), joint="curve")
            assert not list(find_sheets(page.resize((256, 256))))
            assert without_lines(ImageOps.invert(page)) is None


@pytest.mark.parametrize("points", [FIVE, SEVEN, FOUR], ids=["five", "seven", "four"])
def test_ruled_lines_are_ignored(points: tuple[tuple[float, float], ...]) -> None:
    page = drawn(points, side=300, paper=240, ink=40)
    for empty in (False, True):
        image = Image.fromarray(np.full_like(page, 240) if empty else page)
        for place in range(-31, 331, 31):
            ImageDraw.Draw(image).line((0, place - 6, 300, place + 6), fill=150, width=2)
        ruled = np.minimum(np.asarray(image), 240 if empty else page).astype(np.uint8)
        if empty:
            with pytest.raises(EmptyPageError):
                as_mnist(ruled)
        else:
            assert distance(as_mnist(ruled), as_mnist(page)) < 4


def test_sheet_within_transparent_pixels_is_found() -> None:
    pixels = np.zeros((300, 300, 4), np.uint8)
    pixels[40:260, 40:260, :3] = np.asarray(Image.fromarray(drawn()).resize((220, 220)))[..., None]
    pixels[40:260, 40:260, 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert distance(decode_image(file.getvalue(), SPEC, AUTO)[0].numpy(), as_mnist(drawn())) < 5
