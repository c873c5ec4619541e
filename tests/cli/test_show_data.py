import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.helpers.drawing import WINDOW, without_display
from tests.helpers.launching import ROOT, run, run_impatient

pytestmark = pytest.mark.slow

COMMAND = ROOT / "launch/show_data.py"
FACTS = (
    "scikit-learn's handwritten digits: 1,437 training and 360 test images of 28x28 pixels, gray; "
    "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n"
)


@pytest.fixture(autouse=True)
def _no_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_display(monkeypatch)
    monkeypatch.delenv("MLP_DIST_DATA", raising=False)
    # matplotlib's own cache stays where it is: building it takes seconds and a line on stderr.
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def show_data(*flags: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, str(COMMAND), *flags], cwd, **changes)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def colour_folder(directory: Path) -> str:
    """Three images each of two classes, red and $blue$."""
    for name, colour in (("red", (200, 10, 10)), ("$blue$", (10, 10, 200))):
        (directory / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + number, 30), colour).save(directory / name / f"{number}.png")
    return f"folder:{directory}"


def test_the_picture_is_written_and_nothing_else(cwd: Path) -> None:
    done = show_data("--dataset", "digits", "--output", "new/samples.png", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"new/samples.png: {FACTS}"
    assert [path.relative_to(cwd) for path in cwd.rglob("*")] == [Path("new"), Path("new/samples.png")]
    picture = pixels(cwd / "new/samples.png")
    assert min(picture.shape[:2]) > 500
    # Twenty black images of digits on white.
    assert 0.3 < (picture < 50).mean() < 0.8
    assert (picture > 200).mean() > 0.2


def test_the_seed_chooses_the_images(cwd: Path) -> None:
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        done = show_data("--dataset", "digits", "--output", name, "--seed", seed, cwd=cwd)
        assert done.returncode == 0, done.stderr
    assert np.array_equal(pixels(cwd / "a.png"), pixels(cwd / "b.png"))
    assert not np.array_equal(pixels(cwd / "a.png"), pixels(cwd / "c.png"))


def test_a_window_shows_twenty_labelled_images(cwd: Path, tmp_path: Path) -> None:
    (tmp_path / "window.py").write_text(WINDOW)
    done = show_data("--dataset", "digits", cwd=cwd, MPLBACKEND="module://window", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, FACTS, "")
    titles = json.loads((cwd / "shown.json").read_text())["titles"]
    assert len(titles) == 20
    assert set(titles) <= set("0123456789")
    assert titles != sorted(titles)


def test_a_folder_of_colour_images(cwd: Path, tmp_path: Path) -> None:
    name = colour_folder(tmp_path / "flags")
    done = show_data("--dataset", name, "--image-size", "16", "--output", "samples.png", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "samples.png: flags: 5 training and 1 test images of 16x16 pixels, RGB; 2 classes: $blue$, red\n"
    )
    picture = pixels(cwd / "samples.png")
    for colour in ((200, 10, 10), (10, 10, 200)):
        assert (picture == colour).all(axis=2).mean() > 0.05


def test_bad_images_are_left_out_when_asked(cwd: Path, tmp_path: Path) -> None:
    name = colour_folder(tmp_path / "flags")
    (tmp_path / "flags/red/9.png").write_bytes(b"no image")
    done = show_data("--dataset", name, "--output", "samples.png", cwd=cwd)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/flags/red/9.png: " in done.stderr
    assert list(cwd.iterdir()) == []
    done = show_data("--dataset", name, "--skip-bad-images", "--output", "samples.png", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("samples.png: flags: 5 training and 1 test images of 28x28 pixels, RGB; ")


def test_no_display_is_told_before_data_are_read(cwd: Path) -> None:
    done = show_data(cwd=cwd)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: matplotlib cannot open a window: its backend is agg, ")
    assert done.stderr.endswith("; write the picture to a file: --output FILE\n")
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--dataset", "digit"),
            "unknown data set 'digit'; did you mean digits? "
            "(there are: mnist, fashion_mnist, kmnist, digits, folder:DIR, arrays:DIR)",
        ),
        (("--image-size", "0"), "image-size is 0; it must be 1 or more pixels"),
        (("--seed", "-1"), "seed is -1; it must be from 0 to 2^63 - 1"),
        (("--output", "."), ". is a directory; name the picture's file, as picture.png"),
        (
            ("--output", "samples.doc"),
            "a picture cannot be written to samples.doc: "
            "its suffix must be one of .jpeg, .jpg, .pdf, .png, .svg, .webp",
        ),
    ],
)
def test_wrong_use_is_told(flags: tuple[str, ...], message: str, cwd: Path) -> None:
    done = show_data(*flags, cwd=cwd)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    assert list(cwd.iterdir()) == []


def test_data_that_cannot_be_had_are_an_error(cwd: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    proxies = {"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": ""}
    done = run_impatient("launch/show_data.py", "--output", "samples.png", cwd=cwd, **proxies)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-2].startswith("error: MNIST could not be had: ")
    assert done.stderr.endswith("; --dataset digits needs no network.\n")
    assert "Traceback" not in done.stderr
    assert not (cwd / "samples.png").exists()


def test_help_comes_before_slow_packages(cwd: Path) -> None:
    code = f"""
import json, runpy, sys
runpy.run_path({str(COMMAND)!r})
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    done = run([sys.executable, "-c", code], cwd, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) & {"matplotlib", "sklearn", "torch", "torchvision", "mlflow"} == set()
