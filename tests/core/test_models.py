import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from mlp_dist.config import INITIALIZATIONS
from mlp_dist.core import layers
from mlp_dist.core import model as models
from mlp_dist.core.model import TensorMLP, build_model, first_layer
from mlp_dist.core.spec import KINDS, ModelSpec

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


@pytest.mark.parametrize("kind", KINDS)
def test_building_leaves_the_global_generator_alone(kind: str) -> None:
    before = torch.get_rng_state()
    build_model(ModelSpec((20, 16, 4), kind), generator=seeded(0))
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


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_generator_a_state_dict_fills_it(kind: str) -> None:
    spec = ModelSpec((20, 16, 4), kind)
    trained = build_model(spec, generator=seeded(7))
    model = build_model(spec)
    model.load_state_dict(trained.state_dict(), strict=True)
    inputs = torch.randn(5, 20, generator=seeded(8))
    assert torch.equal(model(inputs), trained(inputs))


# Kinds and initializations


def test_raw_tensors_have_the_names_and_shapes_of_the_formula() -> None:
    model = build_model(ModelSpec((784, 500, 10), "tensor"), generator=seeded(0))
    assert isinstance(model, TensorMLP)
    assert repr(model) == "TensorMLP(784-500-10)"
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {"W_1": (784, 500), "b_1": (500,), "W_2": (500, 10), "b_2": (10,)}


def test_written_out_layers_are_ours() -> None:
    model = build_model(ModelSpec((784, 256, 64, 10), "layers"), generator=seeded(0))
    assert [type(layer) for layer in model.children()] == [
        layers.Flatten,
        *(layers.Linear, layers.ReLU, layers.Linear, layers.ReLU, layers.Linear),
    ]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_one_seed_are_one_function(kind: str, sizes: tuple[int, ...]) -> None:
    inputs = torch.randn(7, sizes[0], generator=seeded(2))
    plain = build_model(ModelSpec(sizes), generator=seeded(1))
    other = build_model(ModelSpec(sizes, kind))
    weights = list(plain.parameters())
    with torch.no_grad():
        for parameter, weight in zip(other.parameters(), weights, strict=True):
            parameter.copy_(weight.T if kind == "tensor" and weight.dim() == 2 else weight)
    torch.testing.assert_close(other(inputs), plain(inputs), rtol=0, atol=1e-6)
    assert torch.equal(first_layer(other, ModelSpec(sizes, kind)), weights[0])
    assert sum(weight.numel() for weight in other.parameters()) == ModelSpec(sizes, kind).num_parameters


def test_the_configuration_names_every_initialization() -> None:
    assert tuple(models.INITIALIZATIONS) == INITIALIZATIONS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("initialization", "weight_std", "bias_std"),
    [("normal_fan_in", 0.05, 0), ("normal_0.01", 0.01, 0), ("normal_0.1", 0.1, 0.1), ("linear", None, None)],
)
def test_initializations(
    kind: str, initialization: str, weight_std: float | None, bias_std: float | None
) -> None:
    fan_in, fan_out = 400, 3000
    model = build_model(
        ModelSpec((fan_in, fan_out), kind), generator=seeded(1), initialization=initialization
    )
    weight, bias = (parameter.detach() for parameter in model.parameters())
    if weight_std is None or bias_std is None:
        assert 0.99 < weight.abs().max() * math.sqrt(fan_in) <= 1
        assert 0.99 < bias.abs().max() * math.sqrt(fan_in) <= 1
        return
    assert weight.std().item() == pytest.approx(weight_std, rel=0.02)
    assert weight.mean().abs().item() < weight_std / 100
    assert weight.abs().max() > 4 * weight_std
    assert bias.std().item() == pytest.approx(bias_std, rel=0.05)
