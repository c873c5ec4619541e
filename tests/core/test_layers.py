"""The written-out layers, raw tensors and optimizer compute the same as torch's."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from mlp_dist.core import layers
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.training.optim import ScratchSGD

SIZES = (784, 256, 64, 10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def reference() -> nn.Sequential:
    """torch's perceptron, with weights other than the default."""
    parts: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(SIZES):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*parts[:-1])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05, generator=seeded(parameter.numel()))
    return model


def batches(number: int = 4) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = seeded(1)
    for _ in range(number):
        yield torch.rand(64, 1, 28, 28, generator=generator), torch.randint(10, (64,), generator=generator)


def test_relu_equals_torch_for_special_values() -> None:
    values = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0, float("inf"), float("-inf"), float("nan")])
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    own, expected = layers.ReLU()(ours), nn.ReLU()(theirs)
    assert torch.equal(own.nan_to_num(-1), expected.nan_to_num(-1))
    own[:-1].sum().backward()
    expected[:-1].sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("shape", [(20,), (2, 3, 20), (0, 20)], ids=str)
def test_linear_takes_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    expected, own = nn.Linear(20, 7), layers.Linear(20, 7)
    own.load_state_dict(expected.state_dict(), strict=True)
    inputs = torch.randn(shape, generator=seeded(0))
    assert own(inputs).shape == expected(inputs).shape
    close(own(inputs), expected(inputs))


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (0, 1, 28, 28)], ids=str)
def test_flatten_equals_torch(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=seeded(0))
    assert torch.equal(layers.Flatten()(values), nn.Flatten()(values))


def test_training_with_written_out_layers_equals_torch() -> None:
    expected = reference()
    own = build_model(ModelSpec(SIZES, "layers"))
    own.load_state_dict(expected.state_dict(), strict=True)
    ours, theirs = ScratchSGD(own.parameters(), lr=0.1), torch.optim.SGD(expected.parameters(), lr=0.1)
    for images, labels in batches():
        found, wanted = own(images), expected(images)
        close(found, wanted)
        for optimizer, logits in ((ours, found), (theirs, wanted)):
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels).backward()
        for parameter, other in zip(own.parameters(), expected.parameters(), strict=True):
            close(parameter.grad, other.grad)
        ours.step()
        theirs.step()
        for parameter, other in zip(own.parameters(), expected.parameters(), strict=True):
            close(parameter, other)


def test_training_with_raw_tensors_equals_torch() -> None:
    expected = reference()
    raw = build_model(ModelSpec(SIZES, "tensor"))
    linears = [layer for layer in expected if isinstance(layer, nn.Linear)]
    copied = {}
    for n, layer in enumerate(linears, start=1):
        copied |= {f"W_{n}": layer.weight.detach().T, f"b_{n}": layer.bias.detach()}
    raw.load_state_dict(copied, strict=True)
    for images, labels in batches():
        found, wanted = raw(images.flatten(1)), expected(images)
        close(found, wanted)
        for model, logits in ((raw, found), (expected, wanted)):
            model.zero_grad()
            functional.cross_entropy(logits, labels).backward()
        for n, layer in enumerate(linears, start=1):
            close(raw.get_parameter(f"W_{n}").grad.T, layer.weight.grad)
            close(raw.get_parameter(f"b_{n}").grad, layer.bias.grad)
        with torch.no_grad():
            for model in (raw, expected):
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
        for n, layer in enumerate(linears, start=1):
            close(raw.get_parameter(f"W_{n}").T, layer.weight)
            close(raw.get_parameter(f"b_{n}"), layer.bias)
