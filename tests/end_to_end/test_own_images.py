"""A folder of images, trained, packaged and served with the same commands as MNIST."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mlp_dist.core.bundle import load_bundle
from serve.server import running
from tests.helpers.launching import Trained, launch, result, run, train

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


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The default recipe on them, in an experiment that also has a run on the digits."""
    directory = tmp_path_factory.mktemp("photographs")
    write_photographs(directory / "pictures")
    result(train("--dataset", "digits", "--epochs", "1", cwd=directory))
    flags = ("--dataset", "folder:pictures", "--image-size", "32")
    steps = ("--batch-size", "10", "--lr", "0.01", "--epochs", "30")
    return Trained(directory, result(train(*flags, *steps, cwd=directory)))


def test_layer_sizes_follow_the_data(photographs: Trained) -> None:
    values = photographs.result
    assert values["dataset"] == f"folder:{photographs.directory / 'pictures'}"
    assert values["num_parameters"] == (3072 + 1) * 500 + 501 * 10
    assert values["test_accuracy"] > 0.9
    spec = load_bundle(photographs.bundle).spec
    assert spec.classes == tuple(COLOURS)
    assert (spec.image.channels, spec.image.height, spec.image.width) == (3, 32, 32)
    assert all(0.2 < mean < 0.8 for mean in spec.image.mean)


def test_server_answers_with_the_folder_names(photographs: Trained) -> None:
    packaged = result(run([sys.executable, "-m", "serve.package"], photographs.directory))
    assert packaged["run_id"] == photographs.result["run_id"]
    bundle = load_bundle(photographs.bundle)
    with running(photographs.directory / str(packaged["mar"]), bundle.golden_image) as client:
        right = 0
        for name in COLOURS:
            path = photographs.directory / "pictures" / name / "3.jpg"
            answer = client.predict(path.read_bytes())
            assert list(answer) == list(COLOURS)
            assert answer == pytest.approx(bundle.predict_proba(path)[0], abs=1e-6)
            right += max(answer, key=answer.__getitem__) == name
    assert right >= 9


def test_resume_refuses_a_changed_folder(photographs: Trained) -> None:
    flags = ("--recipe", "mnist-scratch-256-64", "--dataset", "folder:pictures", "--epochs", "1")
    directory, experiment = photographs.directory, ("--experiment", "scratch")
    values = result(train(*flags, *experiment, "--output-dir", "run", cwd=directory))
    assert values["num_parameters"] == (3 * 784 + 1) * 256 + 257 * 64 + 65 * 10
    assert values["val_accuracy"] is None
    added = directory / "pictures/sky/new.jpg"
    shutil.copy(directory / "pictures/sky/0.jpg", added)
    done = train("--resume", "--epochs", "2", "--output-dir", "run", cwd=directory)
    assert done.returncode == 1
    assert "pictures has changed since the run was started" in done.stderr
    assert "Traceback" not in done.stderr
    added.unlink()
    assert result(train("--resume", "--epochs", "2", "--output-dir", "run", cwd=directory))["epochs"] == 2


@pytest.mark.usefixtures("store_at_hand")
def test_unreadable_images_and_a_long_path(tmp_path: Path) -> None:
    pictures = tmp_path.joinpath(*(letter * 120 for letter in "abcdef")) / "pictures"
    write_photographs(pictures, number=4)
    (pictures / "sky/bad.jpg").write_text("not an image")
    (pictures / "rose/empty.png").touch()
    flags = ("--dataset", f"folder:{pictures}", "--epochs", "1")
    done = train(*flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "2 of 42 images cannot be read; remove them, or use --skip-bad-" in done.stderr
    for path in ("sky/bad.jpg", "rose/empty.png"):
        assert f"  {pictures / path}: " in done.stderr
    assert "Traceback" not in done.stderr

    launcher = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    environment = {"ACCELERATE_USE_CPU": "true"}
    done = launch(*flags, "--skip-bad-images", cwd=tmp_path, launcher=launcher, **environment)
    assert result(done)["dataset"] == f"folder:{pictures}"
    assert done.stderr.count("2 of 42 images cannot be read and are left out:") == 1
    assert done.stderr.count("bad.jpg") == 1
