"""The gradient of a batch's mean loss, by work that a CUDA graph can hold: nothing in it waits for the GPU.

Both kinds take inputs, float32 (N, features), `targets`, float32 (N, classes), and `logits`, float32
(N, classes), which they fill. The targets are each class's share in the loss: minus its probability, over N.
They give the parameters' gradients in the order of the module's parameters, until the next call.
"""

from functools import lru_cache
from typing import Protocol

import torch
from torch import nn

from mlp_dist.engines.job import Job
from mlp_dist.engines.rows import Buffers


class Passes(Protocol):
    def gradients(
        self, inputs: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor
    ) -> list[torch.Tensor]: ...


class WrittenOut:
    """Of nn.Linear and ReLU in float32, each result in memory that stays: as few kernels as torch allows."""

    def __init__(self, job: Job) -> None:
        linears = [module for module in job.module.modules() if isinstance(module, nn.Linear)]
        self._weights = [linear.weight.detach() for linear in linears]
        self._biases = [linear.bias.detach() for linear in linears]
        self._gradients = [torch.empty_like(parameter) for parameter in job.module.parameters()]
        # Never given up: a graph goes on to use them.
        self._buffers = lru_cache(maxsize=None)(self._buffers_of)

    @staticmethod
    def takes(job: Job) -> bool:
        return job.config.model == "module" and job.config.mixed_precision == "no"

    @torch.no_grad()
    def gradients(
        self, inputs: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor
    ) -> list[torch.Tensor]:
        values, derivatives = self._buffers(len(inputs))
        for layer, after in enumerate(values):
            before = values[layer - 1] if layer else inputs
            torch._addmm_activation(self._biases[layer], before, self._weights[layer].t(), out=after)
        torch.addmm(self._biases[-1], [inputs, *values][-1], self._weights[-1].t(), out=logits)
        torch.softmax(logits, 1, out=derivatives[-1])
        torch.add(targets, derivatives[-1], alpha=1 / len(inputs), out=derivatives[-1])
        for layer in range(len(values) - 1, -1, -1):
            here = derivatives[layer]
            torch.mm(derivatives[layer + 1], self._weights[layer + 1], out=here)
            torch.ops.aten.threshold_backward.grad_input(here, values[layer], 0, grad_input=here)
        for layer, derivative in enumerate(derivatives):
            before = values[layer - 1] if layer else inputs
            torch.mm(derivative.t(), before, out=self._gradients[2 * layer])
            torch.sum(derivative, 0, out=self._gradients[2 * layer + 1])
        return self._gradients

    def _buffers_of(self, batch_size: int) -> Buffers:
        device = self._biases[0].device
        buffers = [torch.empty(batch_size, len(bias), device=device) for bias in self._biases]
        return Buffers([torch.empty_like(buffer) for buffer in buffers[:-1]], buffers)


class ByAutograd:
    """Of any module; under autocast where bf16 is asked for."""

    def __init__(self, job: Job) -> None:
        self._module, self._parameters = job.module, list(job.module.parameters())
        self._bf16, self._device_type = job.config.mixed_precision == "bf16", job.device.type

    def gradients(
        self, inputs: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor
    ) -> list[torch.Tensor]:
        # A weight cast in one step would be out of date in the next.
        with (
            torch.enable_grad(),
            torch.autocast(self._device_type, torch.bfloat16, enabled=self._bf16, cache_enabled=False),
        ):
            answers = self._module(inputs).float()
        with torch.enable_grad():
            loss = (targets * answers.log_softmax(dim=1)).sum()
        logits.copy_(answers.detach())
        return list(torch.autograd.grad(loss, self._parameters))


def build_passes(job: Job) -> Passes:
    return WrittenOut(job) if WrittenOut.takes(job) else ByAutograd(job)
