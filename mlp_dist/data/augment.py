"""Training images shifted, deformed or changed adversarially, the same on any number of processes."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from mlp_dist.config import TrainConfig
from mlp_dist.core.image import normalize
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.batches import AUGMENTATION, DEFORMATION, generator

DEFORM = (math.radians(15), 0.15, 0.15, 0.15, 0.1, 0.1)
RESTYLE = (math.radians(15), 0.25, 0.25, 0.4, 0.02, 0.02)
"""At strength 1, in both directions: the largest angle, logarithm of the factors of width and height, shear,
and move right and down, in units of half the width and height."""

STROKE = 0.6
"""At strength 1 of restyling: the largest share of a pixel by which strokes are widened or thinned."""

BEND, SMOOTHNESS = 0.035, 0.2
"""At strength 1: the standard deviation of each pixel's displacement, and the width (standard deviation) of
the Gaussian that smooths it, both in units of height and width: 1 and 5.6 of 28 pixels."""


def augment(
    images: torch.Tensor,
    config: TrainConfig,
    *,
    step: int,
    batch_size: int,
    positions: torch.Tensor | slice = slice(None),
) -> torch.Tensor:
    """Images (N, C, H, W), shifted and deformed as `config` asks for: uint8, or float32 from 0 to 1.

    `positions` are the images' places in the global batch, as in `offsets`.
    """
    where: dict[str, Any] = {
        "seed": config.seed,
        "step": step,
        "batch_size": batch_size,
        "positions": positions,
    }
    if config.augment_shift:
        images = shift(images, offsets(config.augment_shift, **where).to(images.device))
    if config.deform or config.restyle:
        images = deform(images, config.deform, config.restyle, **where)
    return images


def offsets(
    max_shift: int, *, seed: int, step: int, batch_size: int, positions: torch.Tensor | slice
) -> torch.Tensor:
    """The shift of each image, in pixels down and right, int64 (N, 2) on the CPU.

    All numbers from -max_shift to max_shift are equally likely. `positions` are the N images' places in the
    global batch of `batch_size`, int64 (N,) on the CPU or a slice; an image's offset is a function of the
    seed, the step and its place.
    """
    source = generator(seed, AUGMENTATION, step)
    return torch.randint(-max_shift, max_shift + 1, (batch_size, 2), generator=source)[positions]


def shift(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W), each moved by its whole pixels, int64 (N, 2), down and right; on one device.

    The freed area is filled with the nearest pixel of the image's border.
    """
    _, channels, height, width = images.shape
    down, right = offsets[:, :1], offsets[:, 1:]
    rows = (torch.arange(height, device=images.device) - down).clamp_(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp_(0, width - 1)
    sources = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = images.flatten(2).gather(2, sources[:, None].expand(-1, channels, -1))
    return moved.view(images.shape)


def deform(
    images: torch.Tensor,
    strength: float,
    restyle: float = 0.0,
    *,
    seed: int,
    step: int,
    batch_size: int,
    positions: torch.Tensor | slice,
) -> torch.Tensor:
    """Affine and elastic distortions: uint8 images (N, C, H, W) -> float32 (N, C, H, W) from 0 to 1.

    A random affine map about the image's centre (Ciresan et al. 2010), and an elastic one: each pixel moves
    by a random field smoothed by a Gaussian (Simard et al. 2003), here sums of Gaussians on a coarse grid.
    Values between pixels are interpolated linearly; the border's nearest pixel continues outside. All
    amounts are proportional to `strength`. Those of `restyle` are added to them: it varies slant and
    proportions more, hardly moves what is centred, and widens or thins strokes.

    `positions` are the images' places in the global batch of `batch_size`, int64 (N,) or a slice. An image's
    deformation is a function of the seed, the step and its place (pixels are equal to rounding); a CPU and a
    GPU draw different ones.
    """
    _, _, height, width = images.shape
    basis = _basis(height, width, images.device)
    source = generator(seed, DEFORMATION, step)
    if images.device.type != "cpu":
        source = torch.Generator(images.device).manual_seed(source.initial_seed())
    uniform = torch.rand(batch_size, 6, generator=source, device=images.device)[positions]
    bumps = (batch_size, 2, len(basis) - 3)
    bent = torch.randn(bumps, generator=source, device=images.device)[positions]
    strokes = torch.rand(batch_size, generator=source, device=images.device)[positions]
    affine = _affine(uniform * 2 - 1, strength, restyle)
    moved = torch.cat([affine, bent * (2 * BEND * (strength + restyle))], dim=2)
    sources = (moved.flatten(0, 1) @ basis).view(-1, 2, height, width).permute(0, 2, 3, 1)
    pixels = images.float().div_(255)
    deformed = functional.grid_sample(pixels, sources, padding_mode="border", align_corners=False)
    if restyle:
        _change_strokes(deformed, (strokes * 2 - 1) * (STROKE * restyle))
    return deformed


def _affine(uniform: torch.Tensor, strength: float, restyle: float) -> torch.Tensor:
    """(N, 6) from -1 to 1 -> (N, 2, 3): rows x, y of the map of a place (x, y, 1) from -1 to 1."""
    amounts = (uniform * strength) * uniform.new_tensor(DEFORM)
    amounts += (uniform * restyle) * uniform.new_tensor(RESTYLE)
    turn, wider, higher, shear, right, down = amounts.unbind(1)
    cos, sin, x_scale, y_scale = turn.cos(), turn.sin(), wider.exp(), higher.exp()
    x_row = [cos * x_scale, (cos * shear - sin) * y_scale, right]
    y_row = [sin * x_scale, (sin * shear + cos) * y_scale, down]
    return torch.stack([torch.stack(x_row, dim=1), torch.stack(y_row, dim=1)], dim=1)


def _change_strokes(images: torch.Tensor, amounts: torch.Tensor) -> None:
    """Widen light strokes of images (N, C, H, W) in place; thin them where the amount (N,) is negative.

    Gray morphology: towards the maximum, or minimum, of a pixel and its neighbours to the right and below.
    """
    amounts = amounts[:, None, None, None]
    signed = images * amounts.sign()
    rows = signed.clone()
    torch.maximum(signed[..., 1:], signed[..., :-1], out=rows[..., :-1])
    squares = rows.clone()
    torch.maximum(rows[:, :, 1:], rows[:, :, :-1], out=squares[:, :, :-1])
    images.lerp_(squares.mul_(amounts.sign()), amounts.abs().clamp(max=1))


@lru_cache
def _basis(height: int, width: int, device: torch.device) -> torch.Tensor:
    """The fields x, y, 1, and a bump at each node of a coarse grid: float32 (3 + G * G, H * W).

    Places are grid_sample's, from -1 to 1 over the image. Independent standard normal weights of the bumps
    give each pixel a standard normal value.
    """
    rows, row_bumps = _bumps(height)
    columns, column_bumps = _bumps(width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    bumps = torch.einsum("hi,wj->ijhw", row_bumps, column_bumps).flatten(2).flatten(0, 1)
    return torch.cat([torch.stack([x, y, torch.ones_like(x)]).flatten(1), bumps]).to(device)


def _bumps(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pixel's place from -1 to 1 (size,), and Gaussians of it (size, G), each row of norm 1."""
    places = (torch.arange(size) * 2 + 1) / size - 1
    # With nodes a standard deviation apart, also outside the border, the sum is smooth and even everywhere.
    spread = 2 * SMOOTHNESS
    nodes = torch.arange(-1 - spread, 1 + 1.5 * spread, spread)
    values = torch.exp(-((places[:, None] - nodes) ** 2) / (2 * spread**2))
    return places, values / values.norm(dim=1, keepdim=True)


def adversarial(
    inputs: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor], eps: float, image: ImageSpec
) -> torch.Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015) on `normalize`'s output, float32 (N, features).

    Each pixel moves by `eps`, in units of 0 to 1, in the direction in which the loss rises, within the range
    of pixels. `loss_of` maps such inputs to their summed loss. It may run under autocast, but not through
    DDP, which would wait for gradients of the weights: none are computed here.
    """
    shape = (1, image.channels, image.height, image.width)
    low, high = (normalize(torch.full(shape, end, device=inputs.device), image) for end in (0.0, 1.0))
    leaf = inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf), leaf)
    moved = inputs + gradient.sign() * (eps * (high - low))
    return torch.clamp(moved, low, high)
