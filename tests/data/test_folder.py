import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.errors import DataError
from mlp_dist.core.image import decode_image
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.data.datasets import read_dataset

CLASSES = {"dark": 20, "light": 220, "mid": 120}


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_folder(root: Path, classes: dict[str, int] = CLASSES, *, number: int = 8, mode: str = "L") -> Path:
    """`number` PNG files per class, with pixels near the class's value."""
    for name, value in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.clip(value + np.random.default_rng(index).integers(-9, 10, (28, 28)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(root / name / f"{index}.png")
    return root


def read_folder(directory: Path, *, image_size: int = 28, skip_bad_images: bool = False) -> Dataset:
    return read_dataset(
        f"folder:{directory}", Path("unused"), image_size=image_size, skip_bad_images=skip_bad_images
    )


def values_of(part: ImageSet, label: int) -> list[int]:
    means = part.images[part.labels == label].double().mean((1, 2, 3))
    return [round(value / 10) * 10 for value in means.tolist()]


def all_images(data: Dataset) -> ImageSet:
    return ImageSet(
        torch.cat([data.train.images, data.test.images]), torch.cat([data.train.labels, data.test.labels])
    )


def test_gray_folder_without_parts(tmp_path: Path) -> None:
    data = read_folder(write_folder(tmp_path / "pets"))
    assert (data.name, data.title, data.classes) == (f"folder:{tmp_path / 'pets'}", "pets", tuple(CLASSES))
    assert (data.image.channels, data.image.height, data.image.width) == (1, 28, 28)
    assert (len(data.train), len(data.test)) == (21, 3)
    for label, value in enumerate(CLASSES.values()):
        assert values_of(all_images(data), label) == [value] * 8
    values = data.train.images.double() / 255
    assert data.image.mean == (pytest.approx(values.mean().item(), abs=5.1e-5),)
    assert data.image.std == (pytest.approx(values.std(correction=0).item(), abs=5.1e-5),)
    assert read_folder(tmp_path / "pets").digest() == data.digest()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_folder_with_parts(tmp_path: Path, mode: str) -> None:
    write_folder(tmp_path / "train", number=5, mode=mode)
    write_folder(tmp_path / "test", {"mid": 120, "dark": 20}, number=2, mode=mode)
    data = read_folder(tmp_path)
    assert data.classes == tuple(CLASSES)
    assert data.image.channels == {"L": 1, "RGB": 3}[mode]
    assert data.train.images.shape == (15, data.image.channels, 28, 28)
    assert [values_of(data.test, label) for label in range(3)] == [[20, 20], [], [120, 120]]
    # The first images are of all classes.
    assert set(data.train.labels[:10].tolist()) == {0, 1, 2}


# Unreadable files


def write_bad_files(root: Path) -> None:
    (root / "mid" / "bad.png").write_bytes(b"")
    (root / "dark" / "text.jpg").write_text("hello")
    truncated = root / "dark" / "0.png"
    truncated.write_bytes(truncated.read_bytes()[:60])


def test_every_unreadable_file_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_bad_files(write_folder(tmp_path / part))
    with pytest.raises(DataError) as raised:
        read_folder(tmp_path)
    head, *lines = str(raised.value).splitlines()
    assert head == "6 of 52 images cannot be read; remove them, or use --skip-bad-images:"
    assert [line.split(": the ")[0].split(": 5 bytes are not ")[0] for line in lines] == [
        f"  {tmp_path}/{part}/{name}"
        for part in ("train", "test")
        for name in ("dark/0.png", "dark/text.jpg", "mid/bad.png")
    ]
    assert lines[2].startswith(f"  {tmp_path}/train/mid/bad.png: the image is empty")


def test_skip_bad_images_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bad_files(write_folder(tmp_path))
    with monkeypatch.context() as other_process:
        other_process.setenv("RANK", "1")
        other_process.setenv("WORLD_SIZE", "2")
        read_folder(tmp_path, skip_bad_images=True)
    assert capsys.readouterr().err == ""
    data = read_folder(tmp_path, skip_bad_images=True)
    assert torch.bincount(all_images(data).labels).tolist() == [7, 8, 8]
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "3 of 26 images cannot be read and are left out:"
    for name, line in zip(("dark/0.png", "dark/text.jpg", "mid/bad.png"), lines, strict=True):
        assert line.startswith(f"  {tmp_path}/{name}:")
        (tmp_path / name).unlink()
    assert read_folder(tmp_path).digest() == data.digest()


# Layouts


def test_unusable_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/none is not a directory; folder:DIR needs one folder per"):
        read_folder(tmp_path / "none")
    write_folder(tmp_path, {"only": 1})
    with pytest.raises(DataError, match=f"{tmp_path} holds 1 folders; it needs two or more"):
        read_folder(tmp_path)
    write_folder(tmp_path / "parts" / "train", number=2)
    write_folder(tmp_path / "parts" / "test", {**CLASSES, "zebra": 3, "ant": 4}, number=2)
    with pytest.raises(DataError, match=r"/test has folders that .*/parts/train lacks: ant, zebra"):
        read_folder(tmp_path / "parts")
    write_folder(tmp_path / "mlflow", {**CLASSES, "mlruns": 1})
    with pytest.raises(DataError, match=f"{tmp_path}/mlflow/mlruns is MLflow's, not a class"):
        read_folder(tmp_path / "mlflow")


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "VALID", "Testing")])
def test_parts_have_usual_names_in_any_case(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names, start=2):
        write_folder(tmp_path / name, number=number)
    data = read_folder(tmp_path)
    assert data.val is not None
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 9, 12]
    for path in (tmp_path / names[1]).rglob("*.png"):
        path.write_bytes((tmp_path / names[0] / "dark" / "0.png").read_bytes())
    changed = read_folder(tmp_path)
    assert changed.digest() != data.digest()
    (tmp_path / names[2]).rename(tmp_path / "Examples")
    assert len(read_folder(tmp_path).test) == 1


def test_a_class_may_have_a_parts_name_and_inner_folders(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 10, "bus": 90})
    (tmp_path / "bus" / "red").mkdir()
    (tmp_path / "bus" / "0.png").rename(tmp_path / "bus" / "red" / "0.png")
    data = read_folder(tmp_path)
    assert (data.classes, len(all_images(data))) == (("bus", "train"), 16)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("A/x", "A/y", "B/x", "B/y"), "A/ holds x, y; B/ holds x, y.* if A, B are parts of one data set"),
        (("Dataset/0", "Dataset/1", "Examples/1"), "Dataset/ holds 0, 1, .*--dataset folder:{}/Dataset"),
        (("train/a/1", "train/a/2", "train/b", "test/b"), "a/ holds 1, 2, .*--dataset folder:{}/train/a"),
        (("Dataset/0", "Dataset/1"), "holds 1 folders; .*--dataset folder:{}/Dataset"),
        (("train/a", "train/b", "val/a", "valid/a"), "val and {}/valid are both the val part"),
    ],
)
def test_other_layouts_are_refused_with_what_was_probably_meant(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    write_folder(tmp_path, dict.fromkeys(folders, 9), number=2)
    with pytest.raises(DataError, match=message.format(tmp_path, tmp_path)):
        read_folder(tmp_path)


def test_class_names_are_compared_in_composed_form(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"caf\u00e9": 9, "tea": 200})
    write_folder(tmp_path / "test", {"cafe\u0301": 9}, number=2)
    data = read_folder(tmp_path)
    assert (data.classes, len(data.test)) == (("caf\u00e9", "tea"), 2)


def test_unprintable_names_are_rejected(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "mid").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(DataError, match="has unprintable characters; rename that folder"):
        read_folder(tmp_path)


def test_files_of_tools_are_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, {**CLASSES, "__a": 60})
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / "mid" / name).mkdir()
        (tmp_path / "mid" / name / "0.png").write_bytes(b"no image")
    (tmp_path / "mid" / "._0.png").write_bytes(b"no image")
    (tmp_path / "mid" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "mid" / "pipe.png")
    data = read_folder(tmp_path)
    assert (data.classes, len(all_images(data))) == (("__a", *CLASSES), 32)


def test_other_ignored_files_and_untested_classes_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", {"mid": 120})
    Image.new("L", (28, 28)).save(tmp_path / "train" / "loose.png")
    for name in ("a.heic", "b.heic", "notes.txt", ".hidden", "LICENSE"):
        (tmp_path / "train" / "mid" / name).touch()
    read_folder(tmp_path)
    kinds, *lines = capsys.readouterr().err.splitlines()
    assert kinds.startswith(f"note: ignored in {tmp_path}, because only PNG, JPEG, ")
    assert kinds.endswith(" files are read: 2 .heic, 1 .txt, 1 without an extension")
    assert lines == [
        f"note: ignored in {tmp_path}/train: 1 images outside the class folders",
        f"note: {tmp_path}/test has no images of the classes dark, light",
    ]


# Sizes and colours


def test_images_are_decoded_as_in_serving(tmp_path: Path) -> None:
    paths = []
    for index, suffix in enumerate(("png", "jpg", "JPEG", "gif", "bmp", "webp", "tif", "ppm", "TIFF")):
        pixels = np.random.default_rng(index).integers(0, 256, (20 + 9 * index, 50, 3), dtype=np.uint8)
        paths.append(tmp_path / "ab"[index % 2] / f"{index}.{suffix}")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(paths[-1])
    images = all_images(read_folder(tmp_path, image_size=40)).images
    spec = ImageSpec(40, 40, 3, (0.0,) * 3, (1.0,) * 3)
    expected = {decode_image(path.read_bytes(), spec).numpy().tobytes() for path in paths}
    assert {image.numpy().tobytes() for image in images} == expected
    assert len(images) == 9


# The split


def test_one_image_in_seven_of_each_class_is_held_out(tmp_path: Path) -> None:
    numbers = {"a": 1, "b": 2, "c": 4, "d": 7, "e": 20}
    for value, (name, number) in enumerate(numbers.items()):
        write_folder(tmp_path, {name: 40 * value}, number=number)
    data = read_folder(tmp_path)
    assert torch.bincount(data.test.labels, minlength=5).tolist() == [0, 0, 1, 1, 3]
    assert torch.bincount(data.train.labels, minlength=5).tolist() == [1, 2, 3, 6, 17]
    # Adding to one class leaves the split of the others.
    Image.new("L", (28, 28), 200).save(tmp_path / "e" / "new.png")
    test_sets = [each.test.images[each.test.labels < 4] for each in (data, read_folder(tmp_path))]
    assert sorted(test_sets[0].flatten(1).tolist()) == sorted(test_sets[1].flatten(1).tolist())
