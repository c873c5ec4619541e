"""Parameter updates of CPUEngine: gradient products and the optimizer's rule."""

from collections.abc import Callable

import torch

from mlp_dist.training.state import TrainState

ADAM_KERNEL, ADAMW_KERNEL = "_fused_adam_", "_fused_adamw_"
"""Private names of torch; without them the optimizer's own step is taken."""


class SGDUpdate:
    """Plain SGD: the product that computes a gradient adds it to the weights directly."""

    def __init__(self, weights: list[torch.Tensor], biases: list[torch.Tensor], weight_decay: float) -> None:
        self._weights, self._biases, self._decay = weights, biases, weight_decay
        self._sums, self._kept = [torch.empty_like(bias) for bias in biases], 1.0

    def scale(self, batch_size: int, rate: float) -> float:
        """The factor that `add` expects on the derivatives of a batch's summed loss."""
        self._kept = 1 - rate * self._decay
        return -rate / batch_size

    def add(self, layer: int, inputs: torch.Tensor, derivatives: torch.Tensor) -> None:
        """Process a layer's inputs (rows, fan_in) and loss derivatives by its outputs (rows, fan_out)."""
        self._weights[layer].addmm_(derivatives.t(), inputs, beta=self._kept)
        bias, total = self._biases[layer], self._sums[layer]
        torch.sum(derivatives, 0, out=total)
        if self._decay:
            bias.mul_(self._kept)
        bias.add_(total)

    def step(self, rate: float) -> None:
        """Finish the step after `add` was called for all layers."""

    def finish(self) -> None:
        """Bring the optimizer's state up to the last step."""


class OptimizerUpdate:
    """Any rule: the optimizer's own step."""

    def __init__(self, weights: list[torch.Tensor], biases: list[torch.Tensor], state: TrainState) -> None:
        self._weights = [torch.empty_like(weight) for weight in weights]
        self._biases = [torch.empty_like(bias) for bias in biases]
        pairs = zip(self._weights, self._biases, strict=True)
        self._gradients = [gradient for pair in pairs for gradient in pair]
        self._parameters, self._optimizer = list(state.model.parameters()), state.optimizer

    def scale(self, batch_size: int, rate: float) -> float:
        return 1 / batch_size

    def add(self, layer: int, inputs: torch.Tensor, derivatives: torch.Tensor) -> None:
        torch.mm(derivatives.t(), inputs, out=self._weights[layer])
        torch.sum(derivatives, 0, out=self._biases[layer])

    def step(self, rate: float) -> None:
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()

    def finish(self) -> None:
        pass


class AdamUpdate(OptimizerUpdate):
    """Adam or AdamW: torch's fused kernel on the optimizer's state, at half the time of its own `step`."""

    def __init__(
        self,
        weights: list[torch.Tensor],
        biases: list[torch.Tensor],
        state: TrainState,
        kernel: Callable[..., None],
    ) -> None:
        super().__init__(weights, biases, state)
        states = state.optimizer.state
        for parameter in self._parameters:
            if not states[parameter]:
                states[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        self._averages = [states[parameter]["exp_avg"] for parameter in self._parameters]
        self._squares = [states[parameter]["exp_avg_sq"] for parameter in self._parameters]
        self._steps = [states[parameter]["step"] for parameter in self._parameters]
        self._step = self._steps[0].clone()
        (group,) = state.optimizer.param_groups
        self._options = {
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "amsgrad": False,
            "maximize": False,
        }
        self._kernel = kernel

    def step(self, rate: float) -> None:
        self._step.add_(1)
        self._kernel(
            self._parameters,
            self._gradients,
            self._averages,
            self._squares,
            [],
            [self._step] * len(self._gradients),
            lr=rate,
            **self._options,
        )

    def finish(self) -> None:
        for step in self._steps:
            step.copy_(self._step)


def build_update(
    state: TrainState, weights: list[torch.Tensor], biases: list[torch.Tensor]
) -> SGDUpdate | OptimizerUpdate:
    if state.config.optimizer == "sgd":
        return SGDUpdate(weights, biases, state.config.weight_decay)
    kernel = getattr(torch, ADAMW_KERNEL if state.config.weight_decay else ADAM_KERNEL, None)
    if kernel is None:
        return OptimizerUpdate(weights, biases, state)
    return AdamUpdate(weights, biases, state, kernel)
