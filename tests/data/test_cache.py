import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.errors import DataError
from mlp_dist.data import cache, folder
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
    """Two classes of five images each, all of which differ."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(5):
            save(tmp_path / "pets" / name / f"{index}.png", 100 * label + 10 * index)
    return tmp_path / "pets"


def read(directory: Path, image_size: int = 28) -> Dataset:
    return folder.read_folder(directory, image_size=image_size)


def entries(home: Path) -> list[Path]:
    return sorted(home.iterdir())


def test_the_second_start_decodes_nothing(pets: Path, home: Path, decoded: list[int]) -> None:
    first = read(pets)
    assert len(decoded) == 10
    [entry] = entries(home)
    written = entry.stat().st_mtime_ns
    second = read(pets)
    assert len(decoded) == 10
    assert entry.stat().st_mtime_ns == written
    assert second.digest() == first.digest()
    assert (second.image, second.classes, second.title) == (first.image, first.classes, first.title)
    assert second.train.images.is_contiguous()


def test_parts_and_colours_are_kept(tmp_path: Path, decoded: list[int]) -> None:
    for part, number in (("train", 3), ("test", 2)):
        for name in "ab":
            (tmp_path / "x" / part / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (9, 9), (index, 5, 200)).save(tmp_path / "x" / part / name / f"{index}.png")
    first, second = read(tmp_path / "x", 12), read(tmp_path / "x", 12)
    assert len(decoded) == 10
    assert (len(second.train), len(second.test)) == (6, 4)
    assert second.train.images.shape == (6, 3, 12, 12)
    assert (second.digest(), second.image) == (first.digest(), first.image)


def test_bad_images_are_known_at_the_second_start(pets: Path, decoded: list[int]) -> None:
    (pets / "cat" / "2.png").write_bytes(b"hello")
    for _ in range(2):
        with pytest.raises(DataError, match=f"{pets}/cat/2.png: 5 bytes are not"):
            read(pets)
    assert len(decoded) == 10
    data = folder.read_folder(pets, skip_bad_images=True)
    assert len(data.train) + len(data.test) == 9
    assert len(decoded) == 10


def test_what_a_disk_s_error_hid_is_read_at_the_next_start(
    pets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(DataError, match=r"10 of 10 .*\n.*/cat/0.png: Input/output error"):
            read(pets)
    assert entries(home) == []
    assert len(read(pets).train) == 8


# Changes


def rewrite(pets: Path) -> None:
    path = pets / "cat" / "3.png"
    before = path.stat()
    data = bytearray(path.read_bytes())
    save(path, 31)
    assert path.read_bytes() != data
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def new_class(pets: Path) -> None:
    (pets / "eel").mkdir()
    save(pets / "eel" / "0.png", 250)


def rename_class(pets: Path) -> None:
    (pets / "dog").rename(pets / "hound")


CHANGES: dict[str, Callable[[Path], object]] = {
    "same size and mtime": rewrite,
    "touched": lambda pets: (pets / "cat" / "3.png").touch(),
    "added": lambda pets: save(pets / "dog" / "new.png", 99),
    "removed": lambda pets: (pets / "dog" / "4.png").unlink(),
    "renamed": lambda pets: (pets / "dog" / "4.png").rename(pets / "dog" / "44.png"),
    "moved": lambda pets: (pets / "dog" / "4.png").rename(pets / "cat" / "44.png"),
    "new class": new_class,
    "renamed class": rename_class,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_and_replaces_the_entry(
    pets: Path, home: Path, decoded: list[int], change: str
) -> None:
    read(pets)
    CHANGES[change](pets)
    decoded.clear()
    data = read(pets)
    number = len(list(pets.glob("*/*.png")))
    assert len(decoded) == number == len(data.train) + len(data.test)
    assert data.classes == tuple(sorted(path.name for path in pets.iterdir()))
    both = torch.cat([data.train.images, data.test.images]), torch.cat([data.train.labels, data.test.labels])
    found = sorted((int(image.max()), int(label)) for image, label in zip(*both, strict=True))
    expected = sorted(
        (int(np.asarray(Image.open(path)).max()), data.classes.index(path.parent.name))
        for path in pets.glob("*/*.png")
    )
    assert found == expected
    assert len(entries(home)) == 1
    read(pets)
    assert len(decoded) == number


def test_another_size_or_version_is_decoded_anew(
    pets: Path, home: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(pets).train.images.shape[2:] == (28, 28)
    assert read(pets, 16).train.images.shape[2:] == (16, 16)
    assert (len(decoded), len(entries(home))) == (20, 2)
    read(pets)
    read(pets, 16)
    assert len(decoded) == 20
    monkeypatch.setattr(cache, "DECODING_VERSION", cache.DECODING_VERSION + 1)
    read(pets)
    assert (len(decoded), len(entries(home))) == (30, 2)


def test_folders_of_one_name_have_entries_of_their_own(pets: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(pets, tmp_path / "more" / "pets")
    save(tmp_path / "more" / "pets" / "dog" / "9.png", 255)
    assert (len(read(pets).train), len(read(tmp_path / "more" / "pets").train)) == (8, 9)
    assert len(entries(home)) == 2


def test_the_entry_of_a_folder_that_is_gone_is_removed(pets: Path, home: Path, tmp_path: Path) -> None:
    read(pets)
    shutil.copytree(pets, tmp_path / "copy")
    shutil.rmtree(pets)
    before = entries(home)
    read(tmp_path / "copy")
    after = entries(home)
    assert set(before) & set(after) == set()
    assert len(after) == 1


# Damage


def foreign_arrays(entry: Path) -> None:
    with entry.open("wb") as file:
        np.savez(file, other=np.zeros(3))


def swapped_facts(entry: Path, **changes: object) -> None:
    with np.load(entry) as arrays:
        kept = dict(arrays)
    facts = {**json.loads(kept["facts"].tobytes()), **changes}
    kept["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with entry.open("wb") as file:
        np.savez(file, **kept)


def flipped(entry: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 255
    entry.write_bytes(data)


def pickled(entry: Path) -> None:
    with entry.open("wb") as file:
        np.savez(file, facts=np.array([{"fingerprint": "x"}], dtype=object))


def wrong_labels(entry: Path) -> None:
    with np.load(entry) as arrays:
        kept = dict(arrays)
    kept["train_labels"] = kept["train_labels"][1:]
    with entry.open("wb") as file:
        np.savez(file, **kept)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda entry: entry.write_bytes(b""),
    "text": lambda entry: entry.write_text("hello"),
    "cut": lambda entry: entry.write_bytes(entry.read_bytes()[:-50]),
    "flipped": flipped,
    "npy": lambda entry: entry.write_bytes(b"\x93NUMPY\x01\x00"),
    "foreign": foreign_arrays,
    "pickled": pickled,
    "labels": wrong_labels,
    "no bad": lambda entry: swapped_facts(entry, bad=None),
    "fingerprint": lambda entry: swapped_facts(entry, fingerprint="0" * 64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_written_anew(
    pets: Path, home: Path, decoded: list[int], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = read(pets).digest()
    [entry] = entries(home)
    DAMAGES[damage](entry)
    assert read(pets).digest() == digest
    assert len(decoded) == 20
    assert read(pets).digest() == digest
    assert len(decoded) == 20
    assert entries(home) == [entry]
    assert capsys.readouterr().err == ""


def test_every_byte_of_the_images_is_guarded(pets: Path, home: Path) -> None:
    digest = read(pets).digest()
    [entry] = entries(home)
    whole = entry.read_bytes()
    for position in range(0, len(whole), 401):
        data = bytearray(whole)
        data[position] ^= 16
        entry.write_bytes(data)
        assert read(pets).digest() == digest


def check_that_nothing_is_kept(pets: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert len(read(pets).train) == 8
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"the next start decodes {pets} again: its images cannot be kept (")
        assert reason in line


def test_a_cache_directory_that_cannot_be_made_costs_a_line(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    check_that_nothing_is_kept(pets, "Not a directory", capsys)


def test_a_full_disk_costs_a_line_and_leaves_nothing(
    pets: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    check_that_nothing_is_kept(pets, "No space left on device", capsys)
    assert entries(home) == []


def test_without_a_home_nothing_is_kept(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    check_that_nothing_is_kept(pets, "home directory", capsys)


@pytest.mark.parametrize("value", ["", "relative", None])
def test_the_cache_is_in_the_home_else(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    read(pets)
    assert len(entries(tmp_path / "me" / ".cache" / "mlp_dist" / "folders")) == 1


# Several processes


def read_in_a_process(pets: Path, ready: object, results: object) -> None:
    num_decoded = 0
    decode = folder._decode

    def count(*arguments: object) -> object:
        nonlocal num_decoded
        num_decoded += 1
        return decode(*arguments)  # type: ignore[arg-type]

    folder._decode = count  # type: ignore[assignment]
    ready.wait()  # type: ignore[attr-defined]
    results.put((folder.read_folder(pets).digest(), num_decoded))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_decodes(pets: Path, home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=read_in_a_process, args=(pets, ready, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert {digest for digest, _ in answers} == {read(pets).digest()}
    assert sum(number for _, number in answers) == 1
    assert len(entries(home)) == 1


def test_without_locks_each_process_decodes(
    pets: Path, home: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", flock)
    read(pets)
    read(pets)
    assert len(decoded) == 10
    assert len(entries(home)) == 1
