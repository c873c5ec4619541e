import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mlp_dist.config import TrainConfig
from mlp_dist.training.optim import ScratchSGD, build_optimizer

CONFIG = TrainConfig(recipe="small", dataset="digits", hidden_sizes=(), lr=0.3, batch_size=8, epochs=1)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((3, 4), (3,))]


@pytest.mark.parametrize(
    ("name", "weight_decay", "made"),
    [
        ("sgd", 0.1, torch.optim.SGD),
        ("adam", 0.0, torch.optim.Adam),
        ("adam", 0.1, torch.optim.AdamW),
        ("scratch-sgd", 0.1, ScratchSGD),
    ],
)
def test_builds_the_configured_optimizer(name: str, weight_decay: float, made: type) -> None:
    optimizer = build_optimizer(replace(CONFIG, optimizer=name, weight_decay=weight_decay), parameters())
    assert type(optimizer) is made
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, weight_decay)


def test_scratch_sgd_takes_the_steps_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    optimizers = (ScratchSGD(ours, lr=1.0), torch.optim.SGD(theirs, lr=1.0))
    for step in range(10):
        for optimizer, values in zip(optimizers, (ours, theirs), strict=True):
            optimizer.param_groups[0]["lr"] = 0.3 / (step + 1)
            # The last parameter has no gradient in the first step.
            for value in values[: 1 if step == 0 else 2]:
                value.grad = torch.sin(value.detach() * (step + 1))
            optimizer.step()
        for found, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_optimizers_do_not_import_dynamo() -> None:
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
