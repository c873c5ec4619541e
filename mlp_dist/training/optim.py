"""The optimizers and learning rates of a TrainConfig, and plain SGD written out.

Rates are a function of the step alone, so that a resumed training needs no scheduler state.
"""

import math
import sys
from collections.abc import Callable, Iterable

import torch

from mlp_dist.config import TrainConfig

_PEAK, _START_DIVISOR, _END_DIVISOR = 0.3, 25.0, 1e4
"""Defaults of torch's OneCycleLR: pct_start, div_factor and final_div_factor."""


class ScratchSGD(torch.optim.Optimizer):
    """Stochastic gradient descent as in torch.optim.SGD: parameter -= lr * gradient.

    `weight_decay` times the parameter is added to the gradient.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                # Old checkpoints have no weight decay.
                if decay := group.get("weight_decay", 0.0):
                    gradient = gradient.add(parameter, alpha=decay)
                parameter.add_(gradient, alpha=-group["lr"])
        return loss


def build_optimizer(config: TrainConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with weight decay is AdamW, decoupled from the gradient (Loshchilov and Hutter, 2019)."""
    lr, weight_decay = config.lr, config.weight_decay
    if not config.compile:
        _avoid_dynamo()
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)
    if config.optimizer == "scratch-sgd":
        return ScratchSGD(parameters, lr=lr, weight_decay=weight_decay)
    if weight_decay:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _avoid_dynamo() -> None:
    """Keep optimizers from importing torch._dynamo, which takes a second and 150 MB.

    torch wraps these methods in `torch._disable_dynamo`, which imports it on the first call and caches the
    result in this attribute.
    """
    for name in ("state_dict", "load_state_dict", "zero_grad", "add_param_group"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and "torch._dynamo" not in sys.modules:
            method.__dynamo_disable = method


def learning_rate(schedule: str, *, lr: float, step: int, num_steps: int, warmup_steps: int = 0) -> float:
    """The rate of `step`, from 0, in a training of `num_steps` with the peak rate `lr`.

    Step i of the first `warmup_steps` has lr * (i + 1) / warmup_steps. Step k of the remaining n steps has

    - constant: lr;
    - cosine: lr * (1 + cos(pi * k / n)) / 2 (Loshchilov and Hutter 2017, without restarts);
    - linear: lr * (1 - k / n).

    one-cycle (Smith and Topin 2019) is torch's OneCycleLR with its defaults and constant momentum: half a
    cosine from lr / 25 up to lr, then half a cosine down to lr / 250,000 at the last step. It rises over 30 %
    of the steps, or over `warmup_steps` if that is not 0.

    Raises ValueError for a step outside the training.
    """
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
