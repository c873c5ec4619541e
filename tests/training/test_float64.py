from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional

from mlp_dist.core.kinds import KINDS
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.training.precision import Float64Gradients

SIZES = (784, 500, 10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_processes(kind: str, inputs: torch.Tensor, labels: torch.Tensor, world: int) -> list[torch.Tensor]:
    """The gradient of the mean loss, with one share for each process."""
    module = build_model(ModelSpec(SIZES, kind), generator=seeded(0))
    processes = [Float64Gradients(module) for _ in range(world)]
    for rank, process in enumerate(processes):
        outputs = process(inputs[rank::world])
        functional.cross_entropy(outputs, labels[rank::world], reduction="sum").backward()

    def add_others(sums: torch.Tensor) -> torch.Tensor:
        for other in processes[1:]:
            other.write(scale=1.0, reduce=sums.add_)
        return sums

    processes[0].write(scale=1 / len(labels), reduce=add_others)
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    return gradients


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
    inputs = torch.randn(rows, 784, generator=seeded(1))
    labels = torch.randint(10, (rows,), generator=seeded(2))
    with threads(1):
        alone = by_processes(kind, inputs, labels, 1)
    for num_threads, world in ((1, 4), (2, 1), (2, 2)):
        with threads(num_threads):
            assert_same(by_processes(kind, inputs, labels, world), alone)
