"""TrainConfig -> torch optimizer."""

from collections.abc import Iterable

import torch

from mlp_dist.config import TrainConfig


def build_optimizer(config: TrainConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Plain SGD, or Adam with torch's defaults, at the configuration's learning rate."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr)
    return torch.optim.Adam(parameters, lr=config.lr)
