import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from mlp_dist.core.models import build_model
from mlp_dist.core.spec import ModelSpec

SIZES = [(4, 3), (784, 500, 10), (20, 16, 8, 4, 2), (1, 1)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_layers_and_parameters_are_the_spec_s(sizes: tuple[int, ...]) -> None:
    model = build_model(ModelSpec(sizes), generator=seeded(0))
    layers = list(model)
    assert [type(layer) for layer in layers] == ([nn.Linear, nn.ReLU] * (len(sizes) - 1))[:-1]
    assert [(layer.in_features, layer.out_features) for layer in layers[::2]] == list(pairwise(sizes))
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == ModelSpec(sizes).num_parameters
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward_is_the_formula(sizes: tuple[int, ...]) -> None:
    model = build_model(ModelSpec(sizes), generator=seeded(1))
    inputs = torch.randn(7, sizes[0], generator=seeded(2))
    values = inputs.double()
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    for position, linear in enumerate(linears):
        values = values @ linear.weight.double().T + linear.bias.double()
        if position < len(linears) - 1:
            values = values.clamp(min=0)
    logits = model(inputs)
    assert logits.shape == (7, sizes[-1])
    torch.testing.assert_close(logits.double(), values, rtol=1e-4, atol=1e-5)


def test_weights_are_a_function_of_the_generator() -> None:
    spec = ModelSpec((20, 16, 4))
    first, second, other = (build_model(spec, generator=seeded(seed)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build_model(ModelSpec((20, 16, 4)), generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_those_that_nn_linear_draws() -> None:
    model = build_model(ModelSpec((30, 20, 10)), generator=seeded(5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_weights_fill_the_range_that_the_fan_in_allows(kind: str) -> None:
    fan_in = 64
    layer = build_model(ModelSpec((fan_in, 4000)), generator=seeded(6))[0]
    values, bound = getattr(layer, kind).detach(), 1 / math.sqrt(fan_in)
    assert values.abs().max() <= bound
    assert values.max() > 0.99 * bound
    assert values.min() < -0.99 * bound
    assert values.mean().abs() < 0.05 * bound
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_without_a_generator_a_state_dict_fills_it() -> None:
    spec = ModelSpec((20, 16, 4))
    trained = build_model(spec, generator=seeded(7))
    model = build_model(spec)
    model.load_state_dict(trained.state_dict(), strict=True)
    inputs = torch.randn(5, 20, generator=seeded(8))
    assert torch.equal(model(inputs), trained(inputs))
