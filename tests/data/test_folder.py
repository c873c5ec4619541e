import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.errors import DataError
from mlp_dist.core.image import decode_image
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data import folder
from mlp_dist.data.datasets import read_dataset
from mlp_dist.data.image_set import Dataset, ImageSet


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


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


def read_folder(directory: Path, *, image_size: int = 28, skip_bad_images: bool = False) -> Dataset:
    return read_dataset(
        f"folder:{directory}", Path("unused"), image_size=image_size, skip_bad_images=skip_bad_images
    )


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


def write_bad(root: Path) -> None:
    (root / "mid" / "bad.png").write_bytes(b"")
    (root / "dark" / "text.jpg").write_text("hello")
    cut = root / "dark" / "0.png"
    cut.write_bytes(cut.read_bytes()[:60])


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_bad(write_folder(tmp_path, CLASSES))
    messages = []
    for _ in range(2):
        with pytest.raises(DataError) as raised:
            read_folder(tmp_path)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    head, *lines = messages[0].splitlines()
    assert head == "3 of 26 images cannot be read; remove them, or leave them out with --skip-bad-images:"
    assert [line.split(": the ")[0].split(": 5 bytes are not ")[0] for line in lines] == [
        f"  {tmp_path}/dark/0.png",
        f"  {tmp_path}/dark/text.jpg",
        f"  {tmp_path}/mid/bad.png",
    ]
    assert lines[2].startswith(f"  {tmp_path}/mid/bad.png: the image is empty")


def test_those_of_both_parts_are_named_together(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_bad(write_folder(tmp_path / part, CLASSES, number=2))
    with pytest.raises(DataError, match=r"^6 of 16 images cannot be read; remove them, ") as raised:
        read_folder(tmp_path)
    assert len(str(raised.value).splitlines()) == 7


def test_bad_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bad(write_folder(tmp_path, CLASSES))
    digests = set()
    for _ in range(2):
        data = read_folder(tmp_path, skip_bad_images=True)
        digests.add(data.digest())
        assert len(data.train) + len(data.test) == 23
        assert torch.bincount(torch.cat([data.train.labels, data.test.labels])).tolist() == [7, 8, 8]
        captured = capsys.readouterr()
        assert captured.out == ""
        head, *lines = captured.err.splitlines()
        assert head == "3 of 26 images cannot be read and are left out:"
        assert [line.split(":")[0] for line in lines] == [
            f"  {tmp_path}/{name}" for name in ("dark/0.png", "dark/text.jpg", "mid/bad.png")
        ]
    assert len(digests) == 1
    for path in (tmp_path / "mid/bad.png", tmp_path / "dark/text.jpg", tmp_path / "dark/0.png"):
        path.unlink()
    assert read_folder(tmp_path, skip_bad_images=True).digest() in digests
    assert capsys.readouterr().err == ""


def test_a_class_or_a_part_left_without_an_image_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "all", CLASSES, number=1)
    (tmp_path / "all" / "light" / "0.png").write_bytes(b"x")
    with pytest.raises(
        DataError, match=f"{tmp_path}/all has no image to train on in the folders light; each"
    ):
        read_folder(tmp_path / "all", skip_bad_images=True)
    write_folder(tmp_path / "parts" / "train", CLASSES)
    write_folder(tmp_path / "parts" / "test", {"mid": 1}, number=1)
    (tmp_path / "parts/test/mid/0.png").write_bytes(b"x")
    with pytest.raises(DataError, match=f"{tmp_path}/parts/test has no image that can be read"):
        read_folder(tmp_path / "parts", skip_bad_images=True)


def test_a_file_that_is_removed_between_listing_and_reading_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, CLASSES)

    def decode_after_removal(*arguments: Any) -> object:
        (tmp_path / "mid" / "3.png").unlink(missing_ok=True)
        return decode(*arguments)

    decode = folder._decode
    monkeypatch.setattr(folder, "_decode", decode_after_removal)
    with pytest.raises(DataError, match=f"\n  {tmp_path}/mid/3.png: No such file or directory$"):
        read_folder(tmp_path)
    data = read_folder(tmp_path)
    assert len(data.train) + len(data.test) == 23


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, CLASSES)
    (tmp_path / "mid" / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        DataError, match=f"^1 of 25 .*\n  {tmp_path}/mid/link.png: No such file or directory$"
    ):
        read_folder(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, CLASSES)

    def scandir(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=f"^cannot read {tmp_path}/dark: Permission denied$"):
        folder.read_folder(tmp_path)


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


def test_what_tools_leave_is_neither_class_nor_image(tmp_path: Path) -> None:
    write_folder(tmp_path, CLASSES)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / "mid" / name).mkdir()
        (tmp_path / "mid" / name / "0.png").write_bytes(b"no image")
    (tmp_path / "mid" / "._0.png").write_bytes(b"no image")
    (tmp_path / "mid" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "mid" / "pipe.png")
    data = read_folder(tmp_path)
    assert (data.classes, len(data.train) + len(data.test)) == (tuple(CLASSES), 24)


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", CLASSES)
    (tmp_path / "linked").mkdir()
    for name in CLASSES:
        (tmp_path / "linked" / name).symlink_to(tmp_path / "elsewhere" / name)
    # One that leads back is not followed for ever.
    (tmp_path / "elsewhere" / "mid" / "back").symlink_to(tmp_path / "elsewhere")
    linked, own = read_folder(tmp_path / "linked"), read_folder(tmp_path / "elsewhere")
    assert linked.digest() == own.digest()
    assert len(linked.train) + len(linked.test) == 24


# Sizes and colours


def test_colour_images_of_another_size(tmp_path: Path) -> None:
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 51))):
        (tmp_path / name).mkdir()
        for index in range(7):
            Image.new("RGB", (32, 32), colour).save(tmp_path / name / f"{index}.png")
    data = read_folder(tmp_path, image_size=32)
    assert data.train.images.shape == (12, 3, 32, 32)
    assert (data.image.height, data.image.width, data.image.channels) == (32, 32, 3)
    assert data.image.mean == (0.5, 0.0, 0.6)
    red = data.train.images[data.train.labels == 1]
    assert red.float().mean((0, 2, 3)).tolist() == [255, 0, 51]


@pytest.mark.parametrize("image_size", [16, 28, 40])
def test_sizes_and_formats_are_mixed(tmp_path: Path, image_size: int) -> None:
    paths = []
    for name in "ab":
        (tmp_path / name).mkdir()
        for index, suffix in enumerate(("png", "jpg", "JPEG", "gif", "bmp", "webp", "tif", "TIFF")):
            pixels = np.random.default_rng(index).integers(0, 256, (20 + 9 * index, 50, 3), dtype=np.uint8)
            paths.append(tmp_path / name / f"{index}.{suffix}")
            Image.fromarray(pixels).save(paths[-1])
    data = read_folder(tmp_path, image_size=image_size)
    spec = ImageSpec(image_size, image_size, 3, (0.0,) * 3, (1.0,) * 3)
    expected = {decode_image(path.read_bytes(), spec).numpy().tobytes() for path in paths}
    both = torch.cat([data.train.images, data.test.images])
    assert {image.numpy().tobytes() for image in both} == expected
    assert len(both) == 16


def test_gray_files_of_a_colour_folder_are_what_serving_makes_of_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    gray = Image.fromarray(random.integers(0, 256, (40, 33), dtype=np.uint8))
    half_clear = Image.merge("LA", (gray, gray.rotate(180)))
    wide = Image.fromarray(random.integers(0, 65536, (40, 33), dtype=np.uint16))
    floats = Image.fromarray(random.uniform(-9, 300, (40, 33)).astype(np.float32))
    (tmp_path / "a").mkdir()
    files = {"l.png": gray, "la.png": half_clear, "one.png": gray.convert("1"), "p.gif": gray.convert("P")}
    for name, image in {**files, "i16.png": wide, "f.tiff": floats}.items():
        image.save(tmp_path / "a" / name)
    gray.save(tmp_path / "a" / "transparent.png", transparency=7)
    (tmp_path / "b").mkdir()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "b" / "0.png")
    data = read_folder(tmp_path, image_size=24)
    spec = ImageSpec(24, 24, 3, (0.0,) * 3, (1.0,) * 3)
    expected = {decode_image(path.read_bytes(), spec).numpy().tobytes() for path in tmp_path.glob("a/*")}
    both = torch.cat([data.train.images, data.test.images]), torch.cat([data.train.labels, data.test.labels])
    assert {image.numpy().tobytes() for image in both[0][both[1] == 0]} == expected
    # The GIF has the pixels of the first PNG.
    assert len(expected) == 6


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    write_folder(tmp_path, CLASSES, number=50)
    monkeypatch.setattr(folder, "_num_threads", lambda files: threads)
    data = read_folder(tmp_path)
    assert [values_of(data.train, label) for label in range(3)] == [
        [value] * 43 for value in CLASSES.values()
    ]


def test_large_files_are_decoded_on_all_cores_and_small_ones_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))

    def files(size: int) -> list[folder.ImageFile]:
        status = os.stat_result((0, 0, 0, 0, 0, 0, size, 0, 0, 0))
        return [folder.ImageFile("a", 0, status), folder.ImageFile("b", 0, status)]

    assert [folder._num_threads(files(size)) for size in (0, 500, 10_000, 10**6)] == [1, 1, 5, 12]
    assert folder._num_threads([]) == 1


# The split


def test_one_image_in_seven_of_each_class_is_held_out(tmp_path: Path) -> None:
    numbers = {"a": 1, "b": 2, "c": 4, "d": 7, "e": 20, "f": 28}
    for value, (name, number) in enumerate(numbers.items()):
        write_folder(tmp_path, {name: 40 * value}, number=number)
    data = read_folder(tmp_path)
    held_out = torch.bincount(data.test.labels, minlength=6).tolist()
    assert held_out == [0, 0, 1, 1, 3, 4]
    assert torch.bincount(data.train.labels, minlength=6).tolist() == [1, 2, 3, 6, 17, 24]
    assert read_folder(tmp_path).digest() == data.digest()
    for label in range(6):
        values = values_of(data.train, label) + values_of(data.test, label)
        assert values == [min(40 * label, 250)] * len(values)
    # Those of the other classes stay the same whatever is added to one.
    Image.new("L", (28, 28), 200).save(tmp_path / "f" / "new.png")
    again = read_folder(tmp_path)
    for label in range(5):
        members = [each.test.images[each.test.labels == label].flatten(1).tolist() for each in (again, data)]
        assert sorted(members[0]) == sorted(members[1])


def test_at_least_one_image_is_held_out_of_the_largest_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 20}, number=1)
    write_folder(tmp_path, {"b": 90}, number=3)
    write_folder(tmp_path, {"c": 180}, number=2)
    data = read_folder(tmp_path)
    assert (sorted(data.train.labels.tolist()), data.test.labels.tolist()) == ([0, 1, 1, 2, 2], [1])


@pytest.mark.parametrize("parts", [True, False])
def test_the_first_images_are_of_all_classes(parts: bool, tmp_path: Path) -> None:
    if parts:
        write_folder(tmp_path / "test", CLASSES, number=12)
    write_folder(tmp_path / "train" if parts else tmp_path, CLASSES, number=84)
    data = read_folder(tmp_path)
    for part in (data.train, data.test):
        assert set(part.labels[:20].tolist()) == {0, 1, 2}


def test_one_image_a_class_cannot_be_split(tmp_path: Path) -> None:
    write_folder(tmp_path, CLASSES, number=1)
    with pytest.raises(
        DataError, match=f"^{tmp_path} holds fewer than two images in every class, .*; add images"
    ):
        read_folder(tmp_path)


def test_a_training_part_alone_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", CLASSES)
    with pytest.raises(DataError, match=f"{tmp_path} has a folder train but none named test; it needs both"):
        read_folder(tmp_path)


def test_files_of_other_kinds_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path, CLASSES)
    for name in ("a.heic", "b.heic", "notes.txt", ".hidden", "LICENSE"):
        (tmp_path / "mid" / name).touch()
    assert len(read_folder(tmp_path).train) == 21
    said = capsys.readouterr().err
    assert said.startswith(f"note: in {tmp_path} files of other kinds than PNG, JPEG, ")
    assert said.endswith(" are left out: 2 .heic, 1 .txt, 1 LICENSE\n")


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_a_name_that_cannot_be_written_out(name: bytes, tmp_path: Path) -> None:
    write_folder(tmp_path, CLASSES)
    (tmp_path / "mid").rename(tmp_path / os.fsdecode(name))
    with pytest.raises(DataError, match=r"has characters that cannot be written out; rename that folder"):
        read_folder(tmp_path)


def test_what_is_left_out_or_lacking_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "train", CLASSES)
    write_folder(tmp_path / "test", {"mid": 120})
    Image.new("L", (28, 28)).save(tmp_path / "train" / "loose.png")
    read_folder(tmp_path)
    assert capsys.readouterr().err == (
        f"note: 1 images in {tmp_path}/train lie in no class's folder and are left out\n"
        f"note: {tmp_path}/test has no image of the classes dark, light\n"
    )


def test_mlflow_s_own_folder_is_no_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {**CLASSES, "mlruns": 1})
    with pytest.raises(DataError, match=f"{tmp_path}/mlruns is where MLflow keeps runs, and no class"):
        read_folder(tmp_path)


def test_underscores_make_no_folder_disappear(tmp_path: Path) -> None:
    assert read_folder(write_folder(tmp_path, {"__a": 20, "_b": 220})).classes == ("__a", "_b")


def test_one_folder_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pets", CLASSES)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "other").mkdir()
    names = {
        read_folder(Path(path)).name for path in (f"{tmp_path}/pets", f"{tmp_path}/other/../pets", "~/pets")
    }
    assert names == {f"folder:{tmp_path}/pets"}
