"""Gradient products of a plain perceptron's layers, and what the optimizer makes of them."""

from itertools import accumulate
from typing import Protocol

import torch

from mlp_dist.training.engines.exchange import build_exchange
from mlp_dist.training.engines.job import Job


class Update(Protocol):
    def scale(self, batch_size: int, rate: float) -> float:
        """What `add` wants the derivatives of a batch's summed loss to be multiplied with."""

    def add(self, layer: int, inputs: torch.Tensor, derivatives: torch.Tensor) -> None:
        """The part in the step of a layer, of the rows' inputs and the derivatives by its outputs."""

    def step(self, rate: float) -> None:
        """The rest, once all layers are added."""

    def finish(self) -> None:
        """Bring the optimizer's state up to the last step."""


class SGDInProduct:
    """Plain SGD; the product that makes a gradient adds it to the weights at once."""

    def __init__(self, weights: list[torch.Tensor], biases: list[torch.Tensor], weight_decay: float) -> None:
        self._weights, self._biases, self._decay = weights, biases, weight_decay
        self._sums, self._kept = [torch.empty_like(bias) for bias in biases], 1.0

    def scale(self, batch_size: int, rate: float) -> float:
        self._kept = 1 - rate * self._decay
        return -rate / batch_size

    def add(self, layer: int, inputs: torch.Tensor, derivatives: torch.Tensor) -> None:
        self._weights[layer].addmm_(derivatives.t(), inputs, beta=self._kept)
        bias, total = self._biases[layer], self._sums[layer]
        torch.sum(derivatives, 0, out=total)
        if self._decay:
            bias.mul_(self._kept)
        bias.add_(total)

    def step(self, rate: float) -> None:
        pass

    def finish(self) -> None:
        pass


class ByGradient:
    """Gradients in one flat buffer, summed over the processes where each has made its rows' part of it.

    A layer's part is sent as soon as it is made, while the next one's is being made.
    """

    def __init__(
        self, job: Job, weights: list[torch.Tensor], biases: list[torch.Tensor], *, reduce: bool
    ) -> None:
        self._optimizer = build_rule(job)
        sizes = [weight.numel() + bias.numel() for weight, bias in zip(weights, biases, strict=True)]
        flat, ends = torch.empty(sum(sizes)), list(accumulate(sizes))
        self.exchange = build_exchange(flat) if reduce else None
        self._parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        parts = torch.split(flat, sizes)
        self._weights = [
            part[: weight.numel()].view_as(weight) for part, weight in zip(parts, weights, strict=True)
        ]
        self._biases = [part[weight.numel() :] for part, weight in zip(parts, weights, strict=True)]
        pairs = zip(self._weights, self._biases, strict=True)
        self._gradients = [gradient for pair in pairs for gradient in pair]

    def scale(self, batch_size: int, rate: float) -> float:
        return 1 / batch_size

    def add(self, layer: int, inputs: torch.Tensor, derivatives: torch.Tensor) -> None:
        torch.mm(derivatives.t(), inputs, out=self._weights[layer])
        torch.sum(derivatives, 0, out=self._biases[layer])
        if self.exchange is not None:
            self.exchange.start(self._parts[layer])

    def step(self, rate: float) -> None:
        if self.exchange is not None:
            self.exchange.finish()
        self._optimizer.step(self._gradients, rate)

    def finish(self) -> None:
        self._optimizer.finish()


class Rule(Protocol):
    """What an optimizer makes of the gradients, on a CPU or a GPU.

    A rate that is a tensor, float32 () on the parameters' device, is read there when the step is taken.
    """

    def step(self, gradients: list[torch.Tensor], rate: float | torch.Tensor) -> None:
        """The gradients are in the order of the module's parameters."""

    def finish(self) -> None:
        """Bring the optimizer's state up to the last step."""


class _SGD:
    def __init__(self, job: Job) -> None:
        self._decay = job.config.weight_decay
        self._parameters = [parameter.detach() for parameter in job.module.parameters()]

    def step(self, gradients: list[torch.Tensor], rate: float | torch.Tensor) -> None:
        torch._fused_sgd_(
            self._parameters,
            gradients,
            [],
            lr=rate,
            weight_decay=self._decay,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def finish(self) -> None:
        pass


class _Adam:
    """torch's fused one on the state of the job's optimizer, whose own step would take twice as long."""

    def __init__(self, job: Job) -> None:
        states = adam_states(job)
        (group,) = job.optimizer.param_groups
        self._options = {
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "amsgrad": False,
            "maximize": False,
        }
        self._update = torch._fused_adamw_ if job.config.weight_decay else torch._fused_adam_
        self._parameters = [parameter.detach() for parameter in job.module.parameters()]
        self._averages = [state["exp_avg"] for state in states]
        self._squares = [state["exp_avg_sq"] for state in states]
        self._steps = [state["step"] for state in states]
        self._step = self._steps[0].clone()

    def step(self, gradients: list[torch.Tensor], rate: float | torch.Tensor) -> None:
        self._step.add_(1)
        self._update(
            self._parameters,
            gradients,
            self._averages,
            self._squares,
            [],
            [self._step] * len(gradients),
            lr=rate,
            **self._options,
        )

    def finish(self) -> None:
        for step in self._steps:
            step.copy_(self._step)


def adam_states(job: Job) -> list[dict[str, torch.Tensor]]:
    """The optimizer's state of each parameter, made as torch's fused Adam would where there is none yet."""
    parameters, states = list(job.module.parameters()), job.optimizer.state
    for parameter in parameters:
        if not states[parameter]:
            states[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return [states[parameter] for parameter in parameters]


def build_rule(job: Job) -> Rule:
    return _Adam(job) if job.config.optimizer == "adam" else _SGD(job)


def build_update(
    job: Job, weights: list[torch.Tensor], biases: list[torch.Tensor], *, reduce: bool
) -> Update:
    """`reduce`: whether the gradients of several processes have to be summed."""
    if job.config.optimizer == "sgd" and not reduce:
        return SGDInProduct(weights, biases, job.config.weight_decay)
    return ByGradient(job, weights, biases, reduce=reduce)
