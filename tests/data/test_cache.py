import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.errors import DataError
from mlp_dist.data import folder
from mlp_dist.data.image_set import Dataset


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


def test_unreadable_files_are_cached_but_not_errors_of_the_disk(
    pets: Path, home: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(DataError, match=r"10 of 10 .*\n.*/cat/0.png: Input/output error"):
            read(pets)
    assert not home.exists()
    (pets / "cat" / "2.png").write_bytes(b"hello")
    for _ in range(2):
        with pytest.raises(DataError, match=f"{pets}/cat/2.png: 5 bytes are not"):
            read(pets)
    assert len(decoded) == 10


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
    number = len(list(pets.glob("*/*.png")))
    assert len(decoded) == number == len(data.train) + len(data.test)
    both = torch.cat([data.train.images, data.test.images]), torch.cat([data.train.labels, data.test.labels])
    found = sorted((int(image.max()), int(label)) for image, label in zip(*both, strict=True))
    expected = sorted(
        (int(np.asarray(Image.open(path)).max()), data.classes.index(path.parent.name))
        for path in pets.glob("*/*.png")
    )
    assert found == expected
    assert len(list(home.iterdir())) == 1
    read(pets)
    assert len(decoded) == number


# Damage


def flip_a_bit(entry: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 16
    entry.write_bytes(data)


def write_other_arrays(entry: Path) -> None:
    with entry.open("wb") as file:
        np.savez(file, facts=np.array([{"key": "x"}], dtype=object))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda entry: entry.write_bytes(entry.read_bytes()[:-50]),
    "flipped": flip_a_bit,
    "other arrays": write_other_arrays,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_replaced(
    pets: Path, home: Path, decoded: list[int], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = read(pets).digest()
    [entry] = home.iterdir()
    DAMAGES[damage](entry)
    for _ in range(2):
        assert read(pets).digest() == digest
        assert len(decoded) == 20
    assert list(home.iterdir()) == [entry]
    assert capsys.readouterr().err == ""


def savez_on_a_full_disk(file: object, **arrays: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cache_that_cannot_be_written_costs_a_line(
    pets: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(np, "savez", savez_on_a_full_disk)
    assert len(read(pets).train) == 8
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cannot cache the decoded images of {pets} (")
    assert list(home.iterdir()) == []
