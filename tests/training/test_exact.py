from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional

from mlp_dist.core.model import build_model
from mlp_dist.core.spec import KINDS, ModelSpec
from mlp_dist.training.dropout import Dropout
from mlp_dist.training.engines.float64 import Float64Gradients

SIZES = (784, 500, 10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(kind: str, sizes: tuple[int, ...] = SIZES) -> nn.Module:
    return build_model(ModelSpec(sizes, kind), generator=seeded(0))


def batch(rows: int = 100, features: int = 784) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(rows, features, generator=seeded(1)),
        torch.randint(10, (rows,), generator=seeded(2)),
    )


def add(exact: Float64Gradients, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    outputs = exact(inputs)
    functional.cross_entropy(outputs, labels, reduction="sum").backward()
    return outputs


def taken(module: nn.Module) -> list[torch.Tensor]:
    """The gradients, which the module then has no more."""
    gradients = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
    return [gradient for gradient in gradients if gradient is not None]


def by_processes(kind: str, inputs: torch.Tensor, labels: torch.Tensor, world: int) -> list[torch.Tensor]:
    """The gradient of the mean loss, each process having computed its share."""
    module = built(kind)
    processes = [Float64Gradients(module) for _ in range(world)]
    for rank, process in enumerate(processes):
        add(process, inputs[rank::world], labels[rank::world])

    def add_others(sums: torch.Tensor) -> None:
        assert (sums.dtype, sums.shape) == (torch.float64, (sum(map(torch.numel, module.parameters())),))
        for other in processes[1:]:
            other.write(scale=1.0, reduce=sums.add_)

    processes[0].write(scale=1 / len(labels), reduce=add_others)
    return taken(module)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_the_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Bit for bit, but for one in a hundred thousand that may be on the edge of rounding."""
    for one, other in zip(found, expected, strict=True):
        assert (one != other).double().mean() <= 1e-5
        torch.testing.assert_close(one, other, rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [100, 7])
def test_any_number_of_processes_and_threads_finds_the_same_gradient(kind: str, rows: int) -> None:
    inputs, labels = batch(rows)
    with threads(1):
        alone = by_processes(kind, inputs, labels, 1)
    for num_threads, world in ((1, 2), (1, 4), (2, 1), (2, 2)):
        with threads(num_threads):
            assert_the_same(by_processes(kind, inputs, labels, world), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_share_adds_nothing(kind: str) -> None:
    inputs, labels = batch(3)
    assert_the_same(by_processes(kind, inputs, labels, 5), by_processes(kind, inputs, labels, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [SIZES, (784, 64, 32, 10), (784, 10)], ids=str)
def test_outputs_and_gradients_are_autograd_s(kind: str, sizes: tuple[int, ...]) -> None:
    inputs, labels = batch()
    module, doubles = built(kind, sizes), built(kind, sizes).double()
    exact = Float64Gradients(module)
    outputs = add(exact, inputs, labels)
    exact.write(scale=1 / 100)
    found = taken(module)

    functional.cross_entropy(module(inputs), labels).backward()
    for one, other in zip(found, taken(module), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)

    expected = doubles(inputs.double())
    assert torch.equal(outputs, expected)
    functional.cross_entropy(expected, labels).backward()
    for one, parameter in zip(found, doubles.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(one, parameter.grad.float(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_batch_add_up(kind: str) -> None:
    inputs, labels = batch()
    module = built(kind)
    exact = Float64Gradients(module)
    for part in range(4):
        add(exact, inputs[part::4], labels[part::4])
    exact.write(scale=1 / 100)
    assert_the_same(taken(module), by_processes(kind, inputs, labels, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_has_the_weights_and_the_gradient_of_its_own(kind: str) -> None:
    inputs, labels = batch(20)
    module, doubles = built(kind), built(kind)
    exact = Float64Gradients(module)
    for _ in range(3):
        add(exact, inputs, labels)
        exact.write(scale=1 / 20)
        functional.cross_entropy(doubles(inputs), labels).backward()
        for one in (module, doubles):
            torch.optim.SGD(one.parameters(), lr=0.1).step()
            one.zero_grad()
    for found, expected in zip(module.parameters(), doubles.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_in_it(kind: str) -> None:
    inputs, _ = batch(20)
    module = built(kind)
    dropout = Dropout(module, 0.5, seed=0)
    dropout.at(0, batch_size=20, positions=slice(None))
    torch.testing.assert_close(Float64Gradients(module)(inputs).float(), module(inputs), rtol=0, atol=1e-5)


def test_write_before_backward_is_refused_with_the_parameter_s_name() -> None:
    module = built("module")
    exact = Float64Gradients(module)
    exact(batch()[0])
    with pytest.raises(RuntimeError, match=r"0\.weight has no gradient: backward comes before write"):
        exact.write(scale=1.0)
