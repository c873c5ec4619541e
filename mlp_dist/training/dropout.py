"""Dropout (Srivastava et al. 2014) that drops the same units on any number of processes."""

from typing import Any

import torch
from torch import nn

from mlp_dist.core import layers
from mlp_dist.core.errors import UsageError
from mlp_dist.data.batches import DROPOUT, generator

ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardtanh, nn.Hardswish, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, layers.ReLU),
)
"""The modules whose outputs are hidden units."""


class Dropout:
    """Adds dropout after each activation module of a model, (B, num_features) -> (B, classes).

    During training a hidden value becomes 0 with probability `p`, from 0 to below 1, and is otherwise scaled
    by 1 / (1 - p), as in torch.nn.Dropout; in eval mode the model is unchanged, and so is its state_dict.

    Raises UsageError for a model without activation modules, or with one that is used twice.
    """

    def __init__(self, model: nn.Module, p: float, *, num_features: int, seed: int) -> None:
        self.p, self.seed = p, seed
        self._drawn_for: tuple[int, int] | None = None
        self._drawn: list[torch.Tensor] = []
        self._masks = _add_masks(model, num_features) if p else []

    def at(self, step: int, *, batch_size: int, positions: torch.Tensor | slice) -> None:
        """Set the masks for the next forward pass.

        `positions` are the rows' positions in the global batch of `batch_size`: int64 (N,) on the model's
        device, or a slice. The dropped units are a function of the seed, the step, the layer and the position
        alone; they differ between CPU and GPU.
        """
        # The parts of an accumulated batch share its draws.
        if self._drawn_for != (step, batch_size):
            self._drawn = [
                self._uniform(step, layer, batch_size, mask) for layer, mask in enumerate(self._masks)
            ]
            self._drawn_for = (step, batch_size)
        for mask, drawn in zip(self._masks, self._drawn, strict=True):
            mask.values = (drawn[positions] >= self.p).float().mul_(1 / (1 - self.p))

    def _uniform(self, step: int, layer: int, batch_size: int, mask: "_Mask") -> torch.Tensor:
        source = generator(self.seed, DROPOUT, step, layer)
        if mask.device.type != "cpu":
            source = torch.Generator(mask.device).manual_seed(source.initial_seed())
        return torch.rand(batch_size, *mask.shape, generator=source, device=mask.device)


class _Mask:
    """A forward hook that multiplies activations (N, *shape) by `values`, float32 (N, *shape)."""

    def __init__(self, activations: torch.Tensor) -> None:
        self.shape, self.device = activations.shape[1:], activations.device
        self.values: torch.Tensor | None = None

    def __call__(self, module: nn.Module, _: Any, activations: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return activations
        if self.values is None:
            raise RuntimeError("call Dropout.at before the model")
        # Keeps autocast's dtype.
        return (activations * self.values).to(activations.dtype)


def _add_masks(model: nn.Module, num_features: int) -> list[_Mask]:
    """Add a mask to each activation module, in the order of the forward pass."""
    found: list[tuple[nn.Module, _Mask]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, outputs: found.append((module, _Mask(outputs))))
        for module in model.modules()
        if isinstance(module, ACTIVATIONS)
    ]
    was_training, parameter = model.training, next(model.parameters())
    with torch.no_grad():
        model.eval()(torch.zeros(1, num_features, device=parameter.device))
        model.train(was_training)
    for hook in hooks:
        hook.remove()
    num_matrices = sum(parameter.dim() > 1 for parameter in model.parameters())
    if len({module for module, _ in found}) < max(len(found), num_matrices > 1):
        raise UsageError(
            "dropout needs a module of its own for each activation, such as nn.ReLU(), and this kind of "
            "model has none or uses one twice: leave --dropout out, or change core/kinds.py"
        )
    for module, mask in found:
        module.register_forward_hook(mask)
    return [mask for _, mask in found]
