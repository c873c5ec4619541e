"""The learning rate of each step, a function of its number alone: a resumed training needs no state."""

import math

from mlp_dist.config import SCHEDULES

_PEAK_SHARE, _START_DIVISOR, _END_DIVISOR = 0.3, 25.0, 1e4
"""torch's OneCycleLR: where its peak lies, and what its first and its last rate are parts of."""


def learning_rate(schedule: str, *, lr: float, step: int, num_steps: int, warmup_steps: int = 0) -> float:
    """The rate of step `step`, from 0, of a training of `num_steps`, its peak being `lr`.

    Step i of the first `warmup_steps` has lr * (i + 1) / warmup_steps. Of the n steps that remain, step k,
    from 0, has

    - constant: lr;
    - cosine: lr * (1 + cos(pi * k / n)) / 2 (Loshchilov and Hutter 2017, without restarts), the last one
      lr * sin(pi / 2n)^2;
    - linear: lr * (1 - k / n), the last one lr / n.

    one-cycle (Smith and Topin 2019) is torch's OneCycleLR with its defaults, momentum left alone: half a
    cosine from lr / 25 up to lr, and half a cosine down to lr / 250,000, the last step's rate. It rises over
    the first 30 % of the steps, or over `warmup_steps` where that is above 0: the last of them has lr.

    A warm-up as long as the training or longer is all there is of it.
    Raises ValueError for a schedule not in SCHEDULES and for a step outside the training.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r} (there are: {', '.join(SCHEDULES)})")
    if not 0 <= step < num_steps:
        raise ValueError(f"step {step} is none of {num_steps} steps, counted from 0")
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
    # In a training of fewer than four steps torch's peak lies before the first.
    peak = (warmup_steps or _PEAK_SHARE * num_steps) - 1
    if step < peak:
        return _half_cosine(start, lr, step / peak)
    if step == peak:
        return lr
    return _half_cosine(lr, start / _END_DIVISOR, (step - peak) / (num_steps - 1 - peak))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))
