import itertools

import pytest
import torch

from mlp_dist.data.augment import offsets, shift

WHOLE = slice(None)


def drawn(seed: int = 0, step: int = 0, batch_size: int = 100, max_shift: int = 2) -> torch.Tensor:
    return offsets(max_shift, seed=seed, step=step, batch_size=batch_size, positions=WHOLE)


def moved_by_loops(images: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    moved = torch.empty_like(images)
    _, _, height, width = images.shape
    for number, (down, right) in enumerate(by.tolist()):
        for row, column in itertools.product(range(height), range(width)):
            source = min(max(row - down, 0), height - 1), min(max(column - right, 0), width - 1)
            moved[number, :, row, column] = images[number, :, source[0], source[1]]
    return moved


@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (5, 3, 4, 7), (3, 1, 1, 1)])
@pytest.mark.parametrize("max_shift", [0, 1, 3, 40])
def test_each_pixel_is_the_one_it_came_from(shape: tuple[int, ...], max_shift: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    by = torch.randint(-max_shift, max_shift + 1, (shape[0], 2), generator=generator)
    before = images.clone()
    moved = shift(images, by)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved, moved_by_loops(images, by))
    assert torch.equal(images, before)


def test_down_is_down_and_right_is_right() -> None:
    image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    image[0, 0, 1, 1] = 9
    moved = shift(image, torch.tensor([[1, -1]]))
    assert moved[0, 0].tolist() == [[0, 0, 0], [0, 0, 0], [9, 0, 0]]


def test_the_border_is_repeated() -> None:
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2)
    assert shift(image, torch.tensor([[1, 0]]))[0, 0].tolist() == [[1, 2], [1, 2]]
    assert shift(image, torch.tensor([[0, 1]]))[0, 0].tolist() == [[1, 1], [3, 3]]
    assert shift(image, torch.tensor([[-5, -5]]))[0, 0].tolist() == [[4, 4], [4, 4]]


def test_no_images_stay_none() -> None:
    assert shift(torch.zeros(0, 1, 4, 4, dtype=torch.uint8), drawn(batch_size=0)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_an_image_s_offset_does_not_depend_on_the_number_of_processes(world: int) -> None:
    whole = drawn(seed=3, step=7, batch_size=13)
    for rank in range(world):
        for positions in (slice(rank, 13, world), torch.arange(rank, 13, world)):
            share = offsets(2, seed=3, step=7, batch_size=13, positions=positions)
            assert torch.equal(share, whole[rank::world])


def test_offsets_are_a_function_of_seed_and_step_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    keys = list(itertools.product((0, 1, 2**40), (0, 1, 550)))
    found = {key: drawn(*key) for key in keys}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(drawn(*key), found[key]) for key in reversed(keys))
    for one, other in itertools.combinations(keys, 2):
        assert (found[one] == found[other]).float().mean() < 0.4


@pytest.mark.parametrize("max_shift", [0, 1, 3])
def test_all_offsets_are_equally_likely(max_shift: int) -> None:
    by = drawn(batch_size=20_000, max_shift=max_shift)
    assert (by.dtype, by.shape) == (torch.int64, (20_000, 2))
    side = 2 * max_shift + 1
    counts = torch.bincount((by[:, 0] + max_shift) * side + by[:, 1] + max_shift)
    assert len(counts) == side**2
    expected = 20_000 / side**2
    assert (counts - expected).abs().max() <= 5 * expected**0.5


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same() -> None:
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    by = drawn(batch_size=50)
    assert torch.equal(shift(images.cuda(), by.cuda()).cpu(), shift(images, by))
