"""The optimizers of a TrainConfig, and plain SGD written out."""

import sys
from collections.abc import Callable, Iterable

import torch

from mlp_dist.config import TrainConfig


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
