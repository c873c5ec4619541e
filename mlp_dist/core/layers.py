"""The layers of a perceptron in plain tensor operations.

They compute the same as torch.nn's layers of these names, and have interchangeable state_dicts.
"""

from itertools import pairwise

import torch
from torch import nn


class Linear(nn.Module):
    """inputs (..., in_features) -> bias + inputs @ weight.T, (..., out_features).

    `weight` (out_features, in_features) and `bias` (out_features,) are not yet initialized.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(inputs.shape[:-1].numel(), inputs.shape[-1])
        return torch.addmm(self.bias, rows, self.weight.T).reshape(*inputs.shape[:-1], len(self.bias))


class ReLU(nn.Module):
    """Elementwise max(0, inputs), with the gradient 0 at 0."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.where(inputs <= 0, 0, inputs)


class Flatten(nn.Module):
    """inputs (B, ...) -> (B, product of the other dimensions)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.reshape(len(inputs), inputs.shape[1:].numel())


class Sequential(nn.Module):
    """Applies layers in order."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for position, layer in enumerate(layers):
            self.add_module(str(position), layer)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            inputs = layer(inputs)
        return inputs


class TensorMLP(nn.Module):
    """A perceptron in raw tensor operations: float (B, layer_sizes[0]) -> logits (B, layer_sizes[-1]).

    Layer n, from 1, has the parameters `W_n` (fan in, fan out) and `b_n` (fan out,), not yet initialized.
    """

    def __init__(self, *layer_sizes: int) -> None:
        super().__init__()
        self.layer_sizes = layer_sizes
        for n, (fan_in, fan_out) in enumerate(pairwise(layer_sizes), start=1):
            self.register_parameter(f"W_{n}", nn.Parameter(torch.empty(fan_in, fan_out)))
            self.register_parameter(f"b_{n}", nn.Parameter(torch.empty(fan_out)))
        self.activations = nn.ModuleList(nn.ReLU() for _ in layer_sizes[1:-1])

    def __repr__(self) -> str:
        return f"TensorMLP({'-'.join(map(str, self.layer_sizes))})"

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values = self._affine(1, inputs)
        for n, activation in enumerate(self.activations, start=2):
            values = self._affine(n, activation(values))
        return values

    def _affine(self, n: int, values: torch.Tensor) -> torch.Tensor:
        return torch.add(torch.matmul(values, getattr(self, f"W_{n}")), getattr(self, f"b_{n}"))
