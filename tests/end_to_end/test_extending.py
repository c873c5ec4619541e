"""The differences in docs/extending.md, applied to a copy of the checkout and trained."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.checkouts import copy_checkout
from tests.helpers.launching import ROOT, environment

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/extending.md").read_text()
_SECTION = r"\n## (A [\w ]+)\n.*?(```diff\n.*?```\n\n```\w*\n.*?```)"
SECTIONS = dict(re.findall(_SECTION, PAGE, flags=re.DOTALL))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_letters(directory: Path) -> None:
    """Images of 3 classes, each bright in a row of its own."""
    directory.mkdir(parents=True)
    source = np.random.default_rng(0)
    for name, number in (("train", 600), ("t10k", 150)):
        labels = source.integers(0, 3, number, dtype=np.uint8)
        images = source.integers(0, 60, (number, 28, 28), dtype=np.uint8)
        images[np.arange(number), 5 + 8 * labels.astype(int)] = 255
        write_idx(directory / f"{name}-images-idx3-ubyte", images)
        write_idx(directory / f"{name}-labels-idx1-ubyte", labels)


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        ("A data set", "Letters: 550 training, 50 validation and 150 test images"),
        ("A model", "mnist: 784-500-10"),
        ("A recipe", "mnist-wide: 784-2000-10"),
    ],
)
def test_what_the_page_shows_can_be_applied_and_trained(
    section: str, shown: str, tmp_path: Path, empty_store: Path
) -> None:
    difference, command = re.findall(r"```\w*\n(.*?)```", SECTIONS[section], flags=re.DOTALL)
    checkout = copy_checkout(tmp_path / "checkout")
    shutil.copy(empty_store, checkout)
    applied = subprocess.run(["git", "apply", "-"], input=difference, cwd=checkout, text=True)
    assert applied.returncode == 0
    write_letters(checkout / "data/Letters/raw")
    # The environment's mlp_dist is that of the checkout that was copied.
    env = environment(PYTHONPATH=str(checkout), MLP_DIST_DATA=str(checkout / "data"))
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=checkout, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    accuracy = float(re.findall(r'"test_accuracy": ([\d.]+)', done.stdout)[-1])
    assert accuracy > 0.6
