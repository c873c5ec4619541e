import itertools

import numpy as np
import pytest
import torch

from mlp_dist.data.batches import INITIALIZATION, ORDER, epoch_order, generator, shares, split_validation
from mlp_dist.data.image_set import ImageSet

WORLDS = [1, 2, 3, 4, 8]
CASES = [(100, 10), (103, 10), (101, 10), (37, 100), (5, 3), (7, 1), (64, 64), (1, 1)]


def numbered(number: int) -> ImageSet:
    """Images whose pixels and label tell which one they are."""
    labels = torch.arange(number)
    return ImageSet(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels)


def batches_of(
    data: ImageSet, order: torch.Tensor, size: int, world: int
) -> list[list[tuple[list[int], int]]]:
    """For each rank its shares, as labels, and their batches' sizes."""
    return [
        [
            (data[batch[positions]].labels.tolist(), len(batch))
            for batch in torch.split(order, size)
            for positions in shares(len(batch), rank=rank, world_size=world)
        ]
        for rank in range(world)
    ]


# ImageSet


@pytest.mark.parametrize(
    "index", [torch.tensor([4, 0, 4]), slice(1, 3), torch.tensor([], dtype=torch.int64)], ids=str
)
def test_image_set_is_indexed_together(index: torch.Tensor | slice) -> None:
    part = numbered(5)[index]
    assert torch.equal(part.labels, torch.arange(5)[index])
    assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels)
    assert len(part) == len(part.labels)


def test_image_set_moves() -> None:
    moved = numbered(5).to("meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")


# Random numbers


def test_every_stream_of_every_seed_is_another() -> None:
    seeds = (0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1)
    keys = [(0,), *((seed, INITIALIZATION) for seed in seeds)]
    keys += [(seed, ORDER, epoch) for seed in seeds for epoch in range(3)]
    numbers = {key: torch.randint(2**62, (8,), generator=generator(*key)).tolist() for key in keys}
    assert numbers == {key: torch.randint(2**62, (8,), generator=generator(*key)).tolist() for key in keys}
    alike = [pair for pair in itertools.combinations(keys, 2) if {*numbers[pair[0]]} & {*numbers[pair[1]]}]
    assert alike == []


def test_streams_do_not_correlate() -> None:
    streams = [
        (0, INITIALIZATION),
        *((0, ORDER, epoch) for epoch in range(4)),
        (1, INITIALIZATION),
        (1, ORDER, 0),
    ]
    values = np.stack([torch.randn(20_000, generator=generator(*stream)).numpy() for stream in streams])
    others = np.corrcoef(values) - np.eye(len(streams))
    assert np.abs(others).max() < 0.04


def test_generators_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    epoch_order(100, seed=1, epoch=2)
    split_validation(numbered(10), 3)
    assert torch.equal(torch.get_rng_state(), before)


# epoch_order


@pytest.mark.parametrize("number", [1, 2, 100, 55_000])
def test_order_has_every_image_once(number: int) -> None:
    order = epoch_order(number, seed=3, epoch=1)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(number))


def test_order_is_a_function_of_seed_and_epoch_only() -> None:
    keys = list(itertools.product((0, 1, 7), range(5)))
    first = {key: epoch_order(1000, seed=key[0], epoch=key[1]) for key in keys}
    torch.manual_seed(99)
    torch.randn(5)
    for seed, epoch in reversed(keys):
        assert torch.equal(epoch_order(1000, seed=seed, epoch=epoch), first[seed, epoch])
    for one, other in itertools.combinations(keys, 2):
        assert (first[one] == first[other]).float().mean() < 0.02


# shares


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("number", "size"), CASES)
def test_shares_partition_every_global_batch(number: int, size: int, world: int) -> None:
    data, order = numbered(number), epoch_order(number, seed=0, epoch=0)
    expected = [order[start : start + size].tolist() for start in range(0, number, size)]
    ranks = batches_of(data, order, size, world)
    assert [len(rank) for rank in ranks] == [len(expected)] * world
    for position, batch in enumerate(expected):
        found = [rank[position][0] for rank in ranks]
        assert sorted(itertools.chain(*found)) == sorted(batch)
        assert max(map(len, found)) - min(map(len, found)) <= 1
        assert {rank[position][1] for rank in ranks} == {len(batch)}


@pytest.mark.parametrize(("number", "size"), CASES)
def test_one_process_takes_the_order_as_it_is(number: int, size: int) -> None:
    order = epoch_order(number, seed=5, epoch=2)
    (found,) = batches_of(numbered(number), order, size, 1)
    assert list(itertools.chain(*(labels for labels, _ in found))) == order.tolist()
    assert sum(total for _, total in found) == number


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("number", [1, 2, 5, 94, 100])
def test_parts_of_a_share_are_as_many_for_all_and_together_the_batch(
    number: int, world: int, parts: int
) -> None:
    positions = torch.arange(number)
    found = [shares(number, rank=rank, world_size=world, parts=parts) for rank in range(world)]
    assert {len(each) for each in found} == {parts}
    for rank, each in enumerate(found):
        whole = torch.cat([positions[part] for part in each])
        assert torch.equal(whole, positions[rank::world])
        sizes = [len(positions[part]) for part in each]
        assert max(sizes) - min(sizes) <= 1


def test_an_empty_share_has_the_images_shape() -> None:
    (positions,) = shares(2, rank=5, world_size=8)
    share = numbered(2)[positions]
    assert share.images.shape == (0, 1, 2, 2)
    assert share.labels.shape == (0,)


# split_validation


@pytest.mark.parametrize(("number", "val_size"), [(100, 10), (60_000, 5000), (10, 0), (10, 9), (10, 10)])
def test_split_is_disjoint_and_complete(number: int, val_size: int) -> None:
    labels = torch.arange(number)
    train, val = split_validation(ImageSet(labels.view(-1, 1, 1, 1), labels), val_size)
    assert (len(train), len(val)) == (number - val_size, val_size)
    assert torch.equal(torch.cat([train.labels, val.labels]).sort().values, labels)
    assert torch.equal(train.images.flatten(), train.labels)
    assert torch.equal(val.images.flatten(), val.labels)


def test_split_depends_on_the_two_numbers_alone() -> None:
    first = split_validation(numbered(200), 20)[1].labels
    torch.manual_seed(99)
    again = split_validation(numbered(200), 20)[1].labels
    larger = split_validation(numbered(200), 40)[1].labels
    assert torch.equal(first, again)
    assert set(first.tolist()) < set(larger.tolist())
    assert first.tolist() != sorted(first.tolist())


def test_validation_has_every_class_of_digits_that_are_sorted() -> None:
    labels = torch.arange(10).repeat_interleave(60)
    _, val = split_validation(ImageSet(labels.view(-1, 1, 1, 1), labels), 100)
    assert torch.bincount(val.labels, minlength=10).min() > 0
