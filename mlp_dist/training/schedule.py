"""Learning rates as a function of the step alone, so that a resumed training needs no scheduler state."""

import math

from mlp_dist.config import SCHEDULES

_PEAK, _START_DIVISOR, _END_DIVISOR = 0.3, 25.0, 1e4
"""Defaults of torch's OneCycleLR: pct_start, div_factor and final_div_factor."""


def learning_rate(schedule: str, *, lr: float, step: int, num_steps: int, warmup_steps: int = 0) -> float:
    """The rate of `step`, from 0, in a training of `num_steps` with the peak rate `lr`.

    Step i of the first `warmup_steps` has lr * (i + 1) / warmup_steps. Step k of the remaining n steps has

    - constant: lr;
    - cosine: lr * (1 + cos(pi * k / n)) / 2 (Loshchilov and Hutter 2017, without restarts);
    - linear: lr * (1 - k / n).

    one-cycle (Smith and Topin 2019) is torch's OneCycleLR with its defaults and constant momentum: half a
    cosine from lr / 25 up to lr, then half a cosine down to lr / 250,000 at the last step. It rises over 30 %
    of the steps, or over `warmup_steps` if that is not 0.

    Raises ValueError for an unknown schedule or a step outside the training.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r} (choose from {', '.join(SCHEDULES)})")
    if not 0 <= step < num_steps:
        raise ValueError(f"step {step} is outside a training of {num_steps} steps")
    if schedule == "one-cycle":
        return _one_cycle(lr, step, num_steps, warmup_steps)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (num_steps - warmup_steps)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    return lr * (1 - done) if schedule == "linear" else lr


def _one_cycle(lr: float, step: int, num_steps: int, warmup_steps: int) -> float:
    start = lr / _START_DIVISOR
    # With fewer than four steps torch's peak lies before the first.
    peak = (warmup_steps or _PEAK * num_steps) - 1
    if step < peak:
        return _half_cosine(start, lr, step / peak)
    if step == peak:
        return lr
    return _half_cosine(lr, start / _END_DIVISOR, (step - peak) / (num_steps - 1 - peak))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))
