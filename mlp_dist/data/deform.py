"""Training images turned, scaled, slanted, moved and bent a little, each step anew (Ciresan et al. 2010)."""

import math
from functools import lru_cache

import torch
from torch.nn import functional

from mlp_dist.data.batches import DEFORMATION, generator

TURN = math.radians(15)
"""At strength 1 the largest angle, either way."""

SCALE, SLANT, SHIFT = 0.15, 0.15, 0.05
"""At strength 1 the largest logarithm of height's and width's factors, the largest shear, and the largest
move down and right in heights and widths, each either way."""

BEND, SMOOTHNESS = 0.035, 0.2
"""At strength 1 the standard deviation of each pixel's displacement, and the width (standard deviation) of
the Gaussian that smooths it, both in heights and widths: of 28 pixels 1 and 5.6."""


def deform(
    images: torch.Tensor,
    strength: float,
    *,
    seed: int,
    step: int,
    batch_size: int,
    positions: torch.Tensor | slice,
) -> torch.Tensor:
    """uint8 images (N, C, H, W) -> float32 (N, C, H, W) from 0 to 1, on their device.

    A random affine map about the image's centre, and an elastic one: each pixel moves by a random field that
    a Gaussian has smoothed (Simard et al. 2003), here sums of Gaussians on a coarse grid. In between pixels
    is interpolated linearly; beyond the border its nearest pixel is taken. All amounts are proportional to
    `strength`: at 0 nothing moves.

    `positions` are the images' places in the global batch of `batch_size`, int64 (N,) or a slice. How an
    image is deformed is a function of the seed, the step and its place (the pixels are equal to rounding);
    between a CPU and a GPU it differs.
    """
    _, _, height, width = images.shape
    basis = _basis(height, width, images.device)
    source = generator(seed, DEFORMATION, step)
    if images.device.type != "cpu":
        source = torch.Generator(images.device).manual_seed(source.initial_seed())
    uniform = torch.rand(batch_size, 6, generator=source, device=images.device)[positions]
    bumps = (batch_size, 2, len(basis) - 3)
    bent = torch.randn(bumps, generator=source, device=images.device)[positions]
    moved = torch.cat([_affine(uniform * 2 - 1, strength), bent * (2 * BEND * strength)], dim=2)
    sources = (moved.flatten(0, 1) @ basis).view(-1, 2, height, width).permute(0, 2, 3, 1)
    return functional.grid_sample(images.float() / 255, sources, padding_mode="border", align_corners=False)


def _affine(amounts: torch.Tensor, strength: float) -> torch.Tensor:
    """(N, 6) from -1 to 1 -> (N, 2, 3): rows x, y of the map of a place (x, y, 1) from -1 to 1."""
    turn, wider, higher, slant, right, down = (amounts * strength).unbind(1)
    cos, sin = (turn * TURN).cos(), (turn * TURN).sin()
    x_scale, y_scale = (wider * SCALE).exp(), (higher * SCALE).exp()
    shear = slant * SLANT
    x_row = [cos * x_scale, (cos * shear - sin) * y_scale, right * (2 * SHIFT)]
    y_row = [sin * x_scale, (sin * shear + cos) * y_scale, down * (2 * SHIFT)]
    return torch.stack([torch.stack(x_row, dim=1), torch.stack(y_row, dim=1)], dim=1)


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
    # Nodes a standard deviation apart, beyond the border too: in between, the sum is smooth and even.
    spread = 2 * SMOOTHNESS
    nodes = torch.arange(-1 - spread, 1 + 1.5 * spread, spread)
    values = torch.exp(-((places[:, None] - nodes) ** 2) / (2 * spread**2))
    return places, values / values.norm(dim=1, keepdim=True)
