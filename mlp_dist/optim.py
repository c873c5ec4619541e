"""TrainConfig -> optimizer, and plain SGD written out."""

from collections.abc import Callable, Iterable

import torch

from mlp_dist.config import TrainConfig


class ScratchSGD(torch.optim.Optimizer):
    """Plain stochastic gradient descent: parameter -= lr * gradient, as torch.optim.SGD without options."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])
        return loss


def build_optimizer(config: TrainConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The configuration's optimizer at its learning rate, all else torch's defaults."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr)
    if config.optimizer == "scratch-sgd":
        return ScratchSGD(parameters, lr=config.lr)
    return torch.optim.Adam(parameters, lr=config.lr)
