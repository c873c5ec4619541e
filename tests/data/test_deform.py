import itertools
import math

import pytest
import torch

from mlp_dist.data import deform as module
from mlp_dist.data.batches import DEFORMATION, generator
from mlp_dist.data.deform import deform

WHOLE = slice(None)


def images(number: int = 12, channels: int = 1, height: int = 28, width: int = 28) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    shape = (number, channels, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=source)


def deformed(pixels: torch.Tensor, strength: float = 1.0, seed: int = 0, step: int = 0) -> torch.Tensor:
    return deform(pixels, strength, seed=seed, step=step, batch_size=len(pixels), positions=WHOLE)


def ramps(number: int, size: int = 28) -> torch.Tensor:
    """Channel 0 rises to the right and channel 1 downwards: what is read there tells the place it is from."""
    values = (torch.arange(size) * 8).to(torch.uint8)
    return torch.stack([values.expand(size, size), values[:, None].expand(size, size)]).repeat(
        number, 1, 1, 1
    )


def moves(number: int, strength: float) -> torch.Tensor:
    """How far right and down of its own place each pixel is read, in pixels: (N, 2, H, W)."""
    pixels = ramps(number)
    return (deformed(pixels, strength) * 255 - pixels) / 8


@pytest.mark.parametrize("shape", [(12, 1, 28, 28), (5, 3, 9, 14), (2, 1, 1, 1), (0, 1, 4, 4)])
def test_at_strength_0_nothing_moves(shape: tuple[int, int, int, int]) -> None:
    pixels = images(*shape)
    before = pixels.clone()
    found = deformed(pixels, strength=0.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pixels.float() / 255, rtol=0, atol=1e-5)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("shape", [(12, 1, 28, 28), (5, 3, 9, 14), (2, 1, 1, 1), (0, 1, 4, 4)])
def test_values_stay_within_the_image_s(shape: tuple[int, int, int, int]) -> None:
    pixels = images(*shape)
    found = deformed(pixels, strength=3.0)
    assert found.shape == pixels.shape
    if len(pixels):
        within = (found >= pixels.min() / 255 - 1e-6) & (found <= pixels.max() / 255 + 1e-6)
        assert within.all()


def test_the_channels_of_an_image_move_together() -> None:
    pixels = images().expand(-1, 3, -1, -1)
    found = deformed(pixels)
    assert torch.equal(found[:, :1].expand_as(found), found)
    assert not torch.allclose(found, pixels.float() / 255, atol=0.1)


@pytest.mark.parametrize(
    "amounts", [(1, 0, 0, 0, 0, 0), (0, 1, -1, 0, 0, 0), (0, 0, 0, 1, 0, 0), (0, 0, 0, 0, 1, -1)]
)
def test_the_affine_map_is_the_one_its_amounts_tell(amounts: tuple[int, ...]) -> None:
    turn, wider, higher, slant, right, down = (float(amount) for amount in amounts)
    cos, sin = math.cos(turn * module.TURN), math.sin(turn * module.TURN)
    rotation = torch.tensor([[cos, -sin], [sin, cos]])
    shear = torch.tensor([[1, slant * module.SLANT], [0, 1]])
    scale = torch.tensor([wider, higher]).mul(module.SCALE).exp().diag()
    place = torch.tensor([0.3, -0.7])
    expected = rotation @ shear @ scale @ place + 2 * module.SHIFT * torch.tensor([right, down])
    (found,) = module._affine(torch.tensor([amounts], dtype=torch.float32), 1.0)
    torch.testing.assert_close(found @ torch.cat([place, torch.ones(1)]), expected)


def test_one_move_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEND", 0.0)
    monkeypatch.setattr(module, "TURN", 0.0)
    monkeypatch.setattr(module, "SCALE", 0.0)
    monkeypatch.setattr(module, "SLANT", 0.0)
    amounts = torch.rand(3, 6, generator=generator(0, DEFORMATION, 0)) * 2 - 1
    found = moves(3, 1.0)[:, :, 8:-8, 8:-8]
    expected = amounts[:, 4:] * module.SHIFT * 28
    torch.testing.assert_close(found, expected[:, :, None, None].expand_as(found), rtol=0, atol=1e-3)


def test_bends_have_the_size_and_the_smoothness_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TURN", "SCALE", "SLANT", "SHIFT"):
        monkeypatch.setattr(module, name, 0.0)
    found = moves(3000, 1.0)[:, :, 4:-4, 4:-4]
    expected = module.BEND * 28
    deviations = found.std(dim=0)
    assert (deviations / expected - 1).abs().max() < 0.08
    assert found.mean(dim=0).abs().max() < 0.1 * expected
    # Noise that a Gaussian of width s has smoothed is correlated as exp(-d^2 / 4 s^2).
    for distance in (3, 8, 14):
        one, other = found[:, :, 10, 2], found[:, :, 10, 2 + distance]
        correlation = (one * other).mean() / (one.std() * other.std())
        smoothness = module.SMOOTHNESS * 28
        assert correlation.item() == pytest.approx(math.exp(-((distance / smoothness) ** 2) / 4), abs=0.06)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_an_image_is_deformed_alike_however_many_processes_there_are(world: int) -> None:
    pixels = images(13)
    whole = deformed(pixels, seed=3, step=7)
    for rank in range(world):
        for positions in (slice(rank, 13, world), torch.arange(rank, 13, world)):
            share = deform(pixels[positions], 1.0, seed=3, step=7, batch_size=13, positions=positions)
            torch.testing.assert_close(share, whole[rank::world], rtol=0, atol=1e-4)


def test_seeds_steps_and_places_differ_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    pixels = images(1).expand(6, -1, -1, -1)
    found = torch.cat(
        [deformed(pixels, seed=seed, step=step) for seed, step in itertools.product((0, 1), (0, 9))]
    )
    for one, other in itertools.combinations(found, 2):
        assert (one - other).abs().mean() > 0.05
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(deformed(pixels, seed=1, step=9), found[-6:])


@pytest.mark.gpu
def test_on_a_gpu_the_processes_agree() -> None:
    pixels = images(50, channels=3).cuda()
    whole = deformed(pixels)
    assert whole.is_cuda
    share = deform(pixels[1::3], 1.0, seed=0, step=0, batch_size=50, positions=slice(1, 50, 3))
    torch.testing.assert_close(share, whole[1::3], rtol=0, atol=1e-3)
