"""Training steps of a plain MLP in one CPU process, with forward and backward pass written out.

In a small model autograd's bookkeeping, memory allocation and the optimizer's passes over the parameters cost
as much time as the matrix products. Here results go into preallocated buffers, several steps share their
preparation, and plain SGD's update is part of the product that computes the gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from mlp_dist.config import TrainConfig
from mlp_dist.data.arrays import ImageSet
from mlp_dist.data.augment import augment
from mlp_dist.training.engines.accelerated import Dropout
from mlp_dist.training.precision import Products
from mlp_dist.training.state import RunContext, TrainState

HONORED = frozenset(
    {
        *("recipe", "dataset", "image_size", "normalize", "val_size", "skip_bad_images"),
        *("hidden_sizes", "model", "initialization", "seed", "batch_size", "epochs", "patience"),
        *("optimizer", "lr", "schedule", "warmup_epochs", "weight_decay", "label_smoothing", "ema_decay"),
        *("augment_shift", "deform", "restyle", "dropout", "matmul_precision"),
    }
)
"""The fields of TrainConfig that change a training and that this engine, or the code around it, honors. A
configuration that sets another one is for AcceleratedEngine."""

_MAX_ROWS, _MAX_BYTES = 2**13, 2**24
"""Limits on the images that are normalized at once: enough to hide the calls' overhead."""

_WIDE = 100_000
"""Elements above which an elementwise operation gains from a second thread."""

ADAM_KERNEL, ADAMW_KERNEL = "_fused_adam_", "_fused_adamw_"
"""Private names of torch; without them the optimizer's own step is taken."""


class _Buffers(NamedTuple):
    """Activations of hidden layers and loss derivatives by each layer's outputs, float32 (rows, width)."""

    values: list[torch.Tensor]
    derivatives: list[torch.Tensor]


class CPUEngine:
    """nn.Linear and ReLU in float32 with SGD or Adam. Equals autograd's steps up to rounding."""

    def __init__(self, state: TrainState, context: RunContext) -> None:
        self.state, batch_size, image = state, state.config.batch_size, context.data.image
        num_features, config = image.num_features, state.config
        self._augments = bool(config.augment_shift or config.deform or config.restyle)
        self._dropout = Dropout(state.model, config.dropout, num_features=num_features, seed=config.seed)
        self.steps_at_once = max(1, rows_at_once(num_features) // batch_size)
        linears = [module for module in state.model.modules() if isinstance(module, nn.Linear)]
        self._weights = [linear.weight.detach() for linear in linears]
        self._biases = [linear.bias.detach() for linear in linears]
        self._transposed = [weight.t() for weight in self._weights]
        self._large = [Products.is_large(batch_size, *weight.shape) for weight in self._weights]
        self._products = Products(context.matmul_precision)
        self._update = build_update(state, self._weights, self._biases)
        widths = [linear.out_features for linear in linears]
        self._values = [torch.empty(batch_size, width) for width in widths[:-1]]
        self._derivatives = [torch.empty(batch_size, width) for width in widths]
        # Two sizes: the last batch of an epoch may be shorter.
        self._buffers = lru_cache(maxsize=2)(self._views)
        num_pixels = image.height * image.width
        mean, std = (
            torch.tensor(values, dtype=torch.float64).repeat_interleave(num_pixels)
            for values in (image.mean, image.std)
        )
        self._offset, self._scales = (-mean / std).float(), ((1 / (255 * std)).float(), (1 / std).float())
        most = self.steps_at_once * batch_size
        self._inputs = torch.empty(most, num_features)
        self._logits, self._targets = (torch.empty(most, widths[-1]) for _ in range(2))

    @staticmethod
    def supports(state: TrainState, accelerator: Accelerator) -> bool:
        return (
            accelerator.num_processes == 1
            and accelerator.device.type == "cpu"
            and _set_fields(state.config) <= HONORED
            and type(state.optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
            and _is_plain(state.model)
        )

    @torch.no_grad()
    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        labels, parts = images.labels, list(sizes)
        inputs, targets = self._inputs[: len(labels)], self._one_hot(labels)
        logits = self._logits[: len(labels)]
        if not self._augments:
            self._normalize(images.images, inputs)
        rows = (torch.split(each, parts) for each in (images.images, inputs, targets, logits))
        with self._products:
            for number, (size, pixels, x, target, outputs) in enumerate(zip(parts, *rows, strict=True), step):
                buffers = self._buffers(size)
                rate = self.state.set_learning_rate(number)
                if self._augments:
                    self._products.use(True)
                    self._normalize(augment(pixels, self.state.config, step=number, batch_size=size), x)
                masks = self._dropout.at(number, batch_size=size, positions=slice(None))
                self._forward(x, buffers.values, outputs, masks)
                self._backward(outputs, target, buffers, scale=self._update.scale(size, rate))
                self._update_from(x, buffers, rate)
                if self.state.average is not None:
                    self._update_average(self.state.average)
        self._update.finish()
        smoothing = self.state.config.label_smoothing
        losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        figures = torch.stack([losses, logits.argmax(dim=1) == labels], dim=1).double()
        totals: torch.Tensor = torch.segment_reduce(figures, "sum", lengths=torch.tensor(parts))
        return totals

    def _views(self, size: int) -> _Buffers:
        values, derivatives = ([each[:size] for each in all_] for all_ in (self._values, self._derivatives))
        return _Buffers(values, derivatives)

    def _normalize(self, images: torch.Tensor, inputs: torch.Tensor) -> None:
        """core's `normalize` up to rounding, in one pass instead of three."""
        is_float = images.is_floating_point()
        pixels = images.flatten(1) if is_float else inputs.copy_(images.flatten(1))
        torch.addcmul(self._offset, pixels, self._scales[is_float], out=inputs)

    def _one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        targets, smoothing = self._targets[: len(labels)], self.state.config.label_smoothing
        share = smoothing / targets.shape[1]
        targets.fill_(share).scatter_(1, labels[:, None], 1 - smoothing + share)
        return targets

    def _forward(
        self,
        inputs: torch.Tensor,
        values: list[torch.Tensor],
        logits: torch.Tensor,
        masks: list[torch.Tensor],
    ) -> None:
        before = inputs
        for layer, after in enumerate([*values, logits]):
            self._products.use(self._large[layer])
            # Faster than addmm, which broadcasts the bias first and then adds the product to it.
            torch.mm(before, self._transposed[layer], out=after)
            self._products.use(after.numel() > _WIDE)
            after.add_(self._biases[layer])
            if after is not logits:
                after.relu_()
                if masks:
                    after.mul_(masks[layer])
            before = after

    def _backward(
        self, logits: torch.Tensor, targets: torch.Tensor, buffers: _Buffers, *, scale: float
    ) -> None:
        """Compute the derivatives, by each layer's outputs, of `scale` times the summed cross entropy."""
        values, derivatives = buffers
        self._products.use(True)
        torch.softmax(logits, 1, out=derivatives[-1])
        derivatives[-1].sub_(targets).mul_(scale)
        for layer in range(len(values) - 1, -1, -1):
            above, here = derivatives[layer + 1], derivatives[layer]
            self._products.use(self._large[layer + 1])
            torch.mm(above, self._weights[layer + 1], out=here)
            torch.ops.aten.threshold_backward.grad_input(here, values[layer], 0, grad_input=here)
            if self._dropout.p:
                here.mul_(1 / (1 - self._dropout.p))

    def _update_from(self, inputs: torch.Tensor, buffers: _Buffers, rate: float) -> None:
        for layer in range(len(self._weights) - 1, -1, -1):
            self._products.use(self._large[layer])
            before = buffers.values[layer - 1] if layer else inputs
            self._update.add(layer, before, buffers.derivatives[layer])
        self._products.use(True)
        self._update.step(rate)

    def _update_average(self, average: AveragedModel) -> None:
        """AveragedModel.update_parameters, which takes 0.1 ms to group the parameters at each step."""
        if average.n_averaged == 0 or average.multi_avg_fn is None:
            average.update_parameters(self.state.model)
        else:
            averaged, current = (tuple(each.parameters()) for each in (average.module, self.state.model))
            average.multi_avg_fn(averaged, current, average.n_averaged)
            average.n_averaged += 1


def _set_fields(config: TrainConfig) -> set[str]:
    """The fields that change a training and differ from their default, or have none."""
    changing = [each for each in fields(config) if each.metadata.get("changes_training", True)]
    return {each.name for each in changing if getattr(config, each.name) != each.default}


def _is_plain(model: nn.Module) -> bool:
    """Whether it is an nn.Sequential of nn.Linear, with biases, and nn.ReLU in turn."""
    layers = list(model.children())
    linears, others = layers[::2], layers[1::2]
    return (
        type(model) is nn.Sequential
        and len(linears) == len(others) + 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in linears)
        and all(type(layer) is nn.ReLU for layer in others)
    )


def rows_at_once(num_features: int) -> int:
    return min(_MAX_ROWS, _MAX_BYTES // (4 * num_features))


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
