import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ImageSpec, ModelSpec
from mlp_dist.data import arrays, batches
from mlp_dist.data.arrays import ImageSet, StoredSet
from mlp_dist.data.batches import (
    INITIALIZATION,
    ORDER,
    epoch_order,
    generator,
    prefetch,
    shares,
    split_validation,
    training_order,
)
from mlp_dist.data.evaluate import loss_and_correct, predict

NUMBER = 30_000


def numbered(number: int) -> ImageSet:
    """uint8 images of 4x4 pixels; the first three pixels and the label identify each."""
    images = torch.randint(0, 256, (number, 1, 4, 4), dtype=torch.uint8, generator=generator(0))
    for place in range(3):
        images[:, 0, 0, place] = torch.arange(number) // 256**place % 256
    return ImageSet(images, torch.arange(number))


# Random numbers


def test_every_stream_of_every_seed_is_different() -> None:
    seeds = (0, 1, 2**32, 2**32 + 1, 2**63 - 1)
    keys = [(0,), *((seed, INITIALIZATION) for seed in seeds)]
    keys += [(seed, ORDER, epoch) for seed in seeds for epoch in range(3)]
    before = torch.get_rng_state()
    numbers = {key: {*torch.randint(2**62, (8,), generator=generator(*key)).tolist()} for key in keys}
    assert not any(one & other for one, other in itertools.combinations(numbers.values(), 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_are_the_same_in_every_version() -> None:
    assert epoch_order(8, seed=3, epoch=1).tolist() == [2, 5, 6, 1, 4, 0, 7, 3]
    assert split_validation(numbered(200), 4)[1].labels.tolist() == [76, 81, 183, 140]


# Orders


def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(1000, seed=seed, epoch=epoch) for seed in (0, 7) for epoch in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).float().mean() < 0.02


@pytest.mark.parametrize(("number", "world", "parts"), [(100, 1, 1), (1, 2, 3), (5, 3, 3), (100, 8, 3)])
def test_shares_partition_every_global_batch(number: int, world: int, parts: int) -> None:
    positions = torch.arange(number)
    for rank in range(world):
        found = shares(number, rank=rank, world_size=world, parts=parts)
        assert torch.equal(torch.cat([positions[part] for part in found]), positions[rank::world])
        sizes = [len(positions[part]) for part in found]
        assert len(sizes) == parts
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("number", "val_size"), [(60_000, 5000), (10, 0)])
def test_split_is_disjoint_and_complete(number: int, val_size: int) -> None:
    train, val = split_validation(numbered(number), val_size)
    assert (len(train), len(val)) == (number - val_size, val_size)
    assert torch.equal(torch.cat([train.labels, val.labels]).sort().values, torch.arange(number))


# Sets on disk


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 10 images of 16 bytes, windows of 2,560, reads of 1,000."""
    monkeypatch.setattr(batches, "BLOCK_BYTES", 160)
    monkeypatch.setattr(batches, "WINDOW_BYTES", 40_960)
    monkeypatch.setattr(arrays, "WINDOW_BYTES", 40_960)
    monkeypatch.setattr(batches, "_READ_BYTES", 16_000)


@pytest.fixture(scope="module")
def held() -> ImageSet:
    return numbered(NUMBER)


@pytest.fixture
def stored(held: ImageSet, tmp_path: Path) -> StoredSet:
    np.save(tmp_path / "images.npy", held.images.numpy())
    return StoredSet(tmp_path / "images.npy", tuple(held.images.shape), torch.arange(NUMBER), held.labels)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_set_on_disk_has_the_order_of_one_in_memory(stored: StoredSet, held: ImageSet) -> None:
    for part, expected in zip(split_validation(stored, 2500), split_validation(held, 2500), strict=True):
        assert isinstance(part, StoredSet)
        order = training_order(part, seed=1, epoch=2)
        assert torch.equal(order, training_order(expected, seed=1, epoch=2))
        for found, chunk in zip(prefetch(part, order.split(700)), order.split(700), strict=True):
            assert torch.equal(found.images, expected[chunk].images)
            assert torch.equal(found.labels, expected[chunk].labels)
    assert readers() == []


@pytest.mark.usefixtures("small_blocks")
def test_order_of_a_large_set_on_disk(stored: StoredSet, held: ImageSet) -> None:
    order = training_order(stored, seed=1, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(NUMBER))
    assert torch.equal(order, training_order(stored, seed=1, epoch=0))
    for seed, epoch in ((2, 0), (1, 1)):
        assert (order == training_order(stored, seed=seed, epoch=epoch)).float().mean() < 0.01
    window = order[:2560]
    # Its images come from few blocks from everywhere, and neighbours are separated.
    assert 256 <= len((window // 10).unique()) <= 2 * 257
    assert torch.histc(window.double(), 10, 0, NUMBER).min() > 0.04 * 2560
    assert ((window[1:] - window[:-1]).abs() == 1).float().mean() < 0.01
    train, val = split_validation(stored, 2500)
    expected = split_validation(held, 2500)
    assert torch.equal(train.labels, expected[0].labels.sort().values)
    assert torch.equal(val.labels, expected[1].labels.sort().values)
    assert torch.equal(train.images, held[train.labels].images)


def test_set_on_disk_is_evaluated_as_one_in_memory(stored: StoredSet, held: ImageSet) -> None:
    spec = ImageSpec(height=4, width=4, channels=1, mean=(0.5,), std=(0.5,))
    model = build_model(ModelSpec((16, 10)), generator=generator(0))
    held = ImageSet(held.images, held.labels % 10)
    stored = StoredSet(stored.path, stored.shape, stored.rows, held.labels)
    logits = predict(model, held.images, spec)
    assert torch.equal(predict(model, stored, spec), logits)
    expected = torch.nn.functional.cross_entropy(logits.double(), held.labels, reduction="sum").item()
    correct = (logits.argmax(dim=1) == held.labels).sum().item()
    for part in (stored, held):
        assert loss_and_correct(model, part, spec).tolist() == [pytest.approx(expected, rel=1e-6), correct]


@pytest.mark.gpu
def test_prefetch_to_a_gpu(stored: StoredSet, held: ImageSet) -> None:
    [found] = prefetch(stored.to("cuda"), [torch.arange(50, device="cuda")])
    assert found.images.is_cuda
    assert torch.equal(found.images.cpu(), held.images[:50])
    assert torch.equal(found.labels.cpu(), held.labels[:50])
