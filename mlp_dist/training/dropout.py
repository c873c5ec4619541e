"""Dropout (Srivastava et al. 2014) that drops the same units on any number of processes."""

import torch
from torch import nn

from mlp_dist.core import layers
from mlp_dist.core.model import TensorMLP
from mlp_dist.data.batches import DROPOUT, generator


class Dropout:
    """Adds dropout after each hidden activation of a model from `build_model`.

    During training a hidden value becomes 0 with probability `p`, from 0 to below 1, and is otherwise scaled
    by 1 / (1 - p), as in torch.nn.Dropout; in eval mode the model is unchanged, and so is its state_dict.
    """

    def __init__(self, model: nn.Module, p: float, *, seed: int) -> None:
        self.p, self.seed = p, seed
        biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
        self._widths = [len(bias) for bias in biases[:-1]] if p else []
        self._device = biases[0].device
        self._masks = [_Mask() for _ in self._widths]
        self._drawn_for: tuple[int, int] | None = None
        self._drawn: list[torch.Tensor] = []
        if p:
            _insert(model, self._masks)

    def at(self, step: int, *, batch_size: int, positions: torch.Tensor | slice) -> None:
        """Set the masks for the next forward pass.

        `positions` are the rows' positions in the global batch of `batch_size`: int64 (N,) on the model's
        device, or a slice. The dropped units are a function of the seed, the step, the layer and the position
        alone; they differ between CPU and GPU.
        """
        # The parts of an accumulated batch share its draws.
        if self._drawn_for != (step, batch_size):
            self._drawn = [
                self._uniform(step, layer, batch_size, width) for layer, width in enumerate(self._widths)
            ]
            self._drawn_for = (step, batch_size)
        for mask, drawn in zip(self._masks, self._drawn, strict=True):
            mask.values = (drawn[positions] >= self.p).float().mul_(1 / (1 - self.p))

    def _uniform(self, step: int, layer: int, batch_size: int, width: int) -> torch.Tensor:
        source = generator(self.seed, DROPOUT, step, layer)
        if self._device.type != "cpu":
            source = torch.Generator(self._device).manual_seed(source.initial_seed())
        return torch.rand(batch_size, width, generator=source, device=self._device)


class _Mask(nn.Module):
    """Multiplies activations (N, width) by `values`, float32 (N, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.values: torch.Tensor | None = None

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return activations
        if self.values is None:
            raise RuntimeError("call Dropout.at before the model")
        # Keeps autocast's dtype.
        return (activations * self.values).to(activations.dtype)


def _insert(model: nn.Module, masks: list[_Mask]) -> None:
    if isinstance(model, TensorMLP):
        model.after_relu = nn.ModuleList(masks)
        return
    activations = {
        name: child for name, child in model.named_children() if isinstance(child, nn.ReLU | layers.ReLU)
    }
    for (name, activation), mask in zip(activations.items(), masks, strict=True):
        model.add_module(name, nn.Sequential(activation, mask))
