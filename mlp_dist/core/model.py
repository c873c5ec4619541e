"""Builds the model of a ModelSpec, for training and serving. Any module works; core/kinds.py names them."""

import math

import torch
from torch import nn

from mlp_dist.core.errors import BundleError
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.spec import ModelSpec

_NORMAL_STDS: dict[str, tuple[float | None, float]] = {
    "normal_fan_in": (None, 0.0),
    "normal_0.01": (0.01, 0.0),
    "normal_0.1": (0.1, 0.1),
}
"""Standard deviations of weights and biases; None: 1/sqrt(fan in)."""

INITIALIZATIONS = ("linear", *_NORMAL_STDS)
"""Distributions of initial parameters. "linear" is nn.Linear's: uniform within 1/sqrt(fan in)."""


def build_model(
    spec: ModelSpec, *, generator: torch.Generator | None = None, initialization: str = "linear"
) -> nn.Module:
    """Build the model of `spec`: float32 (B, layer_sizes[0]) -> logits (B, layer_sizes[-1]).

    `initialization`, one of INITIALIZATIONS, draws matrices, and the vectors beside them, from `generator`.
    Other parameters, such as nn.LayerNorm's, start as the module's constructor sets them. Without a generator
    all are undefined, for a state_dict to fill, as those of an exported module always are. Raises BundleError
    if memory is too small, or the program is damaged.
    """
    if spec.program:
        # torch.export's import takes half a second.
        from mlp_dist.core.exported import load

        return load(spec.program)
    try:
        if generator is None:
            return _allocate(spec)
        model = _construct(spec, seed=generator.initial_seed())
    except (RuntimeError, MemoryError) as error:
        raise BundleError(f"a model of {spec} has too many parameters for this machine's memory") from error
    for module in model.modules():
        _initialize(module, initialization, generator)
    return model


def _construct(spec: ModelSpec, *, seed: int) -> nn.Module:
    """The model as its constructor makes it; torch's global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[spec.kind](*spec.layer_sizes)


def _allocate(spec: ModelSpec) -> nn.Module:
    """The model with undefined parameters, in memory that is reserved but not used yet."""
    with torch.device("meta"):
        model = KINDS[spec.kind](*spec.layer_sizes)
    # Module.to_empty would import torch's compiler: half a second and 50 MB in every worker.
    undefined = {name: torch.empty_like(each, device="cpu") for name, each in model.state_dict().items()}
    model.load_state_dict(undefined, assign=True)
    # Only the constructor sets buffers that are not in the state_dict.
    return _construct(spec, seed=0) if any(buffer.is_meta for buffer in model.buffers()) else model


@torch.no_grad()
def _initialize(module: nn.Module, initialization: str, generator: torch.Generator) -> None:
    """Draw the matrices of this module itself, and the vectors that follow them, its biases."""
    bound = None
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() > 1:
            bound = 1 / math.sqrt(as_rows(name, parameter)[0].numel())
        if bound is None:
            continue
        if initialization == "linear":
            parameter.uniform_(-bound, bound, generator=generator)
            continue
        weight_std, bias_std = _NORMAL_STDS[initialization]
        std = bias_std if parameter.dim() == 1 else bound if weight_std is None else weight_std
        if std:
            parameter.normal_(std=std, generator=generator)
        else:
            parameter.zero_()


def as_rows(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """A module's matrix, as (fan out, fan in).

    A parameter named "weight" has this shape, as nn.Linear's; others are used as inputs @ matrix.
    """
    return matrix.detach() if name == "weight" else matrix.detach().movedim(0, -1)
