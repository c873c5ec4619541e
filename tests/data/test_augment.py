import itertools

import pytest
import torch

from mlp_dist.core.image import normalize
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.augment import adversarial, deform, offsets, shift
from mlp_dist.data.batches import generator

GRAY = ImageSpec(height=4, width=5, channels=1, mean=(0.3,), std=(0.2,))
RGB = ImageSpec(height=4, width=5, channels=3, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))


def random_images(number: int = 12, channels: int = 1, height: int = 28, width: int = 28) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randint(256, (number, channels, height, width), dtype=torch.uint8, generator=source)


def draw_offsets(seed: int = 0, step: int = 0, batch_size: int = 100, max_shift: int = 2) -> torch.Tensor:
    return offsets(max_shift, seed=seed, step=step, batch_size=batch_size, positions=slice(None))


def deformed(
    images: torch.Tensor, strength: float = 1.0, restyle: float = 0.0, seed: int = 0, step: int = 0
) -> torch.Tensor:
    positions = slice(None)
    return deform(
        images, strength, restyle, seed=seed, step=step, batch_size=len(images), positions=positions
    )


# shift, which test_variants.py compares with torch's own parts


def test_augmentation_does_not_depend_on_the_number_of_processes() -> None:
    world = 3
    images = random_images(13)
    by, bent = draw_offsets(seed=3, step=7, batch_size=13), deformed(images, 1.0, 1.0, seed=3, step=7)
    for rank in range(world):
        for positions in (slice(rank, 13, world), torch.arange(rank, 13, world)):
            share = offsets(2, seed=3, step=7, batch_size=13, positions=positions)
            assert torch.equal(share, by[rank::world])
            part = deform(images[positions], 1.0, 1.0, seed=3, step=7, batch_size=13, positions=positions)
            torch.testing.assert_close(part, bent[rank::world], rtol=0, atol=1e-4)


# deform


def test_restyling_varies_slant_and_strokes_more_and_moves_less_than_deforming() -> None:
    stroke = torch.zeros(2000, 1, 28, 28, dtype=torch.uint8)
    stroke[:, :, 5:23, 12:15] = 255
    figures = []
    for strengths in ((1.0, 0.0), (0.0, 1.0)):
        found = deformed(stroke, *strengths)[:, 0]
        top, bottom, whole = (
            part.sum(1) @ torch.arange(28.0) / part.sum(dim=(1, 2))
            for part in (found[:, 4:12], found[:, 16:24], found)
        )
        low, high = found.sum(dim=(1, 2)).quantile(torch.tensor([0.1, 0.9]))
        figures.append(((top - bottom).std(), high / low, 1 / (whole - 13).abs().mean()))
    for before, restyled in zip(*figures, strict=True):
        assert restyled > 1.25 * before


@pytest.mark.parametrize("shape", [(12, 1, 28, 28), (5, 3, 9, 14), (0, 1, 4, 4)])
def test_deform_of_strength_0_is_the_identity(shape: tuple[int, int, int, int]) -> None:
    images = random_images(*shape)
    found = deformed(images, strength=0.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, images.float() / 255, rtol=0, atol=1e-5)


def test_deformations_differ_by_seed_step_and_place() -> None:
    images = random_images(1).expand(3, -1, -1, -1)
    found = torch.cat([deformed(images, seed=seed, step=step) for seed in (0, 1) for step in (0, 9)])
    for one, other in itertools.combinations(found, 2):
        assert (one - other).abs().mean() > 0.05


# adversarial


def random_pixels(image: ImageSpec, number: int = 6) -> torch.Tensor:
    """float32 from 0 to 1, some of them 0 or 1."""
    shape = (number, image.channels, image.height, image.width)
    return torch.rand(shape, generator=generator(0)).mul(1.4).sub(0.2).clamp(0, 1)


@pytest.mark.parametrize("image", [GRAY, RGB], ids=["gray", "rgb"])
def test_adversarial_moves_each_pixel_by_eps_within_the_range(image: ImageSpec) -> None:
    before = random_pixels(image)
    inputs = normalize(before, image)
    slopes = torch.randn(inputs.shape, generator=generator(1))
    slopes[0] = 0
    found = adversarial(inputs, lambda moved: (moved * slopes).sum(), 0.1, image)
    expected = (before.flatten(1) + 0.1 * slopes.sign()).clamp(0, 1).view_as(before)
    torch.testing.assert_close(found, normalize(expected, image))
    assert torch.equal(found[0], inputs[0])
    assert not found.requires_grad


@pytest.mark.gpu
def test_augmentation_on_a_gpu() -> None:
    images, by = random_images(50, 3), draw_offsets(batch_size=50)
    assert torch.equal(shift(images.cuda(), by.cuda()).cpu(), shift(images, by))
    whole = deformed(images.cuda())
    share = deform(images[1::3].cuda(), 1.0, seed=0, step=0, batch_size=50, positions=slice(1, 50, 3))
    torch.testing.assert_close(share, whole[1::3], rtol=0, atol=1e-3)
    inputs = normalize(random_pixels(RGB), RGB)
    found = adversarial(inputs.cuda(), lambda moved: moved.sum(), 0.1, RGB)
    torch.testing.assert_close(found.cpu(), adversarial(inputs, lambda moved: moved.sum(), 0.1, RGB))
