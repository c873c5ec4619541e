"""The gradient of a global batch's mean loss, the same on every process, and the optimizer that takes it."""

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.nn import functional

from mlp_dist.config import TrainConfig
from mlp_dist.training.engines.float64 import Float64Gradients


class Gradients:
    """Reduced by DDP, in the parameters' float32."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.accelerator, self.label_smoothing = accelerator, config.label_smoothing
        self.module = module
        self.model, self.optimizer = self._prepared(config, module, optimizer)

    def _prepared(self, config: TrainConfig, module: Any, optimizer: Any) -> tuple[Any, Any]:
        if config.compile:
            # Each size of a batch gets kernels of its own, which don't depend on the sizes that came before.
            module = torch.compile(module, dynamic=False)
        # Accelerate's wrappers cost a small model's step a good part of its time, and do nothing for one
        # process in float32.
        if self.accelerator.num_processes == 1 and config.mixed_precision == "no":
            return module, optimizer
        model, optimizer = self.accelerator.prepare(module, optimizer)
        return model, optimizer

    def add(
        self, inputs: torch.Tensor, labels: torch.Tensor, *, batch_size: int, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of a part of this process's share; with the `last` part it is whole.

        Takes inputs, float32 (N, features), and labels, int64 (N,); returns the part's summed loss and its
        logits (N, classes).
        """
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            logits = self.model(inputs)
            loss = self._loss(logits, labels)
            # DDP takes the mean of the processes' gradients; times their number over the batch's size it is
            # the gradient of the batch's mean loss, however unevenly the batch was shared out.
            self.accelerator.backward(loss * (self.accelerator.num_processes / batch_size))
        return loss, logits

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The summed loss, without what a gradient of the parameters needs on several processes."""
        with self.accelerator.autocast():
            return self._loss(self.module(inputs), labels)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)


class ExactGradients(Gradients):
    """Computed and summed in float64, within a process and over all of them, without DDP."""

    def _prepared(self, config: TrainConfig, module: Any, optimizer: Any) -> tuple[Any, Any]:
        return Float64Gradients(module), optimizer

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._loss(self.model(inputs), labels)

    def add(
        self, inputs: torch.Tensor, labels: torch.Tensor, *, batch_size: int, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(inputs)
        # The plain sum, so that an image's part in it does not depend on the number of processes.
        loss = self._loss(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if last:
            several = self.accelerator.num_processes > 1
            self.model.write(scale=1 / batch_size, reduce=distributed.all_reduce if several else None)
        return loss, logits


def build_gradients(
    config: TrainConfig,
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Gradients:
    kind = ExactGradients if config.gradient_dtype == "float64" else Gradients
    return kind(config, accelerator, module, optimizer)
