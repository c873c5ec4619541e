"""ModelSpec -> torch module: the one place where an architecture is built, for training and serving."""

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

    Layer n has the weights `W_n` (fan in, fan out) and the biases `b_n` (fan out,), n from 1; `build_model`
    gives them their values.
    """

    def __init__(self, *layer_sizes: int) -> None:
        super().__init__()
        self.layer_sizes = layer_sizes
        self.num_layers = len(layer_sizes) - 1
        self.after_relu: nn.ModuleList | None = None
        """For training: a module for each hidden layer, which takes and gives the layer's values."""
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
    """The perceptron of `spec`: float32 (B, layer_sizes[0]) -> logits (B, layer_sizes[-1]).

    With a `generator` its parameters are drawn from it, as `initialization`, one of INITIALIZATIONS, says.
    Without one they are left undefined, for a state_dict to fill. Raises BundleError where memory is too
    small.
    """
    # Made without memory first, so that no layer draws from torch's global generator.
    with torch.device("meta"):
        model = _BUILDERS[spec.kind](*spec.layer_sizes)
    try:
        # Module.to_empty would make torch import its compiler, half a second and 50 MB of every worker.
        undefined = {name: torch.empty(each.shape) for name, each in model.state_dict().items()}
        model.load_state_dict(undefined, assign=True)
    except (RuntimeError, MemoryError) as error:
        raise BundleError(
            f"a model of {spec} has {spec.num_parameters:,} parameters, more than this machine's memory holds"
        ) from error
    if generator is not None:
        for weight, bias in _weights_and_biases(model):
            fan_in = weight.shape[0] if spec.kind == "tensor" else weight.shape[1]
            INITIALIZATIONS[initialization](weight, bias, fan_in, generator)
    return model


def first_layer(model: nn.Module, spec: ModelSpec) -> torch.Tensor:
    """The weights of the first layer, (fan out, fan in), whatever kind the model is."""
    weight, _ = _weights_and_biases(model)[0]
    return weight.detach().T if spec.kind == "tensor" else weight.detach()


def _weights_and_biases(model: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    parameters = list(model.parameters())
    return list(zip(parameters[::2], parameters[1::2], strict=True))


# Initializations, by name


def _linear(weight: nn.Parameter, bias: nn.Parameter, fan_in: int, generator: torch.Generator) -> None:
    """nn.Linear's own: uniform within 1/sqrt(fan in), weights and biases."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(weight, -bound, bound, generator=generator)
    nn.init.uniform_(bias, -bound, bound, generator=generator)


def _fan_in(weight: nn.Parameter, bias: nn.Parameter, fan_in: int, generator: torch.Generator) -> None:
    """Weights normal / sqrt(fan in), biases zero."""
    nn.init.normal_(weight, std=1 / math.sqrt(fan_in), generator=generator)
    nn.init.zeros_(bias)


def _small(weight: nn.Parameter, bias: nn.Parameter, fan_in: int, generator: torch.Generator) -> None:
    """Weights normal * 0.01, biases zero."""
    nn.init.normal_(weight, std=0.01, generator=generator)
    nn.init.zeros_(bias)


def _scratch(weight: nn.Parameter, bias: nn.Parameter, fan_in: int, generator: torch.Generator) -> None:
    """Weights and biases normal * 0.1, as core/layers.py's Linear draws them."""
    nn.init.normal_(weight, std=0.1, generator=generator)
    nn.init.normal_(bias, std=0.1, generator=generator)


INITIALIZATIONS: dict[str, Callable[[nn.Parameter, nn.Parameter, int, torch.Generator], None]] = {
    "linear": _linear,
    "normal_fan_in": _fan_in,
    "normal_0.01": _small,
    "normal_0.1": _scratch,
}
