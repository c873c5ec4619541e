from itertools import pairwise

import pytest
import torch
from torch import nn

from mlp_dist.config import OPTIONS
from mlp_dist.core import model as models
from mlp_dist.core.bundle import count_parameters
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.layers import TensorMLP
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sizes", [(20, 16, 8, 4, 2), (1, 1)], ids=str)
def test_model_has_the_layers_of_its_spec(sizes: tuple[int, ...]) -> None:
    model = build_model(ModelSpec(sizes), generator=seeded(0))
    layers = list(model)
    assert [type(layer) for layer in layers] == ([nn.Linear, nn.ReLU] * (len(sizes) - 1))[:-1]
    assert [(layer.in_features, layer.out_features) for layer in layers[::2]] == list(pairwise(sizes))


@pytest.mark.parametrize("kind", KINDS)
def test_generator_determines_the_weights(kind: str) -> None:
    spec, before = ModelSpec((20, 16, 4), kind), torch.get_rng_state()
    first, second, other = (build_model(spec, generator=seeded(seed)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
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


def test_configuration_has_every_initialization() -> None:
    assert OPTIONS["initialization"].choices == models.INITIALIZATIONS


@pytest.mark.parametrize("kind", ["module", "tensor"])
@pytest.mark.parametrize(
    ("initialization", "weight_std", "bias_std"),
    [("normal_fan_in", 0.05, 0), ("normal_0.01", 0.01, 0), ("normal_0.1", 0.1, 0.1)],
)
def test_initializations(kind: str, initialization: str, weight_std: float, bias_std: float) -> None:
    model = build_model(ModelSpec((400, 3000), kind), generator=seeded(1), initialization=initialization)
    weight, bias = (parameter.detach() for parameter in model.parameters())
    assert weight.std().item() == pytest.approx(weight_std, rel=0.02)
    assert weight.mean().abs().item() < weight_std / 100
    assert bias.std().item() == pytest.approx(bias_std, rel=0.05)


def odd(*layer_sizes: int) -> nn.Module:
    """Layers without biases, normalization, tanh, and a buffer outside of the state_dict."""
    model = nn.Sequential()
    for fan_in, fan_out in pairwise(layer_sizes):
        model.extend([nn.Linear(fan_in, fan_out, bias=False), nn.LayerNorm(fan_out), nn.Tanh()])
    model.append(nn.Linear(layer_sizes[-1], layer_sizes[-1]))
    model.register_buffer("unsaved", torch.ones(1), persistent=False)
    return model


def test_any_module_is_a_kind_of_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "odd", odd)
    spec = ModelSpec((20, 8, 4), "odd")
    model = build_model(spec, generator=seeded(2), initialization="normal_0.1")
    assert count_parameters(model) == 20 * 8 + 2 * 8 + 8 * 4 + 2 * 4 + 4 * 4 + 4
    first, normalization, last = model[0], model[1], model[6]
    assert torch.equal(first.weight, torch.empty(8, 20).normal_(std=0.1, generator=seeded(2)))
    assert (normalization.weight.unique().item(), normalization.bias.unique().item()) == (1, 0)
    assert 0 < last.bias.abs().max() < 0.5
    loaded = build_model(spec)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(torch.ones(3, 20)), model(torch.ones(3, 20)))
    assert loaded.unsaved.item() == 1
