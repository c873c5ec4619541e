import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlp_dist.cli.show_data import main
from mlp_dist.core.errors import UsageError

SUMMARY = (
    "scikit-learn's handwritten digits: 1,437 training and 360 test images of 28x28 pixels, gray; "
    "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n"
)

ShowData = Callable[..., None]


@pytest.fixture
def show_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShowData:
    """The command, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["show_data", *flags])
        main()

    return command


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_seed_selects_the_images(show_data: ShowData, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("new/a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        show_data("--dataset", "digits", "--output", name, "--seed", seed)
        assert capsys.readouterr().out == f"{name}: {SUMMARY}"
    picture = pixels("new/a.png")
    # Twenty images of digits, mostly black, on white.
    assert 0.3 < (picture < 50).mean() < 0.8
    assert np.array_equal(picture, pixels("b.png"))
    assert not np.array_equal(picture, pixels("c.png"))


def test_rejects_wrong_flags(show_data: ShowData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown data set 'digit'; did you mean digits\?"):
        show_data("--dataset", "digit")
    with pytest.raises(UsageError, match="image-size is 0; it must be 1 or more pixels"):
        show_data("--image-size", "0")
    assert list(tmp_path.iterdir()) == []


def test_missing_display_is_reported_before_reading_data(
    show_data: ShowData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.pyplot.get_backend", lambda: "agg")
    message = r"^matplotlib cannot open a window: .*; write the picture to a file with --output FILE$"
    with pytest.raises(UsageError, match=message):
        show_data("--data-dir", "data")
    assert list(tmp_path.iterdir()) == []
