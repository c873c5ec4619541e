"""Training steps of many plain perceptrons at once, as batched products.

One small perceptron's step leaves a GPU almost idle. The members' parameters are stacked here, so that each
layer is one product for all of them.
"""

import sys
from collections.abc import Callable, Sequence

import torch

from mlp_dist.core.images import normalize
from mlp_dist.data.dataset import ImageSet
from mlp_dist.engines.graph import CudaGraphs, Work
from mlp_dist.engines.job import Job
from mlp_dist.engines.stacks import Stack, Tables
from mlp_dist.engines.updates import adam_states
from mlp_dist.precision import matmul_precision

_MOST_STEPS, _MOST_ROWS = 128, 2**20
"""What the tables of a call hold at most: their memory is some ten bytes a row."""


class PopulationEngine:
    """For members of equal depth, batch size and optimizer; rates, widths and other numbers may differ.

    Each member's steps are those of its own training, to rounding. Narrower members are padded with zeros: a
    padded unit's value, gradient and weights stay 0 under SGD and Adam. The engine takes the members' state
    when it is made, and gives it back to their modules and optimizers at the end of each `train`.

    A step reads and writes memory that stays, and where it stands is a number on the device: on CUDA it is
    captured once, as a graph that is replayed.
    """

    def __init__(self, jobs: Sequence[Job], part: ImageSet) -> None:
        self.jobs, self.part = jobs, part
        config, device, number = jobs[0].config, jobs[0].device, len(jobs)
        self._adam, size = config.optimizer == "adam", min(config.batch_size, len(part))
        self.steps_at_once = max(1, min(_MOST_STEPS, _MOST_ROWS // (number * size)))
        self._stacks = list[Stack]()
        parameters = zip(*(job.module.parameters() for job in jobs), strict=True)
        self._parameters = [self._stacked([each.detach() for each in members]) for members in parameters]
        self._weights, self._biases = self._parameters[::2], self._parameters[1::2]
        self._update = _Adam(jobs, self._parameters, self._stacked) if self._adam else _SGD(self._parameters)
        self._values = [torch.empty(number, size, each.shape[2], device=device) for each in self._biases]
        self._derivatives = [torch.empty_like(values) for values in self._values]
        smoothing = torch.tensor([job.config.label_smoothing for job in jobs], device=device)
        self._smoothing = smoothing.view(-1, 1, 1)
        self._decays = torch.tensor([job.config.weight_decay for job in jobs]).view(-1, 1, 1)
        self._tables = Tables(self.steps_at_once, number, size, device)
        self._recorder = CudaGraphs(device) if device.type == "cuda" else None
        self._replay: Work | None = None

    @staticmethod
    def takes(jobs: Sequence[Job]) -> bool:
        """Whether the jobs are alike and plain enough; all have the same data."""
        alike = {
            (len(config.hidden_sizes), config.batch_size, config.optimizer, job.matmul_precision)
            for job in jobs
            for config in [job.config]
        }
        plain = all(job.is_plain and job.world_size == 1 and job.average is None for job in jobs)
        return len(alike) == 1 and plain

    @staticmethod
    def pays(jobs: Sequence[Job]) -> bool:
        """Whether that is faster than one after the other: on a GPU.

        On a CPU one member's weights stay in the cache from step to step, and those of many do not.
        """
        return jobs[0].device.type != "cpu"

    @torch.no_grad()
    def train(self, step: int, sizes: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """Each member takes a step with each of some batches of `sizes`; `step`, from 0, is the first one's.

        `rows` are the members' images of all batches, indices int64 (N, sum(sizes)). Returns (summed loss,
        number correct) of each member's steps, float64 (N, len(sizes), 2).
        """
        rates = [[job.set_learning_rate(step + number) for job in self.jobs] for number in range(len(sizes))]
        self._tables.fill(sizes, rows, torch.tensor(rates)[..., None, None], self._decays)
        with matmul_precision(self.jobs[0].matmul_precision):
            for _ in sizes:
                self._take_step()
        for stack in self._stacks:
            stack.give_back()
        self._update.finish()
        return self._tables.totals[: len(sizes)].transpose(0, 1).clone()

    def _take_step(self) -> None:
        """The first as it is, which leaves what a library needs once; then it is recorded and replayed."""
        if self._replay is not None:
            self._replay()
        elif self._recorder is None:
            self._step()
        else:
            self._recorder.run(self._step)
            try:
                self._replay = self._recorder.record(self._step)
            except RuntimeError as error:
                self._recorder = None
                reason = str(error).partition("\n")[0]
                print(f"training without a CUDA graph, which cannot be captured: {reason}", file=sys.stderr)

    def _step(self) -> None:
        """The next one of the tables, for all members."""
        tables = self._tables
        rows, valid, shares, rate, kept = tables.now()
        images = self.part[rows.flatten()]
        labels = images.labels.view(rows.shape)
        inputs = normalize(images.images, self.jobs[0].image)
        before = [inputs.view(*rows.shape, -1), *self._values[:-1]]
        for layer, after in enumerate(self._values):
            weights = self._weights[layer].transpose(1, 2)
            torch.baddbmm(self._biases[layer], before[layer], weights, out=after)
            if layer < len(self._values) - 1:
                after.relu_()
        logits = self._values[-1]
        losses, derivative = self._loss(logits, labels)
        correct = logits.argmax(2) == labels
        tables.add((torch.stack([losses, correct], dim=2) * valid).sum(1, dtype=torch.float64))
        # The update is linear in the gradient for SGD, so the rate can come in where the numbers are fewest.
        scale = shares if self._adam else shares * rate
        torch.mul(derivative, scale, out=self._derivatives[-1])
        for layer in range(len(self._weights) - 2, -1, -1):
            here = self._derivatives[layer]
            torch.bmm(self._derivatives[layer + 1], self._weights[layer + 1], out=here)
            torch.ops.aten.threshold_backward.grad_input(here, self._values[layer], 0, grad_input=here)
        if self._decays.any():
            torch._foreach_mul_(self._parameters, [kept] * len(self._parameters))
        self._update.step(before, self._derivatives, rate)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each image's cross entropy (N, B), and its derivative by the logits (N, B, classes)."""
        share = self._smoothing / logits.shape[2]
        targets = share.expand(logits.shape).clone()
        chosen = (1 - self._smoothing + share).expand(*labels.shape, 1)
        targets.scatter_(2, labels.unsqueeze(2), chosen)
        log_probabilities = logits.log_softmax(2)
        return -(targets * log_probabilities).sum(2), log_probabilities.exp_().sub_(targets)

    def _stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, out, in) of weights, (N, 1, out) of biases."""
        self._stacks.append(Stack(tensors))
        whole = self._stacks[-1].whole
        return whole.unsqueeze(1) if whole.dim() == 2 else whole


class _SGD:
    """The product that makes a gradient adds it to the weights; the derivatives have the rates in them."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self._weights, self._biases = parameters[::2], parameters[1::2]

    def step(
        self, inputs: Sequence[torch.Tensor], derivatives: Sequence[torch.Tensor], rate: torch.Tensor
    ) -> None:
        pairs = zip(self._weights, self._biases, inputs, derivatives, strict=True)
        for weights, biases, before, derivative in pairs:
            weights.baddbmm_(derivative.transpose(1, 2), before, alpha=-1)
            biases.sub_(derivative.sum(1, keepdim=True))

    def finish(self) -> None:
        pass


class _Adam:
    """torch's fused one. It knows one rate for all, so it is given 1, and each member's comes in after it."""

    def __init__(
        self, jobs: Sequence[Job], parameters: list[torch.Tensor], stacked: Callable[..., torch.Tensor]
    ) -> None:
        states = [adam_states(job) for job in jobs]
        members = list(zip(*states, strict=True))
        self._averages = [stacked([state["exp_avg"] for state in each]) for each in members]
        self._squares = [stacked([state["exp_avg_sq"] for state in each]) for each in members]
        self._steps = [state["step"] for each in members for state in each]
        self._step = self._steps[0].clone()
        self._parameters = parameters
        self._gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self._moves = [torch.zeros_like(parameter) for parameter in parameters]
        (group,) = jobs[0].optimizer.param_groups
        self._options = {
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "eps": group["eps"],
            "lr": 1.0,
            "weight_decay": 0.0,
            "amsgrad": False,
            "maximize": False,
        }

    def step(
        self, inputs: Sequence[torch.Tensor], derivatives: Sequence[torch.Tensor], rate: torch.Tensor
    ) -> None:
        for layer, (before, derivative) in enumerate(zip(inputs, derivatives, strict=True)):
            weights, biases = self._gradients[2 * layer : 2 * layer + 2]
            torch.bmm(derivative.transpose(1, 2), before, out=weights)
            torch.sum(derivative, 1, keepdim=True, out=biases)
        self._step.add_(1)
        torch._fused_adam_(
            self._moves,
            self._gradients,
            self._averages,
            self._squares,
            [],
            [self._step] * len(self._moves),
            **self._options,
        )
        for parameter, move in zip(self._parameters, self._moves, strict=True):
            parameter.addcmul_(move, rate)
            move.zero_()

    def finish(self) -> None:
        for step in self._steps:
            step.copy_(self._step)
