from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional

from mlp_dist.core.kinds import KINDS
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.training.precision import Float64Gradients

SIZES = (784, 500, 10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(kind: str) -> nn.Module:
    return build_model(ModelSpec(SIZES, kind), generator=seeded(0))


def batch(rows: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 784, generator=seeded(1)), torch.randint(10, (rows,), generator=seeded(2))


def add(exact: Float64Gradients, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    outputs = exact(inputs)
    functional.cross_entropy(outputs, labels, reduction="sum").backward()
    return outputs


def taken(module: nn.Module) -> list[torch.Tensor]:
    """The float32 gradients, which are removed from the module."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    module.zero_grad()
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    return gradients


def by_processes(kind: str, inputs: torch.Tensor, labels: torch.Tensor, world: int) -> list[torch.Tensor]:
    """The gradient of the mean loss, with one share for each process."""
    module = built(kind)
    processes = [Float64Gradients(module) for _ in range(world)]
    for rank, process in enumerate(processes):
        add(process, inputs[rank::world], labels[rank::world])

    def add_others(sums: torch.Tensor) -> torch.Tensor:
        for other in processes[1:]:
            other.write(scale=1.0, reduce=sums.add_)
        return sums

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


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Bit for bit, except for one in a hundred thousand on the edge of rounding."""
    for one, other in zip(found, expected, strict=True):
        assert (one != other).double().mean() <= 1e-5
        torch.testing.assert_close(one, other, rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [100, 3])
def test_gradient_is_independent_of_processes_and_threads(kind: str, rows: int) -> None:
    inputs, labels = batch(rows)
    with threads(1):
        alone = by_processes(kind, inputs, labels, 1)
    for num_threads, world in ((1, 4), (2, 1), (2, 2)):
        with threads(num_threads):
            assert_same(by_processes(kind, inputs, labels, world), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_that_of_a_float64_model(kind: str) -> None:
    inputs, labels = batch(20)
    module, doubles = built(kind), built(kind).double()
    exact = Float64Gradients(module)
    for _ in range(3):
        doubles.load_state_dict(module.state_dict())
        outputs = torch.cat([add(exact, inputs[part::2], labels[part::2]) for part in range(2)])
        exact.write(scale=1 / 20)
        expected = doubles(inputs.double())
        torch.testing.assert_close(outputs, torch.cat([expected[0::2], expected[1::2]]))
        functional.cross_entropy(expected, labels).backward()
        wanted = [parameter.grad.float() for parameter in doubles.parameters() if parameter.grad is not None]
        doubles.zero_grad()
        torch.optim.SGD(module.parameters(), lr=0.1).step()
        assert_same(taken(module), wanted)
