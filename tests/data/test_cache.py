import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.data import folder
from mlp_dist.data.arrays import Dataset


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlp_dist" / "folders"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each image file that is decoded."""
    sizes: list[int] = []
    decode = folder.decode_image

    def count(data: bytes, *arguments: object) -> torch.Tensor:
        sizes.append(len(data))
        return decode(data, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "decode_image", count)
    return sizes


def save(path: Path, value: int) -> None:
    Image.new("L", (28, 28), value).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of five different images each."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(5):
            save(tmp_path / "pets" / name / f"{index}.png", 100 * label + 10 * index)
    return tmp_path / "pets"


def read(directory: Path, image_size: int = 28) -> Dataset:
    return folder.read_folder(directory, image_size=image_size)


def test_second_start_decodes_nothing(pets: Path, home: Path, decoded: list[int]) -> None:
    first = read(pets)
    [entry] = home.iterdir()
    written = entry.stat().st_mtime_ns
    second = read(pets)
    assert len(decoded) == 10
    assert entry.stat().st_mtime_ns == written
    assert second.digest() == first.digest()
    assert (second.image, second.classes, second.title) == (first.image, first.classes, first.title)
    assert read(pets, 16).train.images.shape[2:] == (16, 16)
    read(pets)
    assert len(decoded) == 20


# Changes


def rewrite(pets: Path) -> None:
    """Same size, same mtime."""
    path = pets / "cat" / "3.png"
    before = path.stat()
    save(path, 31)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": rewrite,
    "added": lambda pets: save(pets / "dog" / "new.png", 99),
    "moved": lambda pets: (pets / "dog" / "4.png").rename(pets / "cat" / "44.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_replaces_the_entry(pets: Path, home: Path, decoded: list[int], change: str) -> None:
    read(pets)
    CHANGES[change](pets)
    decoded.clear()
    data = read(pets)
    paths = list(pets.glob("*/*.png"))
    assert len(decoded) == len(paths)
    found = [
        (int(image.max()), int(label))
        for part in (data.train, data.test)
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    expected = [(np.asarray(Image.open(path)).max(), data.classes.index(path.parent.name)) for path in paths]
    assert sorted(found) == sorted(expected)
    assert len(list(home.iterdir())) == 1


# Damage


def test_a_damaged_entry_is_replaced(
    pets: Path, home: Path, decoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    digest = read(pets).digest()
    [entry] = home.iterdir()
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 16
    entry.write_bytes(data)
    for _ in range(2):
        assert read(pets).digest() == digest
        assert len(decoded) == 20
    assert list(home.iterdir()) == [entry]
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_costs_a_line(
    pets: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir(parents=True)
    home.touch()
    assert len(read(pets).train) == 8
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cannot cache the decoded images of {pets} (")
