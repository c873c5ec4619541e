import numpy as np
import pytest
import torch

from mlp_dist.data.batches import generator
from mlp_dist.data.order import BLOCK_BYTES, WINDOW_BLOCKS, BlockOrder, Permutation


def whole(n: int, row_bytes: int = 784, *, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return BlockOrder(n, row_bytes=row_bytes, seed=seed, epoch=epoch)[:]


@pytest.mark.parametrize("n", [*range(1, 40), 63, 64, 65, 100, 255, 256, 257, 1000, 4097, 100_003])
def test_a_permutation_is_a_bijection(n: int) -> None:
    for seed in range(3):
        found = Permutation(n, generator(seed))(np.arange(n))
        assert found.dtype == np.int64
        assert np.array_equal(np.sort(found), np.arange(n))


def test_a_permutation_can_be_asked_anywhere() -> None:
    permutation = Permutation(10**12, generator(0))
    positions = np.array([0, 10**12 - 1, 5 * 10**11, 17])
    found = permutation(positions)
    assert ((found >= 0) & (found < 10**12)).all()
    assert len(set(found.tolist())) == 4
    assert np.array_equal(permutation(positions[2:]), found[2:])


def test_a_permutation_sends_every_position_everywhere_alike() -> None:
    """Chi square of (position, place) over many keys; both are 10, so 81 degrees of freedom."""
    counts, keys = np.zeros((10, 10)), 2000
    for seed in range(keys):
        counts[np.arange(10), Permutation(10, generator(seed))(np.arange(10))] += 1
    assert ((counts - keys / 10) ** 2 / (keys / 10)).sum() < 140


def test_the_orders_of_three_are_all_drawn_alike() -> None:
    drawn = [tuple(Permutation(3, generator(seed))(np.arange(3))) for seed in range(1200)]
    numbers = [drawn.count(order) for order in set(drawn)]
    assert len(numbers) == 6
    assert sum((number - 200) ** 2 / 200 for number in numbers) < 25


@pytest.mark.parametrize("row_bytes", [1, 784, 3072, 10**6])
@pytest.mark.parametrize("n", [1, 2, 255, 256, 1000, 10_497, 60_000])
def test_an_epoch_has_every_image_once(n: int, row_bytes: int) -> None:
    order = whole(n, row_bytes)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    first = whole(5000)
    torch.manual_seed(5)
    assert torch.equal(first, whole(5000))
    for other in (whole(5000, seed=1), whole(5000, epoch=1)):
        assert (other == first).float().mean() < 0.01


def test_an_order_is_given_out_in_any_portions() -> None:
    order, expected = BlockOrder(30_001, row_bytes=784, seed=3, epoch=2), whole(30_001, seed=3, epoch=2)
    for portion in (1, 999, 10_496, 40_000):
        starts = range(0, len(order), portion) if portion > 1 else (0, 30_000, 10_495, 10_496)
        for start in starts:
            assert torch.equal(order[start : start + portion], expected[start : start + portion])
    assert len(order[30_001:]) == len(order[5:5]) == 0
    with pytest.raises(ValueError, match="not in steps of 2"):
        order[::2]


def test_a_window_comes_from_few_blocks_and_its_images_are_mixed() -> None:
    n, block = 2_000_000, BLOCK_BYTES // 784
    order = whole(n)[: WINDOW_BLOCKS * block]
    touched = (order // block).unique()
    assert WINDOW_BLOCKS <= len(touched) <= 2 * WINDOW_BLOCKS
    neighbours = (order[1:] - order[:-1]).abs() == 1
    assert neighbours.float().mean() < 0.001
    # The blocks are from everywhere.
    assert torch.histc(order.double(), 10, 0, n).min() > 0.04 * len(order)


def test_a_small_set_is_shuffled_image_by_image() -> None:
    for position in (0, 77):
        places = torch.tensor([int(whole(200, epoch=epoch)[position]) for epoch in range(400)])
        assert (torch.histc(places.double(), 10, 0, 200) - 40).square().sum() / 40 < 30
