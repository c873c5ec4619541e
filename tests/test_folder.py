from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.errors import DataError
from mlp_dist.data.dataset import Dataset, ImageSet
from mlp_dist.data.readers import read_dataset


def measured(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = images.double() / 255
    mean, std = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3), correction=0)
    return tuple(mean.tolist()), tuple(std.tolist())


def write_folder(root: Path, classes: dict[str, int], *, number: int = 8, mode: str = "L") -> Path:
    """`number` PNG files a class, whose pixels stand around the class's value."""
    for name, value in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.clip(value + np.random.default_rng(index).integers(-9, 10, (28, 28)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(root / name / f"{index}.png")
    return root


def read_folder(directory: Path) -> Dataset:
    return read_dataset(f"folder:{directory}", Path("unused"))


def values_of(part: ImageSet, label: int) -> list[int]:
    return [
        round(value / 10) * 10
        for value in part.images[part.labels == label].double().mean((1, 2, 3)).tolist()
    ]


CLASSES = {"dark": 20, "light": 220, "mid": 120}


def test_gray_folder_without_parts(tmp_path: Path) -> None:
    data = read_folder(write_folder(tmp_path / "pets", CLASSES))
    assert (data.name, data.title, data.classes) == (f"folder:{tmp_path / 'pets'}", "pets", tuple(CLASSES))
    assert (data.image.channels, data.image.height, data.image.width) == (1, 28, 28)
    assert (len(data.train), len(data.test)) == (21, 3)
    assert data.train.labels.dtype == torch.int64
    for label, value in enumerate(CLASSES.values()):
        both = values_of(data.train, label) + values_of(data.test, label)
        assert both == [value] * 8
    assert (data.image.mean, data.image.std) == (
        pytest.approx(measured(data.train.images)[0], abs=5.1e-5),
        pytest.approx(measured(data.train.images)[1], abs=5.1e-5),
    )
    assert read_folder(tmp_path / "pets").digest() == data.digest()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_folder_with_parts(tmp_path: Path, mode: str) -> None:
    write_folder(tmp_path / "train", CLASSES, number=5, mode=mode)
    write_folder(tmp_path / "test", {"mid": 120, "dark": 20}, number=2, mode=mode)
    data = read_folder(tmp_path)
    assert data.classes == tuple(CLASSES)
    assert data.image.channels == {"L": 1, "RGB": 3}[mode]
    assert data.train.images.shape == (15, data.image.channels, 28, 28)
    assert [values_of(data.test, label) for label in range(3)] == [[20, 20], [], [120, 120]]
    assert data.image.mean == pytest.approx(measured(data.train.images)[0], abs=5.1e-5)


def test_one_colour_file_makes_the_folder_colour(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 20})
    Image.new("RGB", (28, 28), (255, 0, 0)).save(tmp_path / "b" / "z.jpg")
    assert read_folder(tmp_path).image.channels == 3


@pytest.mark.parametrize("suffix", ["png", "gif", "JPEG", "bmp", "tiff"])
def test_gray_files_of_any_format_make_a_gray_folder(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        (tmp_path / name / "deep").mkdir(parents=True)
        for index in range(3):
            pixels = np.full((40, 30), 50 * index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / "deep" / f"{index}.{suffix}")
        (tmp_path / name / "notes.txt").write_text("not an image")
    data = read_folder(tmp_path)
    assert (len(data.train) + len(data.test), data.image.channels) == (6, 1)


def test_a_folder_of_one_colour_can_be_normalized(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("L", (28, 28), 51).save(tmp_path / name / f"{index}.png")
    image = read_folder(tmp_path).image
    assert (image.mean, image.std) == ((0.2,), (1.0,))


def test_the_current_directory_has_a_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_folder(tmp_path / "pets", CLASSES))
    data = read_folder(Path())
    assert (data.name, data.title) == (f"folder:{tmp_path / 'pets'}", "pets")


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, CLASSES)
    (tmp_path / "mid" / "bad.png").write_bytes(b"")
    (tmp_path / "dark" / "text.jpg").write_text("hello")
    cut = tmp_path / "dark" / "0.png"
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(DataError, match="3 of 26 images cannot be read; remove them:") as raised:
        read_folder(tmp_path)
    for line in (
        f"{tmp_path}/mid/bad.png: the image is empty",
        f"{tmp_path}/dark/text.jpg: 5 bytes are",
        f"{cut}: the",
    ):
        assert f"\n  {line}" in str(raised.value)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"{tmp_path}/none is not a directory; folder:DIR wants one folder a class"
    ):
        read_folder(tmp_path / "none")
    with pytest.raises(DataError, match=f"{tmp_path} holds 0 folders; it needs two or more, one a class"):
        read_folder(tmp_path)
    write_folder(tmp_path, {"only": 1})
    with pytest.raises(DataError, match=f"{tmp_path} holds 1 folders; it needs two or more"):
        read_folder(tmp_path)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "b").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/empty holds no PNG, .*TIFF files"):
        read_folder(tmp_path / "empty")
    write_folder(tmp_path / "empty", {"c": 1})
    with pytest.raises(DataError, match=f"{tmp_path}/empty has no image to train on in the folders a, b"):
        read_folder(tmp_path / "empty")


def test_a_class_of_the_test_part_alone_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", CLASSES, number=2)
    write_folder(tmp_path / "test", {**CLASSES, "zebra": 3, "ant": 4}, number=2)
    with pytest.raises(
        DataError, match=f"{tmp_path}/test has folders that the training part lacks: ant, zebra"
    ):
        read_folder(tmp_path)


def test_folders_that_tools_leave_are_no_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, CLASSES)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
    assert read_folder(tmp_path).classes == tuple(CLASSES)
