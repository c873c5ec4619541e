"""TrainConfig -> optimizer, and plain SGD written out."""

import sys
from collections.abc import Callable, Iterable

import torch

from mlp_dist.config import TrainConfig


class ScratchSGD(torch.optim.Optimizer):
    """Plain stochastic gradient descent, as torch.optim.SGD: parameter -= lr * gradient.

    `weight_decay` times the parameter is added to its gradient.
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
                # What an earlier version's checkpoint holds has no weight decay.
                if decay := group.get("weight_decay", 0.0):
                    gradient = gradient.add(parameter, alpha=decay)
                parameter.add_(gradient, alpha=-group["lr"])
        return loss


def build_optimizer(config: TrainConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The configuration's optimizer at its learning rate and weight decay, all else torch's defaults.

    Adam's weight decay is decoupled from its gradient's scale: AdamW (Loshchilov and Hutter, 2019).
    """
    lr, weight_decay = config.lr, config.weight_decay
    if not config.compile:
        _leave_out_the_compiler()
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)
    if config.optimizer == "scratch-sgd":
        return ScratchSGD(parameters, lr=lr, weight_decay=weight_decay)
    if weight_decay:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _leave_out_the_compiler() -> None:
    """Let optimizers be made without torch._dynamo, whose import takes a second and 150 MB.

    torch imports it at the first call of these methods, to have them left out of what is being compiled. Here
    nothing is: each is told to stand for itself, as `torch._disable_dynamo` would remember it.
    """
    for name in ("state_dict", "load_state_dict", "zero_grad", "add_param_group"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and "torch._dynamo" not in sys.modules:
            method.__dynamo_disable = method
