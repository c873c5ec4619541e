"""The input of an engine, and its interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mlp_dist.config import TrainConfig
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.image_set import ImageSet


@dataclass(frozen=True)
class Job:
    """A model and everything its steps need. Engines update `module`, `optimizer` and `average` in place.

    `set_learning_rate` sets the optimizer's rate for a step, counted from 0, and returns it.
    """

    config: TrainConfig
    accelerator: Accelerator
    module: nn.Module
    optimizer: torch.optim.Optimizer
    image: ImageSpec
    set_learning_rate: Callable[[int], float]
    average: AveragedModel | None = None
    matmul_precision: str = "highest"


class Engine(Protocol):
    """Runs training steps; most efficient with about `steps_at_once` of them per call."""

    steps_at_once: int

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        """Take one step for each global batch of `sizes`; `step`, from 0, is the number of the first one.

        `images` are this process's share of the batches, one batch after the other: of each batch every
        `num_processes`-th image from `process_index` on. Returns this process's (summed loss, number
        correct) of each step, float64 (len(sizes), 2).
        """
