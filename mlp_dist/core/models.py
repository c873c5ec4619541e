"""ModelSpec -> torch module: the one place where an architecture is built, for training and serving."""

import math
from itertools import pairwise

import torch
from torch import nn

from mlp_dist.core.spec import ModelSpec


def build_model(spec: ModelSpec, *, generator: torch.Generator | None = None) -> nn.Sequential:
    """The multi-layer perceptron of `spec`: float32 (B, layer_sizes[0]) -> logits (B, layer_sizes[-1]).

    With a `generator` the weights are drawn from it as nn.Linear draws its own: uniform within
    1/sqrt(fan in), for weights and biases. Without one they are left undefined, for a state_dict to fill.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(spec.layer_sizes):
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)  # type: ignore[no-untyped-call]
        if generator is not None:
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
