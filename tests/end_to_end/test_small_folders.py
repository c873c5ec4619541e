"""Small folders of images: the recipe `folder` beside scikit-learn's MLPClassifier on the same files."""

import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from sklearn.neural_network import MLPClassifier

from mlp_dist import train
from mlp_dist.data.datasets import read_dataset
from tests.helpers.calling import UploadAtEnd, forget_precision

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

Pictures = Iterator[tuple[str, Image.Image]]
"""Place, such as train/A, and image."""


def digits(random: np.random.Generator) -> Pictures:
    found = load_digits()
    for image, label in zip(found.images, found.target, strict=True):
        yield str(label), Image.fromarray((image * 15.9).astype(np.uint8))


def letters(random: np.random.Generator) -> Pictures:
    """Sixteen letters, tested in other fonts than those of the training."""
    fonts = sorted(Path(mpl.get_data_path(), "fonts/ttf").glob("DejaVu*s-*.ttf"))
    fonts += sorted(Path(mpl.get_data_path(), "fonts/ttf").glob("DejaVu*-*.ttf"))[::2]
    for part, first, number in (("train", 0, 150), ("test", 1, 40)):
        for letter in "ABCDEFGHIJKLMNOP":
            for _ in range(number):
                path = fonts[first::2][random.integers(len(fonts[first::2]))]
                page = Image.new("L", (48, 48), int(random.integers(200, 256)))
                place = tuple(24 + random.integers(-4, 5, 2))
                font = ImageFont.truetype(path, int(random.integers(24, 40)))
                ImageDraw.Draw(page).text(place, letter, int(random.integers(90)), font, anchor="mm")
                yield f"{part}/{letter}", page.rotate(random.normal() * 8, fillcolor=230)


def patches(random: np.random.Generator) -> Pictures:
    """Parts of the upper and lower halves of two photographs in color."""
    for photograph, name in zip(load_sample_images().images, "ab", strict=True):
        height, width, _ = photograph.shape
        for half in (0, 1):
            for part, left, right, number in (
                ("train", 0, width * 2 // 3, 300),
                ("test", width * 2 // 3 + 20, width - 48, 60),
            ):
                for _ in range(number):
                    y = random.integers(half * height // 2, (half + 1) * height // 2 - 48)
                    x = random.integers(left, right)
                    yield f"{part}/{name}{half}", Image.fromarray(photograph[y : y + 48, x : x + 48])


@pytest.mark.parametrize("pictures", [digits, letters, patches])
def test_small_folders_are_learned_at_least_as_well_and_faster(
    pictures: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, (place, image) in enumerate(pictures(np.random.default_rng(0))):  # type: ignore[operator]
        path = tmp_path / "images" / place / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    data = read_dataset(f"folder:{tmp_path / 'images'}", tmp_path, image_size=32)
    parts = [(part.images.flatten(1).numpy() / 255, part.labels.numpy()) for part in (data.train, data.test)]
    started = time.process_time()
    expected = MLPClassifier(500, random_state=0).fit(*parts[0]).score(*parts[1])
    seconds = time.process_time() - started

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for module in ("mlp_dist.training.run", "mlp_dist.training.report"):
        monkeypatch.setattr(f"{module}.Follower", UploadAtEnd)
    forget_precision()
    started = time.process_time()
    result = train(dataset=f"folder:{tmp_path / 'images'}")
    assert result.metrics["recipe"] == "folder"
    assert result.test_accuracy >= expected
    assert time.process_time() - started < seconds
