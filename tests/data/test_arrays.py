import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mlp_dist.config import check_dataset_name
from mlp_dist.core.errors import DataError, UsageError
from mlp_dist.data import arrays
from mlp_dist.data.arrays import read_arrays
from mlp_dist.data.datasets import read_dataset
from mlp_dist.data.stored import StoredSet

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 200, (70, 28, 28), dtype=np.uint8)
LABELS = np.arange(70, dtype=np.int16) % 5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mlp_dist/arrays"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set/train_images.npy", IMAGES[:60])
    np.save(tmp_path / "set/train_labels.npy", LABELS[:60])
    np.save(tmp_path / "set/test_images.npy", IMAGES[60:, None])
    np.save(tmp_path / "set/test_labels.npy", LABELS[60:].astype(np.uint8))
    return tmp_path / "set"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each pass over all images."""
    measure, names = arrays._measure, []

    def count(title: str, parts: tuple[StoredSet, StoredSet]) -> arrays.Measured:
        names.append(title)
        return measure(title, parts)

    monkeypatch.setattr(arrays, "_measure", count)
    return names


@pytest.mark.parametrize("most", [0, 60 * 784 - 1, 10**6])
def test_parts_on_disk_and_in_memory_are_the_same_data(directory: Path, most: int) -> None:
    data = read_arrays(directory, most_in_memory=most)
    assert [isinstance(part, StoredSet) for part in (data.train, data.test)] == [most < 10**6, most == 0]
    assert (data.name, data.title, data.classes) == (f"arrays:{directory}", "set", tuple("01234"))
    for part, rows in ((data.train, slice(60)), (data.test, slice(60, None))):
        assert np.array_equal(part.images.numpy(), IMAGES[rows, None])
        assert np.array_equal(part.labels.numpy(), LABELS[rows])
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
    values = IMAGES[:60] / 255
    assert data.image.mean == (pytest.approx(values.mean(), abs=5.1e-5),)
    assert data.image.std == (pytest.approx(values.std(), abs=5.1e-5),)
    plain = read_arrays(directory)
    assert (data.digest(), data.image) == (plain.digest(), plain.image)
    object.__setattr__(plain, "known_digest", "")
    assert plain.digest() == data.digest()


def test_the_data_set_is_named_by_its_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory.parent)
    assert read_dataset("arrays:set", Path("unused")).name == f"arrays:{directory}"
    check_dataset_name("arrays:set")
    with pytest.raises(UsageError, match="folder:DIR, arrays:DIR"):
        check_dataset_name("arrays:")


def test_colour_and_class_names(directory: Path) -> None:
    for part in ("train", "test"):
        number = len(np.load(directory / f"{part}_labels.npy"))
        colours = np.full((number, 3, 28, 28), 51, np.uint8)
        colours[:, 1] = 255
        np.save(directory / f"{part}_images.npy", colours)
    (directory / "classes.json").write_text(json.dumps(["a", "b", "c", "d", "e", "never"]))
    data = read_arrays(directory)
    assert data.classes == ("a", "b", "c", "d", "e", "never")
    assert (data.image.channels, data.image.mean, data.image.std) == (3, (0.2, 1.0, 0.2), (1.0, 1.0, 1.0))


def test_what_was_measured_is_kept_until_a_file_changes(
    directory: Path, cache: Path, passes: list[str]
) -> None:
    first = read_arrays(directory, most_in_memory=0)
    again = read_arrays(directory, most_in_memory=0)
    assert len(passes) == 1
    assert (again.digest(), again.image, again.classes) == (first.digest(), first.image, first.classes)
    [kept] = cache.iterdir()
    changed = IMAGES[:60].copy()
    changed[3, 4, 5] ^= 1
    np.save(directory / "train_images.npy", changed)
    other = read_arrays(directory, most_in_memory=0)
    assert other.digest() != first.digest()
    kept.write_text('{"key": ')
    assert read_arrays(directory, most_in_memory=0).digest() == other.digest()
    assert len(passes) == 3
    assert [path.name for path in directory.iterdir() if path.suffix != ".npy"] == []


def test_without_a_cache_directory_it_is_measured_each_time(
    directory: Path, tmp_path: Path, passes: list[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    digests = {read_arrays(directory, most_in_memory=0).digest() for _ in range(2)}
    assert (len(digests), len(passes)) == (1, 2)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: (path / "test_labels.npy").unlink(),
        "cannot read {}/test_labels.npy: No such file or directory$",
    ),
    "text": (
        lambda path: (path / "train_images.npy").write_text("hello"),
        "{}/train_images.npy is damaged or no array that numpy.save wrote: ",
    ),
    "cut": (
        lambda path: (path / "train_images.npy").write_bytes((path / "train_images.npy").read_bytes()[:-1]),
        "{}/train_images.npy is damaged or no array",
    ),
    "empty": (
        lambda path: (path / "train_images.npy").write_bytes(b""),
        "{}/train_images.npy is damaged or no array",
    ),
    "pickled": (
        lambda path: np.save(path / "train_labels.npy", np.array([{}]), allow_pickle=True),
        "{}/train_labels.npy is damaged or no array",
    ),
    "fortran": (
        lambda path: np.save(path / "train_images.npy", np.asfortranarray(IMAGES[:60])),
        "{}/train_images.npy is not one array in C order",
    ),
    "floats": (
        lambda path: np.save(path / "train_images.npy", IMAGES[:60] / 255),
        "{}/train_images.npy holds float64; images must be uint8, from 0 to 255$",
    ),
    "flat": (
        lambda path: np.save(path / "train_images.npy", IMAGES[:60].reshape(60, 784)),
        r"{}/train_images.npy is of shape \(60, 784\); it must be ",
    ),
    "channels": (
        lambda path: np.save(path / "train_images.npy", IMAGES[:60].reshape(30, 2, 28, 28)),
        r"{}/train_images.npy is of shape \(30, 2, 28, 28\); it must be ",
    ),
    "size": (
        lambda path: np.save(path / "test_images.npy", np.zeros((10, 32, 32), np.uint8)),
        "{}/test_images.npy holds images of 32x32 pixels, not 28x28; say --image-size 32$",
    ),
    "not square": (
        lambda path: np.save(path / "test_images.npy", np.zeros((10, 28, 32), np.uint8)),
        "{}/test_images.npy holds images of 28x32 pixels, not 28x28; they must be square$",
    ),
    "one in colour": (
        lambda path: np.save(path / "test_images.npy", np.zeros((10, 3, 28, 28), np.uint8)),
        r"{}/train_images.npy and {}/test_images.npy must be both gray or both RGB, not \(60, 28, 28\) and ",
    ),
    "numbers": (
        lambda path: np.save(path / "train_labels.npy", LABELS[:59]),
        "{}/train_images.npy holds 60 images and {}/train_labels.npy 59 labels",
    ),
    "no labels": (
        lambda path: np.save(path / "train_labels.npy", LABELS[:60] / 2),
        r"{}/train_labels.npy holds float64 of shape \(60,\); labels must be integers",
    ),
    "negative": (
        lambda path: np.save(path / "train_labels.npy", LABELS[:60] - 1),
        "{}/train_labels.npy has the label -1, but the 5 classes are 0 to 4$",
    ),
    "too few names": (
        lambda path: (path / "classes.json").write_text('["a", "b", "c"]'),
        "{}/train_labels.npy has the label 4, but the 3 classes are 0 to 2$",
    ),
    "names": (
        lambda path: (path / "classes.json").write_text('["a", "a"]'),
        r"{}/classes.json must be a list of two or more different names, not \[",
    ),
    "no JSON": (
        lambda path: (path / "classes.json").write_text("a, b"),
        "cannot read {}/classes.json: ",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_used_is_named(directory: Path, wrong: str) -> None:
    spoil, message = WRONG[wrong]
    spoil(directory)
    with pytest.raises(DataError, match="^" + message.replace("{}", str(directory))):
        read_arrays(directory)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}/nowhere is not a directory; arrays:DIR wants train_im"):
        read_dataset(f"arrays:{tmp_path}/nowhere", tmp_path)
