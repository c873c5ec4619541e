"""What an engine trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from mlp_dist.config import TrainConfig
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.image_set import ImageSet
from mlp_dist.training.ema import MovingAverage


@dataclass(frozen=True)
class Job:
    """A model and all that its steps need; engines change `module`, `optimizer` and `average` in place.

    `set_learning_rate` gives the optimizer the rate of a step, counted from 0, and returns it.
    """

    config: TrainConfig
    accelerator: Accelerator
    module: nn.Module
    optimizer: torch.optim.Optimizer
    image: ImageSpec
    set_learning_rate: Callable[[int], float]
    average: MovingAverage | None = None
    matmul_precision: str = "highest"

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_plain(self) -> bool:
        """Whether a step is no more than products, ReLU, cross entropy and SGD or Adam, in float32."""
        config = self.config
        return (
            config.model == "module"
            and config.optimizer in ("sgd", "adam")
            and config.mixed_precision == "no"
            and config.gradient_dtype == "float32"
            and config.accumulation_steps == 1
            and config.clip_norm is None
            and not (config.compile or config.dropout or config.augment_shift)
            and not (config.deform or config.adversarial)
        )


class Engine(Protocol):
    """Runs training steps, several in a call where that is faster: about `steps_at_once`."""

    steps_at_once: int

    def rows(self, batches: Sequence[torch.Tensor]) -> torch.Tensor:
        """The indices of the images that this process needs for these global batches, int64 (N,)."""

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        """Take a step with each of some global batches of `sizes`; `step`, counted from 0, with the first.

        `images` are those of the batches' `rows`. Returns for each step this process's part of (summed loss,
        number correct), float64 (len(sizes), 2).
        """
