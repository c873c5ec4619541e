"""The kinds of models. Each is one function from layer sizes to a module.

The module maps float32 (B, layer_sizes[0]) to logits (B, layer_sizes[-1]). Every command reads the names of
the kinds, so torch is imported inside the functions.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def module(*layer_sizes: int) -> "nn.Module":
    """nn.Linear and nn.ReLU."""
    from torch import nn

    return nn.Sequential(*alternating(nn.Linear, nn.ReLU, layer_sizes))


def tensor(*layer_sizes: int) -> "nn.Module":
    """Raw tensor operations."""
    from mlp_dist.core.layers import TensorMLP

    return TensorMLP(*layer_sizes)


def layers(*layer_sizes: int) -> "nn.Module":
    """The written-out layers of core/layers.py."""
    from mlp_dist.core.layers import Flatten, Linear, ReLU, Sequential

    return Sequential(Flatten(), *alternating(Linear, ReLU, layer_sizes))


def alternating(
    linear: "Callable[[int, int], nn.Module]",
    activation: "Callable[[], nn.Module]",
    layer_sizes: tuple[int, ...],
) -> "list[nn.Module]":
    """A linear layer for each pair of sizes, with activations between them."""
    pairs = [(linear(fan_in, fan_out), activation()) for fan_in, fan_out in pairwise(layer_sizes)]
    return [layer for pair in pairs for layer in pair][:-1]


KINDS: "dict[str, Callable[..., nn.Module]]" = {
    "module": module,
    "tensor": tensor,
    "layers": layers,
}
