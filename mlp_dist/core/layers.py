"""The layers of a perceptron written out in tensor operations.

They take and give what torch.nn's of the same names do, and their state_dicts are interchangeable.
"""

import torch
from torch import nn


class Linear(nn.Module):
    """inputs (..., in_features) -> bias + inputs @ weight.T, (..., out_features).

    `weight` (out_features, in_features) and `bias` (out_features,) are drawn from normal * 0.1, by
    `generator` where one is given.
    """

    def __init__(
        self, in_features: int, out_features: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        # Numbers without memory would make torch import its compiler, which takes seconds.
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.1, generator=generator)
            nn.init.normal_(self.bias, std=0.1, generator=generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(inputs.shape[:-1].numel(), inputs.shape[-1])
        return torch.addmm(self.bias, rows, self.weight.T).reshape(*inputs.shape[:-1], len(self.bias))

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}"


class ReLU(nn.Module):
    """max(0, inputs), element by element; the gradient at 0 is 0, as torch's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.where(inputs <= 0, 0, inputs)


class Flatten(nn.Module):
    """inputs (B, ...) -> (B, everything else)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.reshape(len(inputs), inputs.shape[1:].numel())


class Sequential(nn.Module):
    """One layer after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for position, layer in enumerate(layers):
            self.add_module(str(position), layer)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, position: int) -> nn.Module:
        return list(self.children())[position]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            inputs = layer(inputs)
        return inputs
