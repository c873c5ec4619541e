"""Builds the model of a ModelSpec, for training and serving."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from mlp_dist.core import layers
from mlp_dist.core.errors import BundleError
from mlp_dist.core.spec import ModelSpec


class TensorMLP(nn.Module):
    """A perceptron in raw tensor operations: float (B, layer_sizes[0]) -> logits (B, layer_sizes[-1]).

    Layer n, from 1, has the parameters `W_n` (fan in, fan out) and `b_n` (fan out,), not yet initialized.
    """

    def __init__(self, *layer_sizes: int) -> None:
        super().__init__()
        self.layer_sizes = layer_sizes
        self.num_layers = len(layer_sizes) - 1
        self.after_relu: nn.ModuleList | None = None
        """For training: a module for each hidden layer, applied to its activations."""
        for n, (fan_in, fan_out) in enumerate(pairwise(layer_sizes), start=1):
            self.register_parameter(f"W_{n}", nn.Parameter(torch.empty(fan_in, fan_out)))
            self.register_parameter(f"b_{n}", nn.Parameter(torch.empty(fan_out)))

    def extra_repr(self) -> str:
        return "-".join(map(str, self.layer_sizes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values = inputs
        for n in range(1, self.num_layers + 1):
            values = torch.add(torch.matmul(values, getattr(self, f"W_{n}")), getattr(self, f"b_{n}"))
            if n < self.num_layers:
                values = torch.relu(values)
                if self.after_relu is not None:
                    values = self.after_relu[n - 1](values)
        return values


def _of_modules(*layer_sizes: int) -> nn.Module:
    return nn.Sequential(*_alternating(nn.Linear, nn.ReLU, layer_sizes))


def _of_layers(*layer_sizes: int) -> nn.Module:
    return layers.Sequential(layers.Flatten(), *_alternating(layers.Linear, layers.ReLU, layer_sizes))


def _alternating(
    linear: Callable[[int, int], nn.Module], relu: Callable[[], nn.Module], layer_sizes: tuple[int, ...]
) -> list[nn.Module]:
    pairs = [(linear(fan_in, fan_out), relu()) for fan_in, fan_out in pairwise(layer_sizes)]
    return [layer for pair in pairs for layer in pair][:-1]


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "module": _of_modules,
    "tensor": TensorMLP,
    "layers": _of_layers,
}


def build_model(
    spec: ModelSpec, *, generator: torch.Generator | None = None, initialization: str = "linear"
) -> nn.Module:
    """Build the perceptron of `spec`: float32 (B, layer_sizes[0]) -> logits (B, layer_sizes[-1]).

    `initialization`, one of INITIALIZATIONS, draws the parameters from `generator`. Without a generator they
    are undefined, for a state_dict to fill. Raises BundleError if memory is too small.
    """
    # On the meta device, so that no layer draws from torch's global generator.
    with torch.device("meta"):
        model = _BUILDERS[spec.kind](*spec.layer_sizes)
    try:
        # Module.to_empty would import torch's compiler: half a second and 50 MB in every worker.
        undefined = {name: torch.empty(each.shape) for name, each in model.state_dict().items()}
        model.load_state_dict(undefined, assign=True)
    except (RuntimeError, MemoryError) as error:
        raise BundleError(
            f"a model of {spec} has {spec.num_parameters:,} parameters, too many for this machine's memory"
        ) from error
    if generator is not None:
        for weight, bias in _weights_and_biases(model):
            fan_in = weight.shape[0] if spec.kind == "tensor" else weight.shape[1]
            _initialize(weight, bias, fan_in, initialization, generator)
    return model


def first_layer(model: nn.Module, spec: ModelSpec) -> torch.Tensor:
    """The weights of the first layer, (fan out, fan in)."""
    weight, _ = _weights_and_biases(model)[0]
    return weight.detach().T if spec.kind == "tensor" else weight.detach()


def _weights_and_biases(model: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    parameters = list(model.parameters())
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def _initialize(
    weight: nn.Parameter, bias: nn.Parameter, fan_in: int, initialization: str, generator: torch.Generator
) -> None:
    bound = 1 / math.sqrt(fan_in)
    if initialization == "linear":
        nn.init.uniform_(weight, -bound, bound, generator=generator)
        nn.init.uniform_(bias, -bound, bound, generator=generator)
        return
    weight_std, bias_std = _NORMAL_STDS[initialization]
    nn.init.normal_(weight, std=bound if weight_std is None else weight_std, generator=generator)
    if bias_std:
        nn.init.normal_(bias, std=bias_std, generator=generator)
    else:
        nn.init.zeros_(bias)


_NORMAL_STDS: dict[str, tuple[float | None, float]] = {
    "normal_fan_in": (None, 0.0),
    "normal_0.01": (0.01, 0.0),
    "normal_0.1": (0.1, 0.1),
}
"""Standard deviations of weights and biases; None: 1/sqrt(fan in)."""

INITIALIZATIONS = ("linear", *_NORMAL_STDS)
"""Distributions of initial parameters. "linear" is nn.Linear's: uniform within 1/sqrt(fan in)."""
