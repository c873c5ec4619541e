import gzip
import hashlib
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import DataError, DownloadError
from mlp_dist.core.image import decode_image, encode_png
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": RANDOM.integers(0, 10, 30, dtype=np.uint8),
    "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (10, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": RANDOM.integers(0, 10, 10, dtype=np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def measured(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = images.double() / 255
    mean, std = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3), correction=0)
    return tuple(mean.tolist()), tuple(std.tolist())


def snapshot(directory: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(directory.rglob("*"))}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    directory = tmp_path / "data" / "MNIST" / "raw"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def unpacked(raw: Path) -> Path:
    """A data directory with a small MNIST, unpacked."""
    for name, array in ARRAYS.items():
        (raw / name).write_bytes(idx(array))
    return raw.parents[1]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a small MNIST, packed; the catalog's checksums are theirs."""
    files = {f"{name}.gz": gzip.compress(idx(array)) for name, array in ARRAYS.items()}
    use_files(monkeypatch, md5=tuple(hashlib.md5(data).hexdigest() for data in files.values()))
    return files


def use_files(monkeypatch: pytest.MonkeyPatch, **values: tuple[str, ...]) -> None:
    """MNIST's files with other checksums or mirrors."""
    facts = CATALOG["mnist"]
    assert facts.files is not None
    monkeypatch.setitem(CATALOG, "mnist", replace(facts, files=replace(facts.files, **values)))


# MNIST


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_files_are_those_that_torchvision_knows(name: str) -> None:
    files = CATALOG[name].files
    assert files is not None
    source = getattr(datasets, files.directory)
    assert list(files.resources.items()) == source.resources
    assert list(files.mirrors) == source.mirrors


def test_mnist_is_read_as_torchvision_reads_it_and_nothing_is_written(mnist_dir: Path, raw: Path) -> None:
    before = snapshot(mnist_dir)
    data = read_dataset("mnist", mnist_dir)
    assert snapshot(mnist_dir) == before
    for name in ARRAYS:
        (raw / name).write_bytes(gzip.decompress((mnist_dir / "MNIST/raw" / f"{name}.gz").read_bytes()))
    from_unpacked = read_dataset("mnist", raw.parents[1])
    for train, part, again in (
        (True, data.train, from_unpacked.train),
        (False, data.test, from_unpacked.test),
    ):
        expected = datasets.MNIST(raw.parents[1], train=train, download=False)
        assert torch.equal(part.images, expected.data.unsqueeze(1))
        assert torch.equal(part.labels, expected.targets)
        assert torch.equal(again.images, part.images)
        assert torch.equal(again.labels, part.labels)
    assert data.digest() == from_unpacked.digest()
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert (data.name, data.title, data.classes) == ("mnist", "MNIST", tuple("0123456789"))


@pytest.mark.parametrize("source", ["packed", "unpacked"])
def test_small_files_are_read(raw: Path, packed: dict[str, bytes], source: str) -> None:
    for name, data in packed.items():
        path = raw / name
        (path if source == "packed" else path.with_suffix("")).write_bytes(
            data if source == "packed" else gzip.decompress(data)
        )
    before = snapshot(raw)
    read = read_dataset("mnist", raw.parents[1])
    assert snapshot(raw) == before
    arrays = list(ARRAYS.values())
    for part, images, labels in ((read.train, *arrays[:2]), (read.test, *arrays[2:])):
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(part.images[:, 0].numpy(), images)
        assert np.array_equal(part.labels.numpy(), labels)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_wrong_checksum_names_the_file_and_both_sums(
    raw: Path, packed: dict[str, bytes], name: str
) -> None:
    for each, data in packed.items():
        (raw / each).write_bytes(data)
    path = raw / f"{name}.gz"
    wrong = gzip.compress(idx(ARRAYS[name] + 1))
    path.write_bytes(wrong)
    found, expected = (hashlib.md5(data).hexdigest() for data in (wrong, packed[path.name]))
    message = (
        f"^{path} is damaged: its md5 is {found}, expected {expected}; remove it, and the next start downl"
    )
    with pytest.raises(DataError, match=message):
        read_dataset("mnist", raw.parents[1])


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("cut", [0, 3, 4, 7, -1])
def test_a_truncated_file_is_named(unpacked: Path, name: str, cut: int) -> None:
    path = unpacked / "MNIST/raw" / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        DataError, match=f"^{path} is (not an IDX file of bytes|damaged: .* asks for .*); remove it"
    ):
        read_dataset("mnist", unpacked)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00\x00\x00\x00", "is not an IDX file of bytes; remove it"),
        (b"<html>not found</html>", "is not an IDX file of bytes; remove it"),
        (
            idx(ARRAYS["train-images-idx3-ubyte"]) + b"\0",
            "is damaged: 23537 bytes, but its header asks for 23536",
        ),
        (idx(np.zeros((30, 27, 28), np.uint8)), ""),
        (idx(ARRAYS["train-labels-idx1-ubyte"]), ""),
    ],
    ids=["floats", "text", "longer", "27x28", "labels"],
)
def test_another_file_in_place_of_the_images_is_named(unpacked: Path, content: bytes, message: str) -> None:
    path = unpacked / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} .*{message}"):
        read_dataset("mnist", unpacked)


def test_a_label_without_a_class_is_an_error(unpacked: Path) -> None:
    path = unpacked / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(idx(np.arange(1, 11, dtype=np.uint8)))
    with pytest.raises(DataError, match=str(path.parent)):
        read_dataset("mnist", unpacked)


def test_numbers_of_images_and_labels_must_agree(unpacked: Path) -> None:
    (unpacked / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(DataError, match=f"{unpacked / 'MNIST/raw'} holds 10 images, but 9 labels"):
        read_dataset("mnist", unpacked)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_file_is_named(unpacked: Path, name: str) -> None:
    path = unpacked / "MNIST/raw" / name
    path.unlink()
    with pytest.raises(DataError, match=f"^cannot read {path}: No such file or directory$"):
        read_dataset("mnist", unpacked)


# Digits, and what all have in common


def test_digits_are_scikit_learn_s_made_larger() -> None:
    from sklearn.datasets import load_digits

    data, again = read_dataset("digits", Path("unused")), read_dataset("digits", Path("unused"))
    assert data.digest() == again.digest()
    assert (len(data.train), len(data.test), len(data.train) + len(data.test)) == (1437, 360, 1797)
    for part in (data.train, data.test):
        assert part.images.shape == (len(part), 1, 28, 28)
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert torch.bincount(part.labels).min() > 20
    bunch = load_digits()
    assert sorted([*data.train.labels.tolist(), *data.test.labels.tolist()]) == sorted(bunch.target.tolist())
    images = torch.cat([data.train.images, data.test.images]).double()
    small = torch.nn.functional.interpolate(images, size=(8, 8), mode="area").flatten(1) * (16 / 255)
    original = torch.cdist(small, torch.from_numpy(bunch.data)).argmin(dim=1)
    assert len(set(original.tolist())) > 1790
    assert bunch.target[original].tolist() == [*data.train.labels.tolist(), *data.test.labels.tolist()]


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_catalog_s_mean_and_std_are_the_training_images(
    name: str, request: pytest.FixtureRequest
) -> None:
    directory = Path("unused") if name == "digits" else request.getfixturevalue("mnist_dir")
    data = read_dataset(name, directory)
    assert (data.image, data.classes) == (CATALOG[name].image, CATALOG[name].classes)
    assert measured(data.train.images) == (
        pytest.approx(data.image.mean, abs=5e-5),
        pytest.approx(data.image.std, abs=5e-5),
    )
    assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("size", [8, 27, 32, 64])
def test_another_image_size_gives_what_a_file_of_the_own_size_gives_in_serving(size: int) -> None:
    own, other = read_dataset("digits", Path("unused")), read_dataset("digits", Path(), image_size=size)
    assert other.image == replace(own.image, height=size, width=size)
    for part, resized in ((own.train, other.train), (own.test, other.test)):
        assert resized.images.shape == (len(part), 1, size, size)
        assert (resized.images.dtype, resized.labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(resized.labels, part.labels)
        for index in range(0, len(part), 40):
            file = encode_png(part.images[index])
            assert torch.equal(resized.images[index], decode_image(file, other.image))


def test_the_own_image_size_changes_nothing(unpacked: Path) -> None:
    assert read_dataset("mnist", unpacked, image_size=28).digest() == read_dataset("mnist", unpacked).digest()
    assert read_dataset("mnist", unpacked, image_size=14).train.images.shape == (30, 1, 14, 14)


def test_digest_tells_every_pixel_and_label(unpacked: Path) -> None:
    data = read_dataset("mnist", unpacked)
    digests = {data.digest()}
    for part in (data.train, data.test):
        part.images[0, 0, 0, 0] += 1
        digests.add(data.digest())
        part.labels[0] += 1
        digests.add(data.digest())
    assert len(digests) == 5
    assert all(len(digest) == 64 for digest in digests)


# prepare_dataset


@pytest.mark.parametrize("form", [".gz", ""])
def test_files_that_are_there_need_no_network(
    raw: Path, packed: dict[str, bytes], serve_files: Callable, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    mirror = serve_files(packed)
    use_files(monkeypatch, mirrors=(mirror.url,))
    for name in ARRAYS:
        (raw / f"{name}{form}").touch()
    before = snapshot(raw)
    prepare_dataset("mnist", raw.parents[1])
    assert mirror.requests == []
    assert snapshot(raw) == before


@pytest.mark.parametrize("name", ["digits", "folder:somewhere"])
def test_what_needs_no_files_makes_none(tmp_path: Path, name: str) -> None:
    prepare_dataset(name, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_only_missing_files_are_downloaded(
    raw: Path, packed: dict[str, bytes], serve_files: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = serve_files(packed)
    use_files(monkeypatch, mirrors=(mirror.url,))
    there, *missing = packed
    (raw / there).write_bytes(packed[there])
    prepare_dataset("mnist", raw.parents[1])
    assert set(mirror.requests) == set(missing)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == packed
    assert len(read_dataset("mnist", raw.parents[1]).train) == 30


def test_without_a_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    use_files(monkeypatch, mirrors=(url,))
    monkeypatch.setattr("mlp_dist.data.download.PAUSES", (0.01,) * 4)
    with pytest.raises(DownloadError) as raised:
        prepare_dataset("mnist", tmp_path)
    first, second = str(raised.value).splitlines()
    assert first.startswith("MNIST could not be had: cannot download train-images-idx3-ubyte.gz (")
    assert first.endswith("refused), tried 5 times")
    for part in (
        *(f"{name}.gz" for name in ARRAYS),
        str(tmp_path / "MNIST/raw"),
        "--data-dir",
        "--dataset digits",
    ):
        assert part in second
    assert not list(tmp_path.iterdir())


def test_default_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("/there", "/there"), ("", "data")):
        monkeypatch.setenv("MLP_DIST_DATA", value)
        assert default_data_dir() == Path(expected)
    monkeypatch.delenv("MLP_DIST_DATA")
    assert default_data_dir() == Path("data")
