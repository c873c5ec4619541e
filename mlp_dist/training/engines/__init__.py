"""Engines run training steps: AcceleratedEngine any, CPUEngine those of a plain MLP in one process."""

from collections.abc import Sequence
from typing import Protocol

import torch
from accelerate import Accelerator

from mlp_dist.data.image_set import ImageSet
from mlp_dist.training.engines.accelerated import AcceleratedEngine
from mlp_dist.training.engines.cpu import CPUEngine
from mlp_dist.training.state import RunContext, TrainState

__all__ = ["AcceleratedEngine", "CPUEngine", "Engine", "build_engine"]


class Engine(Protocol):
    """Runs training steps; most efficient with about `steps_at_once` of them per call."""

    steps_at_once: int

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        """Take one step for each global batch of `sizes`; `step`, from 0, is the number of the first one.

        `images` are this process's share of the batches, one batch after the other: of each batch every
        `num_processes`-th image from `process_index` on. Updates the state's model, optimizer and average.
        Returns this process's (summed loss, number correct) of each step, float64 (len(sizes), 2).
        """


def build_engine(state: TrainState, run: RunContext, accelerator: Accelerator) -> Engine:
    """The fast engine where it honours every option that is set, otherwise the general one."""
    if CPUEngine.supports(state, accelerator):
        return CPUEngine(state, run)
    return AcceleratedEngine(state, run, accelerator)
