"""Dropout (Srivastava et al. 2014) that leaves out the same units however many processes train."""

import torch
from torch import nn

from mlp_dist.core import layers
from mlp_dist.core.model import TensorMLP
from mlp_dist.data.batches import DROPOUT, generator


class Dropout:
    """Puts dropout after each hidden activation of a model that `build_model` has made; one for the model.

    In training each hidden value is 0 with probability `p`, from 0 to below 1, else 1 / (1 - p) times itself,
    as torch's Dropout makes it; with `model.eval()` the model is what it was. Its state_dict stays as it was,
    and where `p` is 0 the model too.
    """

    def __init__(self, model: nn.Module, p: float, *, seed: int) -> None:
        self.p, self.seed = p, seed
        biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
        self._widths = [len(bias) for bias in biases[:-1]] if p else []
        self._device = biases[0].device
        self._masks = [_Masked() for _ in self._widths]
        self._drawn_for: tuple[int, int] | None = None
        self._drawn: list[torch.Tensor] = []
        if p:
            _insert(model, self._masks)

    def at(self, step: int, *, batch_size: int, positions: torch.Tensor | slice) -> None:
        """To be called before the model is, in training.

        `positions` are the N rows' places in the global batch of `batch_size`, int64 (N,) on the model's
        device or a slice. What is left out of a row is a function of the seed, the step, the layer and the
        row's place; between a CPU and a GPU it differs.
        """
        # The parts of a batch that is worked through in several share what was drawn for it.
        if self._drawn_for != (step, batch_size):
            self._drawn = [
                self._uniform(step, layer, batch_size, width) for layer, width in enumerate(self._widths)
            ]
            self._drawn_for = (step, batch_size)
        for module, drawn in zip(self._masks, self._drawn, strict=True):
            module.mask = (drawn[positions] >= self.p).float().mul_(1 / (1 - self.p))

    def _uniform(self, step: int, layer: int, batch_size: int, width: int) -> torch.Tensor:
        source = generator(self.seed, DROPOUT, step, layer)
        if self._device.type != "cpu":
            source = torch.Generator(self._device).manual_seed(source.initial_seed())
        return torch.rand(batch_size, width, generator=source, device=self._device)


class _Masked(nn.Module):
    """values (N, width) -> values times a mask that is set from without, float32 (N, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: torch.Tensor | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return values
        if self.mask is None:
            raise RuntimeError("Dropout.at must be called before the model is")
        # Under autocast the values are of fewer bits, and stay so.
        return (values * self.mask).to(values.dtype)


def _insert(model: nn.Module, masks: list[_Masked]) -> None:
    if isinstance(model, TensorMLP):
        model.after_relu = nn.ModuleList(masks)
        return
    activations = {
        name: child for name, child in model.named_children() if isinstance(child, nn.ReLU | layers.ReLU)
    }
    for (name, activation), mask in zip(activations.items(), masks, strict=True):
        model.add_module(name, nn.Sequential(activation, mask))
