import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from mlp_dist.config import OPTIONS
from mlp_dist.training.optim import learning_rate

LR = 0.1


def rates(schedule: str, num_steps: int, warmup_steps: int) -> list[float]:
    return [
        learning_rate(schedule, lr=LR, step=step, num_steps=num_steps, warmup_steps=warmup_steps)
        for step in range(num_steps)
    ]


def by_torch(schedule: str, num_steps: int, warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = torch_scheduler(schedule, optimizer, num_steps, warmup_steps)
    found = []
    with warnings.catch_warnings():
        # SequentialLR passes an argument that torch deprecates.
        warnings.simplefilter("ignore")
        for _ in range(num_steps):
            found.append(float(scheduler.get_last_lr()[0]))
            optimizer.step()
            scheduler.step()
    return found


def torch_scheduler(
    schedule: str, optimizer: torch.optim.Optimizer, num_steps: int, warmup_steps: int
) -> lr_scheduler.LRScheduler:
    if schedule == "one-cycle":
        rise = warmup_steps / num_steps if warmup_steps else 0.3
        return lr_scheduler.OneCycleLR(
            optimizer, LR, total_steps=num_steps, pct_start=rise, cycle_momentum=False
        )
    rest, end = num_steps - warmup_steps, 0 if schedule == "linear" else 1
    then: lr_scheduler.LRScheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest)
    if schedule != "cosine":
        then = lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=end, total_iters=rest)
    if not warmup_steps:
        return then
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
    return lr_scheduler.SequentialLR(optimizer, [warmup, then], milestones=[warmup_steps])


@pytest.mark.parametrize("schedule", OPTIONS["schedule"].choices)
def test_schedules_are_those_of_torch(schedule: str) -> None:
    for steps in ((1, 0), (2, 0), (3, 0), (11, 0), (550, 0), (100, 2), (100, 30)):
        assert rates(schedule, *steps) == pytest.approx(by_torch(schedule, *steps), rel=1e-9)
