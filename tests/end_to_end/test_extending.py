"""The diffs in docs/extending.md are applied to a copy of the checkout and trained."""

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.checkouts import copy_checkout
from tests.helpers.launching import ROOT, environment, run

PAGE = (ROOT / "docs/extending.md").read_text()
_SECTION = r"\n## (An? [\w ]+)\n.*?(```diff\n.*?```\n\n```\w*\n.*?```)"
SECTIONS = dict(re.findall(_SECTION, PAGE, flags=re.DOTALL))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_letters(directory: Path) -> None:
    """Images of 3 classes; each class has its own bright row."""
    directory.mkdir(parents=True)
    source = np.random.default_rng(0)
    for name, number in (("train", 600), ("t10k", 150)):
        labels = source.integers(0, 3, number, dtype=np.uint8)
        images = source.integers(0, 60, (number, 28, 28), dtype=np.uint8)
        images[np.arange(number), 5 + 8 * labels.astype(int)] = 255
        write_idx(directory / f"{name}-images-idx3-ubyte", images)
        write_idx(directory / f"{name}-labels-idx1-ubyte", labels)


def diff_and_command(section: str) -> tuple[str, str]:
    diff, command = re.findall(r"```\w*\n(.*?)```", SECTIONS[section], flags=re.DOTALL)
    return diff, command


@pytest.mark.parametrize("section", SECTIONS)
def test_diff_applies(section: str) -> None:
    diff, _ = diff_and_command(section)
    checked = subprocess.run(
        ["git", "apply", "--check", "-"], input=diff, cwd=ROOT, text=True, capture_output=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def run_changed(section: str, checkout: Path, empty_store: Path) -> str:
    """Apply the section's diff to a new copy of the checkout and run its command; returns what it printed."""
    diff, command = diff_and_command(section)
    copy_checkout(checkout)
    shutil.copy(empty_store, checkout)
    applied = subprocess.run(["git", "apply", "-"], input=diff, cwd=checkout, text=True)
    assert applied.returncode == 0
    write_letters(checkout / "data/Letters/raw")
    # mlp_dist is installed from the original checkout.
    env = environment(PYTHONPATH=str(checkout), MLP_DIST_DATA=str(checkout / "data"))
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=checkout, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("section", "printed"),
    [
        ("A data set", "Letters: 550 training, 50 validation and 150 test images"),
        ("A model", "mnist-quick: 784-500-10"),
        ("A recipe", "mnist-wide: 784-2000-10"),
    ],
)
def test_changed_checkout_trains(section: str, printed: str, tmp_path: Path, empty_store: Path) -> None:
    output = run_changed(section, tmp_path / "checkout", empty_store)
    assert printed in output
    accuracy = float(re.findall(r'"test_accuracy": ([\d.]+)', output)[-1])
    assert accuracy > 0.6


@pytest.mark.slow
def test_an_added_option_is_a_flag_trains_and_is_recorded(tmp_path: Path, empty_store: Path) -> None:
    checkout = tmp_path / "checkout"
    values = json.loads(run_changed("An option", checkout, empty_store).splitlines()[-1])
    output = Path(values["output_dir"])
    assert json.loads((output / "config.json").read_text())["momentum"] == 0.9
    name = "momentum=0.9 lr=0.02 epochs=2 seed=0 · mnist-quick on digits"
    assert json.loads((output / "run.json").read_text())["name"] == name
    state = torch.load(output / "last.pt", weights_only=True)
    assert all("momentum_buffer" in each for each in state["optimizer"]["state"].values())
    help_page = run([sys.executable, "launch/train.py", "--help"], checkout, PYTHONPATH=str(checkout)).stdout
    assert re.search(r"--momentum X +Momentum of sgd. \(default: 0.0\)", help_page)
    wrong = run([sys.executable, "launch/train.py", "--momentum", "1"], checkout, PYTHONPATH=str(checkout))
    assert "momentum is 1.0; it must be a number, at least 0 and below 1" in wrong.stderr
