"""Training steps of a plain perceptron on the CPU, forward and backward written out.

A small model's step is a dozen matrix products of some ten microseconds each. Autograd's own work, memory
taken anew for each result, and the optimizer's passes over the parameters cost as much again. Here results
go into buffers that stay, steps share what can be done for several at once, and plain SGD's update is part
of the product that makes the gradient.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from mlp_dist.data.image_set import ImageSet
from mlp_dist.training.engines.job import Job
from mlp_dist.training.engines.products import Products
from mlp_dist.training.engines.rows import Buffers, SharedRows, build_rows
from mlp_dist.training.engines.updates import build_update

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 2**13, 2**24
"""Images that are normalized in one go, and what they may take: enough to hide the cost of the calls."""

_WIDE = 100_000
"""Elements from which on a second thread takes off more than it costs."""


class PlainEngine:
    """For nn.Linear and ReLU in float32 with SGD or Adam; equal to autograd's steps but for rounding."""

    def __init__(self, job: Job) -> None:
        self.job, batch_size = job, job.config.batch_size
        num_features = job.image.num_features
        self.steps_at_once = max(1, rows_at_once(num_features) // batch_size)
        linears = [module for module in job.module.modules() if isinstance(module, nn.Linear)]
        self._weights = [linear.weight.detach() for linear in linears]
        self._biases = [linear.bias.detach() for linear in linears]
        self._transposed = [weight.t() for weight in self._weights]
        self._large = [Products.is_large(batch_size, *weight.shape) for weight in self._weights]
        self._products = Products(job.matmul_precision)
        num_parameters = sum(weight.numel() for weight in self._weights)
        self._rows = build_rows(job, [len(bias) for bias in self._biases], num_parameters)
        reduce = job.world_size > 1 and not isinstance(self._rows, SharedRows)
        self._update = build_update(job, self._weights, self._biases, reduce=reduce)
        num_pixels = job.image.height * job.image.width
        mean, std = (
            torch.tensor(values, dtype=torch.float64).repeat_interleave(num_pixels)
            for values in (job.image.mean, job.image.std)
        )
        self._offset, self._scale = (-mean / std).float(), (1 / (255 * std)).float()
        self._layout = lru_cache(maxsize=4)(self._layout_of)
        most = self.steps_at_once * batch_size
        self._inputs = torch.empty(most, num_features)
        self._logits, self._targets = (torch.empty(most, linears[-1].out_features) for _ in range(2))

    @staticmethod
    def takes(job: Job) -> bool:
        return job.is_plain and job.device.type == "cpu"

    def rows(self, batches: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.job.world_size == 1:
            return torch.cat(list(batches))
        return torch.cat([batch[self._rows.needed(len(batch))] for batch in batches])

    @torch.no_grad()
    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        shares, given, own, step_of = self._layout(tuple(sizes))
        labels = images.labels
        if given != own:
            parts = zip(torch.split(labels, given), shares, strict=True)
            labels = torch.cat([part[share] for part, share in parts])
        inputs = self._normalized(images.images)
        targets, logits = self._one_hot(labels), self._logits[: len(labels)]
        views = zip(
            sizes,
            shares,
            torch.split(inputs, given),
            torch.split(targets, own),
            torch.split(logits, own),
            strict=True,
        )
        with self._products:
            for number, (size, share, x, target, answers) in enumerate(views):
                buffers = self._rows.buffers(size)
                rate = self.job.set_learning_rate(step + number)
                self._forward(x[share], buffers.values, answers)
                self._backward(answers, target, buffers, scale=self._update.scale(size, rate))
                self._update_from(x, self._rows.known(size), rate)
                if self.job.average is not None:
                    self.job.average.update()
        self._update.finish()
        smoothing = self.job.config.label_smoothing
        losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        told = torch.stack([losses, logits.argmax(dim=1) == labels], dim=1).double()
        return torch.zeros(len(sizes), 2, dtype=torch.float64).index_add_(0, step_of, told)

    def _layout_of(self, sizes: tuple[int, ...]) -> "_Layout":
        shares = [self._rows.own(size) for size in sizes]
        given = [_length(self._rows.needed(size)) for size in sizes]
        own = [_length(share) for share in shares]
        return _Layout(shares, given, own, torch.repeat_interleave(torch.tensor(own)))

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        """As core's `normalize` but for rounding, in one pass instead of three."""
        inputs = self._inputs[: len(images)]
        inputs.copy_(images.flatten(1))
        torch.addcmul(self._offset, inputs, self._scale, out=inputs)
        return inputs

    def _one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        targets, smoothing = self._targets[: len(labels)], self.job.config.label_smoothing
        share = smoothing / targets.shape[1]
        targets.fill_(share).scatter_(1, labels[:, None], 1 - smoothing + share)
        return targets

    def _forward(self, inputs: torch.Tensor, values: list[torch.Tensor], logits: torch.Tensor) -> None:
        before = inputs
        for layer, after in enumerate([*values, logits]):
            self._products.use(self._large[layer])
            # addmm would first spread the bias over all rows, and then add the product to it.
            torch.mm(before, self._transposed[layer], out=after)
            self._products.use(after.numel() > _WIDE)
            after.add_(self._biases[layer])
            before = after if after is logits else after.relu_()

    def _backward(
        self, logits: torch.Tensor, targets: torch.Tensor, buffers: Buffers, *, scale: float
    ) -> None:
        """The derivatives, by each layer's outputs, of `scale` times the summed cross entropy."""
        values, derivatives = buffers
        self._products.use(True)
        torch.softmax(logits, 1, out=derivatives[-1])
        derivatives[-1].sub_(targets).mul_(scale)
        for layer in range(len(values) - 1, -1, -1):
            above, here = derivatives[layer + 1], derivatives[layer]
            self._products.use(self._large[layer + 1])
            torch.mm(above, self._weights[layer + 1], out=here)
            torch.ops.aten.threshold_backward.grad_input(here, values[layer], 0, grad_input=here)

    def _update_from(self, inputs: torch.Tensor, known: Buffers, rate: float) -> None:
        for layer in range(len(self._weights) - 1, -1, -1):
            self._products.use(self._large[layer])
            before = known.values[layer - 1] if layer else inputs
            self._update.add(layer, before, known.derivatives[layer])
        self._products.use(True)
        self._update.step(rate)


def rows_at_once(num_features: int) -> int:
    return min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // (4 * num_features))


def _length(part: slice) -> int:
    return int(part.stop - part.start)


class _Layout(NamedTuple):
    """Of consecutive steps: the process's share of the rows given for each, the numbers of both, and of each
    of its rows the step, counted from the first."""

    shares: list[slice]
    given: list[int]
    own: list[int]
    step_of: torch.Tensor
