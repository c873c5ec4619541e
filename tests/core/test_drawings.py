import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import EMPTY, cut_out, dark_corners, enlarged, moved, on_paper, uneven
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.digits.framing import are_framed, as_mnist
from mlp_dist.core.errors import EmptyPageError
from mlp_dist.core.image import Reading, decode_image
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.datasets import read_dataset
from mlp_dist.data.image_set import Dataset
from tests.helpers.launching import Trained
from tests.helpers.pens import FIVE, SEVEN, distance, drawn

SPEC = ImageSpec(28, 28, 1, (0.0,), (1.0,))
AUTO = Reading(preprocess="auto")


def check_frame(image: np.ndarray) -> None:
    """The box and the centre of mass that all of MNIST's images have."""
    assert (image.shape, image.dtype) == ((28, 28), np.uint8)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    centre = [float(image.sum(axis) @ np.arange(28) / image.sum()) for axis in (0, 1)]
    assert centre == pytest.approx([14, 14], abs=0.6)
    assert image.max() >= 250


@pytest.fixture(scope="module")
def mnist(mnist_dir: Path) -> Dataset:
    return read_dataset("mnist", mnist_dir)


def test_all_of_mnist_is_framed_and_stays_as_it_is(mnist: Dataset) -> None:
    assert mnist.preprocess == "auto"
    for part in (mnist.train, mnist.test):
        changed = [
            index for index, image in enumerate(part.images[:, 0].numpy()) if as_mnist(image) is not image
        ]
        assert changed == []


def test_negatives_of_mnist_are_turned_over_and_lose_nothing(mnist: Dataset) -> None:
    for image in mnist.test.images[:500, 0].numpy():
        assert (as_mnist(255 - image) == image).all()


def test_an_image_of_mnist_costs_next_to_nothing(mnist: Dataset) -> None:
    image = mnist.test.images[0, 0].numpy()
    seconds = []
    for _ in range(200):
        started = time.perf_counter()
        as_mnist(image)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 50e-6


@pytest.mark.parametrize("points", [SEVEN, FIVE])
@pytest.mark.parametrize(
    "changes",
    [
        {"paper": 0, "ink": 255},
        {"paper": 150, "ink": 60},
        {"paper": 40, "ink": 90},
        {"side": 60, "pen": 4},
        {"side": 600, "pen": 38},
        {"side": 1500, "pen": 96},
        {"pen": 9, "scale": 0.5, "shift": (0.4, 0.45)},
        {"pen": 5, "scale": 0.25, "shift": (-0.05, 0.7)},
        {"pen": 9, "scale": 0.5, "shift": (-0.14, -0.06)},
    ],
    ids=str,
)
def test_the_same_digit_becomes_the_same_image(
    points: tuple[tuple[float, float], ...], changes: dict[str, object]
) -> None:
    image = as_mnist(drawn(points, **changes))
    check_frame(image)
    assert distance(image, as_mnist(drawn(points))) < 10
    assert distance(image, as_mnist(drawn(FIVE if points == SEVEN else SEVEN))) > 20


@pytest.mark.parametrize(("side", "pen"), [(280, 2), (280, 45), (600, 1), (2000, 2)])
def test_thin_and_thick_pens_draw_strokes_of_mnist(side: int, pen: int) -> None:
    image = as_mnist(drawn(SEVEN, side=side, pen=pen))
    check_frame(image)
    stroke = image[14:18].sum(1) / 255
    assert ((stroke > 1.2) & (stroke < 5.5)).all()


def test_uneven_light_and_noise_are_no_ink() -> None:
    source = np.random.default_rng(0)
    page = drawn(paper=220, ink=50) * uneven(280, source) + source.normal(0, 8, (280, 280))
    image = as_mnist(page.clip(0, 255).astype(np.uint8))
    check_frame(image)
    assert distance(image, as_mnist(drawn())) < 7


@pytest.mark.parametrize("margin", [0, 12])
@pytest.mark.parametrize(("paper", "ink"), [(250, 20), (0, 255)])
def test_digits_that_were_cut_out_along_their_edges_are_the_same(
    image_data: Dataset, margin: int, paper: int, ink: int
) -> None:
    distances = []
    for image in image_data.test.images[:25, 0].numpy():
        whole = enlarged(image, 280)
        page = on_paper(np.pad(cut_out(whole), margin), paper, ink).astype(np.uint8)
        expected = as_mnist(on_paper(np.pad(whole, 60), paper, ink).astype(np.uint8))
        with suppress(EmptyPageError):
            distances.append(distance(as_mnist(page), expected))
    # Of one in fifty so little paper is left that it may be the ink.
    assert sum(each < 15 for each in distances) >= 24


def test_darkness_around_the_page_is_no_ink() -> None:
    corners, framed = drawn(pen=14) * dark_corners(280), drawn(pen=14).copy()
    framed[:8] = framed[-8:] = framed[:, :8] = framed[:, -8:] = 0
    for page in (corners.astype(np.uint8), framed):
        image = as_mnist(page)
        check_frame(image)
        assert distance(image, as_mnist(drawn(pen=14))) < 7


def test_noise_on_a_small_page_is_no_ink() -> None:
    source = np.random.default_rng(0)
    page = drawn(side=60, pen=5, paper=220, ink=40) + source.normal(0, 30, (60, 60))
    image = as_mnist(page.clip(0, 255).astype(np.uint8))
    check_frame(image)
    assert distance(image, as_mnist(drawn(side=60, pen=5))) < 8


def test_dust_is_no_part_of_the_digit() -> None:
    page = drawn().copy()
    page[10:14, 10:14] = page[250:253, 30:33] = 0
    assert distance(as_mnist(page), as_mnist(drawn())) < 1


def test_what_is_written_on_paper_is_found_again(image_data: Dataset) -> None:
    source = np.random.default_rng(0)
    for image in image_data.test.images[:20, 0].numpy():
        page = on_paper(moved(enlarged(image, 150), 300, source), 230, 40).astype(np.uint8)
        check_frame(as_mnist(page))
        assert (as_mnist(page) == as_mnist(page.copy())).all()


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_page_is_refused(name: str) -> None:
    source = np.random.default_rng(1)
    for _ in range(5):
        with pytest.raises(EmptyPageError, match=r"the page is empty.*send a picture of one digit"):
            decode_image(EMPTY[name](source), SPEC, AUTO)


@pytest.mark.parametrize(("name", "number"), [("gray, 28 pixels", 230), ("uneven, 28 pixels", 160)])
def test_the_grain_and_the_spots_of_empty_pages_are_no_ink(name: str, number: int) -> None:
    """Among so many are some whose spots are as large and as sharp as strokes, but faint."""
    source = np.random.default_rng([7, zlib.crc32(name.encode())])
    for _ in range(number):
        with pytest.raises(EmptyPageError):
            decode_image(EMPTY[name](source), SPEC, AUTO)


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (1, 1000), (1000, 1), (3, 4000), (4000, 3), (7, 7), (5000, 4000)], ids=str
)
def test_any_shape_is_answered_or_refused(shape: tuple[int, int]) -> None:
    source = np.random.default_rng(0)
    noise = source.integers(0, 256, shape, dtype=np.uint8)
    stripes = np.zeros(shape, np.uint8)
    stripes[:, :: max(2, shape[1] // 3)] = 255
    for picture in (noise, stripes, np.zeros(shape, np.uint8)):
        with suppress(EmptyPageError):
            assert as_mnist(picture).shape == (28, 28)


def test_a_frame_is_told_from_its_neighbours() -> None:
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
    assert [are_framed(each[None])[0] for each in (image, *others, image)] == expected
    assert are_framed(np.zeros((0, 28, 28), np.uint8)) == []


def test_models_of_mnist_frame_pictures_and_others_do_not() -> None:
    assert {name: facts.preprocess for name, facts in CATALOG.items() if facts.preprocess != "exact"} == {
        "mnist": "auto"
    }


@pytest.mark.slow
def test_the_bundle_says_how_it_reads_pictures(trained: Trained, image_data: Dataset) -> None:
    bundle = load_bundle(trained.bundle)
    assert bundle.spec.preprocess == image_data.preprocess
    if image_data.preprocess == "auto":
        picture = Image.fromarray(drawn(SEVEN))
        assert bundle.predict(picture) == ["7"]
        assert bundle.predict(Image.fromarray(255 - np.asarray(picture))) == ["7"]
