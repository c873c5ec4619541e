import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlp_dist.cli.show_data import main
from mlp_dist.core.errors import UsageError
from tests.helpers.drawing import WINDOW
from tests.helpers.launching import run

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


def test_folder_of_color_images(
    show_data: ShowData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, color in (("red", (200, 10, 10)), ("$blue$", (10, 10, 200))):
        (tmp_path / "flags" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + number, 30), color).save(tmp_path / "flags" / name / f"{number}.png")
    (tmp_path / "flags/red/9.png").write_bytes(b"no image")
    flags = ("--dataset", f"folder:{tmp_path}/flags", "--image-size", "16", "--output", "samples.png")
    show_data(*flags, "--skip-bad-images")
    summary = "flags: 5 training and 1 test images of 16x16 pixels, RGB; 2 classes: $blue$, red"
    assert f"samples.png: {summary}\n" in capsys.readouterr().out
    for color in ((200, 10, 10), (10, 10, 200)):
        assert (pixels("samples.png") == color).all(axis=2).mean() > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "digit"), "unknown data set 'digit'; did you mean digits?"),
        (("--image-size", "0"), "image-size is 0; it must be 1 or more pixels"),
        (("--seed", "-1"), "seed is -1; it must be from 0 to"),
        (("--output", "."), "is a directory; name a file, for example picture.png"),
    ],
)
def test_rejects_wrong_flags(
    flags: tuple[str, ...], message: str, show_data: ShowData, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        show_data(*flags)
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_window_shows_twenty_labeled_images(tmp_path: Path) -> None:
    (tmp_path / "window.py").write_text(WINDOW)
    words = [sys.executable, "-m", "mlp_dist.show_data", "--dataset", "digits"]
    done = run(words, tmp_path, MPLBACKEND="module://window", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, SUMMARY, "")
    window = json.loads((tmp_path / "window.json").read_text())
    assert window["block"]
    assert len(window["titles"]) == 20
    assert set(window["titles"]) <= set("0123456789")


@pytest.mark.slow
def test_missing_display_is_reported_before_reading_data(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mlp_dist.show_data", "--data-dir", str(tmp_path / "data")]
    done = run(words, tmp_path, MPLBACKEND="agg")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: matplotlib cannot open a window: ")
    assert done.stderr.endswith("; write the picture to a file with --output FILE\n")
    assert list(tmp_path.iterdir()) == []
