import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mlp_dist.config import TrainConfig
from mlp_dist.training.optim import ScratchSGD, build_optimizer

CONFIG = TrainConfig(recipe="small", dataset="digits", hidden_sizes=(), lr=0.3, batch_size=8, epochs=1)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((3, 4), (3,))]


def give_gradients(values: list[torch.nn.Parameter], step: int) -> None:
    for value in values:
        value.grad = torch.sin(value.detach() * (step + 1))


@pytest.mark.parametrize(
    ("name", "made"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("scratch-sgd", ScratchSGD)],
)
def test_the_configuration_s_optimizer_at_its_learning_rate(name: str, made: type) -> None:
    optimizer = build_optimizer(replace(CONFIG, optimizer=name), parameters())
    assert type(optimizer) is made
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]


@pytest.mark.parametrize("lr", [0.001, 0.3, 2.0])
def test_ten_steps_of_the_written_out_sgd_are_torch_s(lr: float) -> None:
    ours, theirs = parameters(), parameters()
    own, expected = ScratchSGD(ours, lr=lr), torch.optim.SGD(theirs, lr=lr)
    for step in range(10):
        for optimizer, values in ((own, ours), (expected, theirs)):
            give_gradients(values, step)
            optimizer.step()
        for found, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_it_takes_a_changed_learning_rate_and_leaves_what_has_no_gradient() -> None:
    first, second = parameters()
    optimizer = ScratchSGD([first, second], lr=1.0)
    optimizer.param_groups[0]["lr"] = 0.5
    first.grad = torch.ones_like(first)
    before, untouched = first.detach().clone(), second.detach().clone()
    optimizer.step()
    assert torch.equal(first, before - 0.5)
    assert torch.equal(second, untouched)
    optimizer.zero_grad()
    assert first.grad is None


def test_its_state_dict_goes_both_ways() -> None:
    optimizer = ScratchSGD(parameters(), lr=0.25)
    other = ScratchSGD(parameters(), lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.25


def test_a_closure_is_called_with_gradients() -> None:
    value = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = ScratchSGD([value], lr=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = value.square().sum()
        loss.backward()
        return loss.item()

    ask: Callable[[], float] = closure
    assert optimizer.step(ask) == 4.0
    assert value.item() == 0.0


def test_an_optimizer_is_made_without_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from mlp_dist.training.optim import build_optimizer\n"
        "from mlp_dist.recipes import get_recipe\n"
        "weight = torch.nn.Parameter(torch.ones(2))\n"
        "optimizer = build_optimizer(get_recipe('mnist'), [weight])\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "optimizer.zero_grad()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
