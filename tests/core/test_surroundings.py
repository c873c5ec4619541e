"""What is around the digit: the table on which its sheet lies, a frame, the lines of its paper."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from benchmarks.pictures import cut_out
from mlp_dist.core.digits.framing import as_mnist
from mlp_dist.core.digits.ruled import without_lines
from mlp_dist.core.digits.sheets import find_sheets
from mlp_dist.core.errors import EmptyPageError
from mlp_dist.core.image import Reading, decode_image
from mlp_dist.core.spec import ImageSpec
from tests.helpers import strokes
from tests.helpers.pens import FIVE, SEVEN, distance, drawn
from tests.helpers.strokes import WAYS

SHEET = drawn(paper=235, ink=30)
ZERO = ((0.3, 0.2), (0.7, 0.2), (0.7, 0.8), (0.3, 0.8), (0.3, 0.2))
FOUR = ((0.5, 0.2), (0.3, 0.6), (0.72, 0.6), (0.6, 0.6), (0.6, 0.2), (0.6, 0.85))


def on_desk(
    sheet: np.ndarray, share: float, desk: int, *, angle: float = 0, place: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """A square sheet, `share` as long as the picture's 400 pixels; `place` is its middle's."""
    length = round(400 * share)
    image = Image.fromarray(sheet).resize((length, length), Image.Resampling.BOX)
    cover = Image.new("L", image.size, 255).rotate(angle, Image.Resampling.BICUBIC, expand=True)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    picture = Image.new("L", (400, 400), desk)
    left, top = (round(400 * middle - image.width / 2) for middle in place)
    picture.paste(image, (left, top), cover)
    return np.asarray(picture)


@pytest.mark.parametrize("desk", [20, 80, 150])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_sheet_on_a_desk_is_read_as_if_it_were_the_picture(share: float, desk: int) -> None:
    assert distance(as_mnist(on_desk(SHEET, share, desk)), as_mnist(SHEET)) < 5


def test_a_sheet_may_lie_askew_and_reach_out_of_the_picture() -> None:
    for place in ((0.3, 0.5), (0.35, 0.7), (0.5, 0.27)):
        assert distance(as_mnist(on_desk(SHEET, 0.6, 60, place=place)), as_mnist(SHEET)) < 5
    # A digit that leans by 10 degrees is another image.
    leaning = Image.fromarray(SHEET).rotate(10, Image.Resampling.BICUBIC, fillcolor=235)
    expected = as_mnist(np.asarray(leaning))
    assert distance(as_mnist(on_desk(SHEET, 0.6, 60, angle=10)), expected) < 6


def test_a_slate_on_a_lighter_wall_is_a_sheet() -> None:
    assert distance(as_mnist(255 - on_desk(SHEET, 0.5, 60)), as_mnist(SHEET)) < 5


@pytest.mark.parametrize("desk", [20, 150])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_bare_sheet_is_an_empty_page(share: float, desk: int) -> None:
    with pytest.raises(EmptyPageError):
        as_mnist(on_desk(np.full((100, 100), 235, np.uint8), share, desk))


@pytest.mark.parametrize("gap", [2, 8, 15])
@pytest.mark.parametrize("width", [1, 4])
def test_a_frame_around_the_digit_is_none_of_it(gap: int, width: int) -> None:
    picture = Image.fromarray(drawn())
    ImageDraw.Draw(picture).rectangle((gap, gap, 279 - gap, 279 - gap), outline=0, width=width)
    assert distance(as_mnist(np.asarray(picture)), as_mnist(drawn())) < 3


@pytest.mark.parametrize("pen", [6, 18, 40])
def test_what_a_zero_is_around_is_no_sheet(pen: int) -> None:
    """A zero drawn square is a frame, too; there is nothing in it."""
    image = as_mnist(drawn(ZERO, pen=pen))
    assert image[14, 14] == 0
    assert (image.max(0) > 0).sum() >= 12


def test_digits_on_a_dark_ground_are_no_sheets() -> None:
    for points in (FIVE, SEVEN, ZERO, FOUR):
        for pen in (6, 18, 40):
            white = drawn(points, pen=pen)
            assert (as_mnist(255 - white) == as_mnist(white)).all()


@pytest.mark.parametrize("digit", WAYS)
def test_slim_and_thick_digits_are_no_sheets_and_have_no_lines(digit: str) -> None:
    chance = random.Random(digit)
    for way in WAYS[digit] * 12:
        for squeezed in (0.6, 1.0, 1.5):
            width = chance.choice([5, 18, 36])
            page = Image.new("L", (280, 280), 255)
            for stroke in strokes.drawn(way, chance, 280):
                points = [(squeezed * (x - 140) + 140, y) for x, y in stroke]
                ImageDraw.Draw(page).line(points, fill=0, width=width, joint="curve")
            assert not list(find_sheets(page.resize((256, 256))))
            assert without_lines(ImageOps.invert(page)) is None


@pytest.mark.parametrize("seed", [31, 66])
def test_an_eight_whose_outline_is_about_a_rectangle_is_no_sheet(seed: int) -> None:
    page = Image.new("L", (280, 280), 255)
    for stroke in strokes.drawn(WAYS["8"][0], random.Random(seed), 280):
        ImageDraw.Draw(page).line(stroke, fill=0, width=18, joint="curve")
    image = as_mnist(np.asarray(page))
    # Its strokes, and not what they are around.
    assert distance(image, as_mnist(np.pad(np.asarray(page), 100, constant_values=255))) < 5


def ruled(page: np.ndarray, *, squared: bool, slant: int, gray: int = 150) -> np.ndarray:
    """With a line each 31 pixels, and a margin or as many upright ones."""
    image = Image.fromarray(page)
    draw, (width, height) = ImageDraw.Draw(image), image.size
    for place in range(-31, height + 31, 31):
        draw.line((0, place - slant, width, place + slant), fill=gray, width=2)
    for place in range(45, width, 31) if squared else (45,):
        draw.line((place + slant, 0, place - slant, height), fill=gray, width=2)
    return np.minimum(np.asarray(image), page)


@pytest.mark.parametrize("squared", [False, True], ids=["lined", "squared"])
@pytest.mark.parametrize("slant", [0, 6])
@pytest.mark.parametrize("points", [FIVE, SEVEN, FOUR], ids=["five", "seven", "four"])
def test_the_lines_of_the_paper_are_no_ink(
    points: tuple[tuple[float, float], ...], slant: int, *, squared: bool
) -> None:
    page = drawn(points, side=300, paper=240, ink=40)
    assert distance(as_mnist(ruled(page, squared=squared, slant=slant)), as_mnist(page)) < 4
    with pytest.raises(EmptyPageError):
        as_mnist(ruled(np.full_like(page, 240), squared=squared, slant=slant))


def test_the_straight_strokes_of_a_digit_are_no_lines() -> None:
    for points in (SEVEN, FOUR):
        for pen in (2, 4, 12):
            ink = 255 - drawn(points, pen=pen)
            for page in (ink, cut_out(ink / 255) * 255):
                assert without_lines(Image.fromarray(page.astype(np.uint8))) is None


def test_a_sheet_within_what_is_transparent_is_read() -> None:
    pixels = np.zeros((300, 300, 4), np.uint8)
    pixels[40:260, 40:260, :3] = np.asarray(Image.fromarray(drawn()).resize((220, 220)))[..., None]
    pixels[40:260, 40:260, 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    spec = ImageSpec(28, 28, 1, (0.0,), (1.0,))
    image = decode_image(file.getvalue(), spec, Reading(preprocess="auto"))[0].numpy()
    assert distance(image, as_mnist(drawn())) < 5
