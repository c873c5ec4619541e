"""A folder of images, trained, packaged and served with the same commands as MNIST."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from mlp_dist.core.bundle import load_bundle
from tests.helpers.calling import Call
from tests.helpers.handlers import ask_handler, load_handler
from tests.helpers.launching import Trained, result

pytestmark = pytest.mark.slow

COLOURS = {
    "amber": (255, 191, 0),
    "black cat": (12, 12, 14),
    "cyan": (0, 220, 220),
    "dusk": (70, 50, 110),
    "grass": (60, 160, 40),
    "ivory": (250, 250, 235),
    "magenta": (220, 20, 200),
    "navy": (15, 20, 120),
    "rose": (240, 140, 160),
    "sky": (120, 180, 250),
}


def write_photographs(root: Path, number: int = 14) -> None:
    """`number` noisy JPEGs of many sizes in each of ten classes."""
    for label, (name, colour) in enumerate(COLOURS.items()):
        (root / name).mkdir(parents=True)
        for index in range(number):
            draw = torch.Generator().manual_seed(1000 * label + index)
            size = (40 + 3 * index, 60 - 2 * index)
            noise = torch.randint(-25, 25, (size[1], size[0], 3), generator=draw)
            pixels = (torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / name / f"{index}.jpg")


def test_a_folder_is_trained_packaged_and_served(train_here: Call, call: Call, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    write_photographs(pictures)
    # An older run of the experiment, on other data.
    result(train_here("--recipe mnist-quick --dataset digits --epochs 1"))
    steps = "--recipe mnist-quick --batch-size 10 --lr 0.01 --epochs 30"
    values = result(train_here(f"--dataset folder:pictures --image-size 32 {steps}"))
    assert values["dataset"] == f"folder:{pictures}"
    assert values["num_parameters"] == (3072 + 1) * 500 + 501 * 10
    assert values["test_accuracy"] > 0.9
    bundle = load_bundle(Trained(tmp_path, values).bundle)
    assert bundle.spec.classes == tuple(COLOURS)
    image = bundle.spec.image
    assert (image.channels, image.height, image.width) == (3, 32, 32)
    assert all(0.2 < mean < 0.8 for mean in image.mean)

    packaged = result(call("serve.package", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db"))
    assert packaged["run_id"] == values["run_id"]
    with zipfile.ZipFile(tmp_path / str(packaged["mar"])) as archive:
        archive.extractall(tmp_path / "unpacked")
    files = [pictures / name / "3.jpg" for name in COLOURS]
    handler = load_handler(tmp_path / "unpacked")
    answers, statuses = ask_handler(handler, *({"body": bytearray(file.read_bytes())} for file in files))
    assert statuses == [200] * len(files)
    for file, answer in zip(files, answers, strict=True):
        assert list(answer) == list(COLOURS)
        assert answer == pytest.approx(bundle.predict_proba(file)[0], abs=1e-6)
    right = [max(answer, key=answer.get) == name for name, answer in zip(COLOURS, answers, strict=True)]
    assert sum(right) >= 9


def test_resume_refuses_a_changed_folder(train_here: Call, tmp_path: Path) -> None:
    write_photographs(tmp_path / "pictures")
    flags = "--recipe mnist-scratch-256-64 --dataset folder:pictures --epochs 1 --output-dir run"
    values = result(train_here(flags))
    assert values["num_parameters"] == (3 * 784 + 1) * 256 + 257 * 64 + 65 * 10
    assert values["val_accuracy"] is None
    added = tmp_path / "pictures/sky/new.jpg"
    shutil.copy(tmp_path / "pictures/sky/0.jpg", added)
    done = train_here("--resume --epochs 2 --output-dir run")
    assert done.returncode == 1
    assert "pictures has changed since the run was started" in done.stderr
    assert "Traceback" not in done.stderr
    added.unlink()
    assert result(train_here("--resume --epochs 2 --output-dir run"))["epochs"] == 2
