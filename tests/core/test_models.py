import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from mlp_dist.config import INITIALIZATIONS
from mlp_dist.core import model as models
from mlp_dist.core.model import TensorMLP, build_model, first_layer
from mlp_dist.core.spec import KINDS, ModelSpec

SIZES = [(784, 500, 10), (20, 16, 8, 4, 2), (1, 1)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_model_has_the_layers_of_its_spec(sizes: tuple[int, ...]) -> None:
    model = build_model(ModelSpec(sizes), generator=seeded(0))
    layers = list(model)
    assert [type(layer) for layer in layers] == ([nn.Linear, nn.ReLU] * (len(sizes) - 1))[:-1]
    assert [(layer.in_features, layer.out_features) for layer in layers[::2]] == list(pairwise(sizes))
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == ModelSpec(sizes).num_parameters
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in parameters)


def test_generator_determines_the_weights() -> None:
    spec = ModelSpec((20, 16, 4))
    first, second, other = (build_model(spec, generator=seeded(seed)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_building_does_not_use_the_global_generator(kind: str) -> None:
    before = torch.get_rng_state()
    build_model(ModelSpec((20, 16, 4), kind), generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_equal_those_of_nn_linear() -> None:
    model = build_model(ModelSpec((30, 20, 10)), generator=seeded(5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


# Kinds and initializations


def test_raw_tensors_have_documented_names_and_shapes() -> None:
    model = build_model(ModelSpec((784, 500, 10), "tensor"), generator=seeded(0))
    assert isinstance(model, TensorMLP)
    assert repr(model) == "TensorMLP(784-500-10)"
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {"W_1": (784, 500), "b_1": (500,), "W_2": (500, 10), "b_2": (10,)}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_compute_the_same_function(kind: str, sizes: tuple[int, ...]) -> None:
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


def test_configuration_has_every_initialization() -> None:
    assert models.INITIALIZATIONS == INITIALIZATIONS


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
