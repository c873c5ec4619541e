import bz2
import gzip
import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import DataError
from mlp_dist.core.image import decode_image, encode_png
from mlp_dist.data.datasets import prepare_dataset, read_dataset

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": RANDOM.integers(0, 10, 30, dtype=np.uint8),
    "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (10, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": RANDOM.integers(0, 10, 10, dtype=np.uint8),
}
TRAIN_IMAGES, *_, TEST_LABELS = ARRAYS


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


PACKED = {f"{name}.gz": gzip.compress(idx(array)) for name, array in ARRAYS.items()}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """MNIST/raw of an empty data directory."""
    directory = tmp_path / "data" / "MNIST" / "raw"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def unpacked(raw: Path) -> Path:
    """MNIST/raw with a small MNIST, not compressed."""
    for name, array in ARRAYS.items():
        (raw / name).write_bytes(idx(array))
    return raw


# MNIST


def test_mnist_equals_torchvision_and_nothing_is_written(unpacked: Path) -> None:
    before = {path: path.stat() for path in unpacked.parents[1].rglob("*")}
    data = read_dataset("mnist", unpacked.parents[1])
    for train, part in ((True, data.train), (False, data.test)):
        expected = datasets.MNIST(unpacked.parents[1], train=train, download=False)
        assert torch.equal(part.images, expected.data.unsqueeze(1))
        assert torch.equal(part.labels, expected.targets)
    assert (data.name, data.title, data.classes) == ("mnist", "MNIST", tuple("0123456789"))
    assert {path: path.stat() for path in unpacked.parents[1].rglob("*")} == before
    for name in ARRAYS:
        (unpacked / f"{name}.gz").write_bytes(PACKED[f"{name}.gz"])
        (unpacked / name).unlink()
    assert read_dataset("mnist", unpacked.parents[1]).digest() == data.digest()


DAMAGED = {
    "truncated": (".gz", PACKED[f"{TRAIN_IMAGES}.gz"][:-20]),
    "changed": (".gz", PACKED[f"{TRAIN_IMAGES}.gz"][:30] + b"\0" + PACKED[f"{TRAIN_IMAGES}.gz"][31:]),
    "text": (".gz", b"<html>not found</html>"),
    "empty": ("", b""),
    "extracted and truncated": ("", idx(ARRAYS[TRAIN_IMAGES])[:-1]),
    "27x28": ("", idx(np.zeros((30, 27, 28), np.uint8))),
    "labels": ("", idx(ARRAYS[TEST_LABELS])),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named(unpacked: Path, case: str) -> None:
    suffix, content = DAMAGED[case]
    path = unpacked / f"{TRAIN_IMAGES}{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path} is damaged \(.+\); delete it to download it again$"):
        read_dataset("mnist", unpacked.parents[1])


def test_inconsistent_files_are_rejected(unpacked: Path) -> None:
    labels = unpacked / TEST_LABELS
    labels.write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(DataError, match=f"^images and labels in {unpacked} do not match; delete them"):
        read_dataset("mnist", unpacked.parents[1])
    labels.unlink()
    with pytest.raises(DataError, match=f"does not hold MNIST's files .*, {TEST_LABELS}$"):
        read_dataset("mnist", unpacked.parents[1])


# Its relatives that torchvision reads


def integers(array: np.ndarray) -> bytes:
    """An IDX file of int32, as QMNIST's labels."""
    return struct.pack(f">HBB{array.ndim}I", 0, 12, array.ndim, *array.shape) + array.astype(">i4").tobytes()


def test_other_sets_are_read_upright_and_counted_from_0(tmp_path: Path) -> None:
    images, labels = ARRAYS[TRAIN_IMAGES][:10], np.arange(10, dtype=np.uint8)
    files = {}
    for part in ("train", "test"):
        files |= {f"emnist-letters-{part}-images-idx3-ubyte": idx(images)}
        files |= {f"emnist-letters-{part}-labels-idx1-ubyte": idx(labels + 1)}
        files |= {f"emnist-balanced-{part}-images-idx3-ubyte": idx(images)}
        files |= {f"emnist-balanced-{part}-labels-idx1-ubyte": idx(labels + 37)}
        files |= {f"qmnist-{part}-images-idx3-ubyte": idx(images)}
        files |= {f"qmnist-{part}-labels-idx2-int": integers(np.stack([labels] * 8, axis=1))}
    rows = [f"{label + 1} " + " ".join(f"{n}:{n / 128 - 1:.4f}" for n in range(256)) for label in range(10)]
    files |= {name: bz2.compress("\n".join(rows).encode()) for name in ("usps.bz2", "usps.t.bz2")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    wanted = {"emnist-letters": "abcdefghij", "emnist-balanced": "bdefghnqrt", "qmnist": "0123456789"}
    for name, classes in wanted.items():
        data = read_dataset(name, tmp_path)
        assert [data.classes[label] for label in data.train.labels] == list(classes)
        upright = images.transpose(0, 2, 1) if name.startswith("emnist") else images
        assert np.array_equal(data.test.images[:, 0], upright)
    usps = read_dataset("usps", tmp_path, image_size=16)
    assert usps.train.labels.tolist() == list(range(10))
    assert usps.train.images[0, 0].flatten().tolist() == sorted(usps.train.images[0].flatten().tolist())
    (tmp_path / "usps.bz2").write_bytes(b"BZh damaged")
    with pytest.raises(DataError, match=r"USPS's files in .* are damaged"):
        read_dataset("usps", tmp_path)


# Digits, and what all have in common


def test_digest_of_the_digits_is_the_same_in_every_version() -> None:
    assert (
        read_dataset("digits", Path("unused")).digest()
        == "56552a879ce334388a8eefc858e96a0b1d65f2bfe39a87d94428d205c3ecfa4f"
    )


@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=pytest.mark.slow)])
def test_catalog_has_the_mean_and_std_of_the_training_images(
    name: str, request: pytest.FixtureRequest
) -> None:
    directory = Path("unused") if name == "digits" else request.getfixturevalue("mnist_dir")
    data = read_dataset(name, directory)
    assert (data.image, data.classes) == (CATALOG[name].image, CATALOG[name].classes)
    values = data.train.images.double() / 255
    assert values.mean().item() == pytest.approx(data.image.mean[0], abs=5e-5)
    assert values.std(correction=0).item() == pytest.approx(data.image.std[0], abs=5e-5)
    assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == set(range(10))
    if name == "mnist":
        assert (len(data.train), len(data.test)) == (60_000, 10_000)


def test_resized_images_equal_decoded_files() -> None:
    original, other = read_dataset("digits", Path("unused")), read_dataset("digits", Path(), image_size=8)
    assert other.image == replace(original.image, height=8, width=8)
    assert torch.equal(other.train.labels, original.train.labels)
    for index in range(0, len(original.train), 40):
        expected = decode_image(encode_png(original.train.images[index]), other.image)
        assert torch.equal(other.train.images[index], expected)


# prepare_dataset


def use_small_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's MNIST has the checksums of PACKED."""
    sums = [(name, hashlib.md5(data, usedforsecurity=False).hexdigest()) for name, data in PACKED.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    monkeypatch.setattr("mlp_dist.data.datasets.PAUSES", (0.01,) * 4)


def test_files_that_exist_are_used(raw: Path, serve_files: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_mnist(monkeypatch)
    mirror = serve_files(PACKED)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [mirror.url])
    extracted = raw / "train-labels-idx1-ubyte"
    extracted.write_bytes(idx(ARRAYS[extracted.name]))
    before = extracted.stat()
    prepare_dataset("mnist", raw.parents[1])
    assert extracted.stat() == before
    assert len(read_dataset("mnist", raw.parents[1]).train) == 30
    mirror.requests.clear()
    for directory in (raw.parents[1], raw.parent, raw):
        prepare_dataset("mnist", directory)
        assert len(read_dataset("mnist", directory).train) == 30
    assert mirror.requests == []
