import json
import sys
from pathlib import Path

import pytest

from benchmarks.pictures import EMPTY, PICTURES
from tests.helpers.launching import ROOT, Trained, run


@pytest.mark.slow
def test_drawings_lose_little_and_empty_pages_are_refused(trained: Trained, mnist_dir: Path) -> None:
    flags = ["--bundle", str(trained.bundle), "--images", "40", "--data-dir", str(mnist_dir)]
    done = run([sys.executable, "-m", "benchmarks.robustness", *flags], ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["benchmark"], result["images"]) == ("robustness", 40)
    assert list(result["rows"]) == list(PICTURES)
    assert list(result["empty"]) == list(EMPTY)
    clean, *others = result["rows"].values()
    assert clean["auto"] == clean["exact"] > 0.9
    # Of 40 images two are 0.05.
    assert all(row["auto"] >= clean["exact"] - 0.051 for row in others)
    assert sum(row["exact"] for row in others) / len(others) < 0.3
    assert result["goals"]["clean"]
    assert result["goals"]["empty"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "0"], "images is 0; it must be from 1 to 10000"),
        (["--seed", "-1"], "seed is -1; it must be 0 or more"),
    ],
)
def test_wrong_use(flags: list[str], message: str) -> None:
    done = run([sys.executable, "-m", "benchmarks.robustness", *flags], ROOT)
    assert done.returncode == 2
    assert message in done.stderr
