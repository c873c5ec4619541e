import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mlp_dist.config import check_dataset_name
from mlp_dist.core.errors import DataError, UsageError
from mlp_dist.data.arrays import StoredSet, read_arrays
from mlp_dist.data.datasets import read_dataset

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 200, (70, 28, 28), dtype=np.uint8)
LABELS = np.arange(70, dtype=np.int16) % 5


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set/train_images.npy", IMAGES[:60])
    np.save(tmp_path / "set/train_labels.npy", LABELS[:60])
    np.save(tmp_path / "set/test_images.npy", IMAGES[60:, None])
    np.save(tmp_path / "set/test_labels.npy", LABELS[60:].astype(np.uint8))
    return tmp_path / "set"


@pytest.mark.parametrize("most", [0, 60 * 784 - 1])
def test_parts_on_disk_and_in_memory_are_the_same_data(directory: Path, most: int) -> None:
    data = read_arrays(directory, most_in_memory=most)
    assert [isinstance(part, StoredSet) for part in (data.train, data.test)] == [True, most == 0]
    assert (data.name, data.title, data.classes) == (f"arrays:{directory}", "set", tuple("01234"))
    for part, rows in ((data.train, slice(60)), (data.test, slice(60, None))):
        assert np.array_equal(part.images.numpy(), IMAGES[rows, None])
        assert np.array_equal(part.labels.numpy(), LABELS[rows])
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
    values = IMAGES[:60] / 255
    assert data.image.mean == (pytest.approx(values.mean(), abs=5.1e-5),)
    assert data.image.std == (pytest.approx(values.std(), abs=5.1e-5),)
    in_memory = read_arrays(directory)
    assert (data.digest(), data.image) == (in_memory.digest(), in_memory.image)


def test_rgb_images_and_class_names(directory: Path) -> None:
    for part, number in (("train", 60), ("test", 10)):
        images = np.full((number, 3, 28, 28), 51, np.uint8)
        images[:, 1] = 255
        np.save(directory / f"{part}_images.npy", images)
    (directory / "classes.json").write_text(json.dumps(["a", "b", "c", "d", "e", "never"]))
    data = read_arrays(directory)
    assert data.classes == ("a", "b", "c", "d", "e", "never")
    assert (data.image.channels, data.image.mean, data.image.std) == (3, (0.2, 1.0, 0.2), (1.0, 1.0, 1.0))


def test_name_of_the_data_set(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory.parent)
    assert read_dataset("arrays:set", Path("unused")).name == f"arrays:{directory}"
    check_dataset_name("arrays:set")
    with pytest.raises(UsageError, match="folder:DIR, arrays:DIR"):
        check_dataset_name("arrays:")
    with pytest.raises(DataError, match="/nowhere is not a directory; arrays:DIR needs train_images"):
        read_dataset("arrays:nowhere", Path("unused"))


def test_file_that_changes_later_is_reported(directory: Path) -> None:
    part = read_arrays(directory, most_in_memory=0).train
    np.save(directory / "train_images.npy", IMAGES[:50])
    with pytest.raises(DataError, match=f"^{directory}/train_images.npy has changed since the training sta"):
        part[torch.arange(3)]


def replaced(name: str, array: np.ndarray) -> Callable[[Path], object]:
    return lambda directory: np.save(directory / name, array)


INVALID: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: (path / "test_labels.npy").unlink(),
        "cannot read {}/test_labels.npy: No such file or directory$",
    ),
    "truncated": (
        lambda path: (path / "train_images.npy").write_bytes((path / "train_images.npy").read_bytes()[:-1]),
        "{}/train_images.npy is damaged or not an array",
    ),
    "pickled": (
        lambda path: np.save(path / "train_labels.npy", np.array([{}]), allow_pickle=True),
        "{}/train_labels.npy is damaged or not an array",
    ),
    "floats": (
        replaced("train_images.npy", IMAGES[:60] / 255),
        r"{}/train_images.npy holds float64 of shape \(60, 28, 28\); images must be uint8 of shape",
    ),
    "size": (
        replaced("test_images.npy", np.zeros((10, 32, 32), np.uint8)),
        "{}/test_images.npy holds images of 32x32 pixels, not 28x28; use --image-size 32$",
    ),
    "numbers": (
        replaced("train_labels.npy", LABELS[:59]),
        "{}/train_images.npy holds 60 images and {}/train_labels.npy 59 labels",
    ),
    "negative": (
        replaced("train_labels.npy", LABELS[:60] - 1),
        "{}/train_labels.npy has the label -1, but the 5 classes are 0 to 4$",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_rejects_invalid_arrays(directory: Path, case: str) -> None:
    spoil, message = INVALID[case]
    spoil(directory)
    with pytest.raises(DataError, match="^" + message.replace("{}", str(directory))):
        read_arrays(directory)
