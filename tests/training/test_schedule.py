import itertools
import math
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from mlp_dist.config import SCHEDULES
from mlp_dist.training.schedule import learning_rate

LENGTHS = [1, 2, 3, 4, 5, 10, 11, 100, 550]
WARMUPS = [0, 1, 2, 5, 30]


def rates(schedule: str, num_steps: int, warmup_steps: int = 0, lr: float = 0.1) -> list[float]:
    return [
        learning_rate(schedule, lr=lr, step=step, num_steps=num_steps, warmup_steps=warmup_steps)
        for step in range(num_steps)
    ]


def sgd(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def stepped(scheduler: lr_scheduler.LRScheduler, num_steps: int) -> list[float]:
    """The rates of a torch scheduler's steps."""
    found = []
    with warnings.catch_warnings():
        # SequentialLR gives its parts an argument that torch deprecates.
        warnings.simplefilter("ignore")
        for _ in range(num_steps):
            found.append(float(scheduler.get_last_lr()[0]))
            scheduler.optimizer.step()
            scheduler.step()
    return found


def after_warmup(
    optimizer: torch.optim.Optimizer, warmup_steps: int, then: lr_scheduler.LRScheduler
) -> lr_scheduler.LRScheduler:
    warmup = lr_scheduler.LinearLR(
        optimizer, start_factor=1 / warmup_steps, end_factor=1, total_iters=warmup_steps - 1
    )
    return lr_scheduler.SequentialLR(optimizer, [warmup, then], milestones=[warmup_steps])


@pytest.mark.parametrize("num_steps", LENGTHS)
def test_constant_is_the_learning_rate(num_steps: int) -> None:
    assert rates("constant", num_steps) == [0.1] * num_steps


@pytest.mark.parametrize("num_steps", LENGTHS)
def test_cosine_is_torch_s(num_steps: int) -> None:
    expected = stepped(lr_scheduler.CosineAnnealingLR(sgd(0.1), T_max=num_steps), num_steps)
    assert rates("cosine", num_steps) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_steps", LENGTHS)
def test_linear_is_torch_s(num_steps: int) -> None:
    scheduler = lr_scheduler.LinearLR(sgd(0.1), start_factor=1, end_factor=0, total_iters=num_steps)
    assert rates("linear", num_steps) == pytest.approx(stepped(scheduler, num_steps), rel=1e-9)


@pytest.mark.parametrize("num_steps", LENGTHS)
def test_one_cycle_is_torch_s(num_steps: int) -> None:
    scheduler = lr_scheduler.OneCycleLR(sgd(0.1), 0.1, total_steps=num_steps, cycle_momentum=False)
    assert rates("one-cycle", num_steps) == pytest.approx(stepped(scheduler, num_steps), rel=1e-12)


@pytest.mark.parametrize("warmup_steps", [2, 5, 30, 99])
def test_one_cycle_with_a_warm_up_is_torch_s_with_that_share(warmup_steps: int) -> None:
    share = warmup_steps / 100
    scheduler = lr_scheduler.OneCycleLR(sgd(0.1), 0.1, total_steps=100, pct_start=share, cycle_momentum=False)
    found = rates("one-cycle", 100, warmup_steps)
    assert found == pytest.approx(stepped(scheduler, 100), rel=1e-12)
    assert max(found) == found[warmup_steps - 1] == 0.1


@pytest.mark.parametrize("warmup_steps", [2, 5, 30])
def test_after_the_warm_up_the_schedules_are_torch_s(warmup_steps: int) -> None:
    rest = 100 - warmup_steps
    for schedule in ("constant", "cosine", "linear"):
        optimizer = sgd(0.1)
        then: lr_scheduler.LRScheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest)
        if schedule != "cosine":
            last = 0 if schedule == "linear" else 1
            then = lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=last, total_iters=rest)
        expected = stepped(after_warmup(optimizer, warmup_steps, then), 100)
        assert rates(schedule, 100, warmup_steps) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(1, 1), (1, 3), (2, 2), (5, 5), (5, 9)])
def test_one_cycle_that_is_all_warm_up_only_rises(num_steps: int, warmup_steps: int) -> None:
    found = rates("one-cycle", num_steps, warmup_steps)
    assert found == sorted(found)
    assert (found[-1] == 0.1) is (warmup_steps == num_steps)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup_steps", [1, 4, 10, 15])
def test_the_warm_up_rises_by_equal_parts_as_far_as_the_training_goes(
    schedule: str, warmup_steps: int
) -> None:
    found = rates(schedule, 10, warmup_steps, lr=0.3)[:warmup_steps]
    assert found == pytest.approx([0.3 * (step + 1) / warmup_steps for step in range(min(warmup_steps, 10))])


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_the_last_step_has_the_rate_that_the_docstring_tells(num_steps: int) -> None:
    last = {schedule: rates(schedule, num_steps)[-1] for schedule in SCHEDULES}
    assert last == pytest.approx(
        {
            "constant": 0.1,
            "cosine": 0.1 * math.sin(math.pi / 2 / num_steps) ** 2,
            "linear": 0.1 / num_steps,
            "one-cycle": 0.1 / 250_000,
        }
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_steps", "warmup_steps"), [*itertools.product(LENGTHS, WARMUPS)])
def test_every_rate_is_above_zero_and_at_most_lr(schedule: str, num_steps: int, warmup_steps: int) -> None:
    found = rates(schedule, num_steps, warmup_steps)
    assert all(0 < rate <= 0.1 for rate in found)
    if 0 < warmup_steps <= num_steps:
        assert found[warmup_steps - 1] == pytest.approx(0.1)


@pytest.mark.parametrize("step", [-1, 10, 11])
def test_a_step_outside_the_training_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=rf"step {step} is none of 10 steps"):
        learning_rate("cosine", lr=0.1, step=step, num_steps=10)


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown schedule 'cosin' \(there are: constant, cosine, linear, one"
    ):
        learning_rate("cosin", lr=0.1, step=0, num_steps=10)
