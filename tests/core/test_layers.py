"""The written-out layers and optimizer beside torch's: same weights in, the same all the way."""

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


def torch_s() -> nn.Sequential:
    """torch's own perceptron, with weights that differ from each layer's default."""
    parts: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(SIZES):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*parts[:-1])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05, generator=seeded(parameter.numel()))
    return model


def batches(number: int = 10) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = seeded(1)
    for _ in range(number):
        yield torch.rand(64, 1, 28, 28, generator=generator), torch.randint(10, (64,), generator=generator)


def test_linear() -> None:
    expected = nn.Linear(20, 7)
    own = layers.Linear(20, 7)
    own.load_state_dict(expected.state_dict(), strict=True)
    inputs = torch.randn(5, 20, generator=seeded(0))
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    close(own(ours), expected(theirs))
    own(ours).square().sum().backward()
    expected(theirs).square().sum().backward()
    for found, wanted in zip(own.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


def test_linear_draws_normal_tenths_from_its_generator() -> None:
    own = layers.Linear(400, 300, generator=seeded(3))
    assert own.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert own.bias.std().item() == pytest.approx(0.1, rel=0.2)
    assert own.weight.mean().abs().item() < 0.002
    assert torch.equal(own.weight, layers.Linear(400, 300, generator=seeded(3)).weight)
    assert not torch.equal(own.weight, layers.Linear(400, 300, generator=seeded(4)).weight)


def test_relu_at_every_kind_of_number() -> None:
    values = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0, float("inf"), float("-inf"), float("nan")])
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    own, expected = layers.ReLU()(ours), nn.ReLU()(theirs)
    assert torch.equal(own.nan_to_num(-1), expected.nan_to_num(-1))
    own[:-1].sum().backward()
    expected[:-1].sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("shape", [(20,), (5, 20), (2, 3, 20), (0, 20)], ids=str)
def test_linear_takes_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    expected, own = nn.Linear(20, 7), layers.Linear(20, 7)
    own.load_state_dict(expected.state_dict(), strict=True)
    inputs = torch.randn(shape, generator=seeded(0))
    assert own(inputs).shape == expected(inputs).shape
    close(own(inputs), expected(inputs))


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (1, 3, 4, 5), (4, 6), (0, 1, 28, 28)], ids=str)
def test_flatten(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=seeded(0))
    assert torch.equal(layers.Flatten()(values), nn.Flatten()(values))


def test_relu_keeps_integers() -> None:
    assert torch.equal(layers.ReLU()(torch.tensor([-1, 0, 2])), torch.tensor([0, 0, 2]))


def test_layers_are_shown_with_their_sizes() -> None:
    own = layers.Sequential(layers.Linear(4, 3), layers.ReLU())
    assert "Linear(in_features=4, out_features=3)" in repr(own)
    assert (len(own), own[1]) == (2, list(own.children())[1])


def test_sequential_holds_its_layers_as_torch_s_does() -> None:
    own = layers.Sequential(layers.Flatten(), layers.Linear(4, 3), layers.ReLU())
    assert list(own.state_dict()) == ["1.weight", "1.bias"]
    assert len(list(own.parameters())) == 2
    inputs = torch.randn(2, 2, 2, generator=seeded(0))
    assert torch.equal(
        own(inputs), layers.ReLU()(layers.Linear.forward(own.get_submodule("1"), inputs.flatten(1)))
    )


def test_ten_steps_of_the_written_out_perceptron_are_torch_s() -> None:
    expected = torch_s()
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


def test_ten_steps_of_the_raw_tensors_are_torch_s() -> None:
    expected = torch_s()
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
