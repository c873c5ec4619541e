"""Training images changed, each within a few gray levels, to what the model errs on most."""

from collections.abc import Callable

import torch

from mlp_dist.core.image import normalize
from mlp_dist.core.spec import ImageSpec


def adversarial(
    inputs: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor], eps: float, image: ImageSpec
) -> torch.Tensor:
    """Inputs, float32 (N, features) as `normalize` gives them, by the fast gradient sign method.

    Each pixel is moved by `eps`, of a range from 0 to 1, in the direction in which the loss rises, and kept
    within the range (Goodfellow et al. 2015). `loss_of` takes such inputs and gives the loss, summed over the
    images. It may run under autocast, but not through DDP, which would wait for the gradients of the weights:
    none are computed here.
    """
    low, high = (normalize(end, image) for end in _ends(image, inputs.device))
    leaf = inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf), leaf)
    moved = inputs + gradient.sign() * (eps * (high - low))
    return torch.clamp(moved, low, high)


def _ends(image: ImageSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A black image and a white one, float32 (1, C, H, W)."""
    shape = (1, image.channels, image.height, image.width)
    return torch.zeros(shape, device=device), torch.ones(shape, device=device)
