"""Training steps by autograd and Accelerate: any model, option, device and number of processes."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.nn import functional

from mlp_dist.core.image import normalize
from mlp_dist.data.augment import adversarial, deform, offsets, shift
from mlp_dist.data.batches import shares
from mlp_dist.data.image_set import ImageSet
from mlp_dist.training.dropout import Dropout
from mlp_dist.training.engines.float64 import Float64Gradients
from mlp_dist.training.precision import matmul_precision
from mlp_dist.training.state import RunContext, TrainState


class Part(NamedTuple):
    """A part of a process's share of a global batch; `positions` are its rows in that batch."""

    images: torch.Tensor
    labels: torch.Tensor
    positions: slice


class AcceleratedEngine:
    """Takes one step at a time, each process with its share of the global batch."""

    steps_at_once = 1

    def __init__(self, state: TrainState, context: RunContext, accelerator: Accelerator) -> None:
        self.state, self.context, self.accelerator = state, context, accelerator
        self.config = config = state.config
        self.dropout = Dropout(
            state.model, config.dropout, num_features=context.data.image.num_features, seed=config.seed
        )
        self.in_float64 = config.gradient_dtype == "float64"
        # CUDA graphs reuse the memory of their outputs: gradients must be added to memory outside of them.
        self.uses_graphs = config.compile and accelerator.device.type == "cuda"
        model: Any = state.model
        if self.in_float64:
            model = Float64Gradients(state.model)
        elif config.compile:
            # Static shapes, so that the kernels for one batch size don't depend on the sizes before it.
            mode = "reduce-overhead" if self.uses_graphs else None
            model = torch.compile(state.model, dynamic=False, mode=mode)
        if self.uses_graphs:
            for parameter in state.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.model: Any = model if self.in_float64 else accelerator.prepare(model)
        self.optimizer: Any = accelerator.prepare(state.optimizer)

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        totals, start = [], 0
        with matmul_precision(self.context.matmul_precision):
            for number, size in enumerate(sizes, start=step):
                stop = start + len(range(self.context.rank, size, self.context.world_size))
                totals.append(self.train_step(number, size, images[slice(start, stop)]))
                start = stop
        return torch.stack(totals)

    def train_step(self, step: int, batch_size: int, images: ImageSet) -> torch.Tensor:
        """Forward, loss, backward, clip, step; returns (summed loss, number correct), float64 (2,)."""
        config, accelerator, parts = self.config, self.accelerator, self._parts(batch_size, images)
        totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        # DDP averages over the processes, whose shares may differ in size.
        scale = 1.0 if self.in_float64 else accelerator.num_processes / batch_size
        self.state.set_learning_rate(step)
        for part in parts:
            self.dropout.at(step, batch_size=batch_size, positions=part.positions)
            inputs = self._inputs(part, step, batch_size)
            if self.uses_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            # The gradients are reduced over all processes after the last part.
            with nullcontext() if part is parts[-1] else accelerator.no_sync(self.model):
                logits = self.model(inputs)
                loss = self._loss(logits, part.labels)
                accelerator.backward(loss * scale)
            totals += torch.stack([loss.detach().double(), (logits.argmax(dim=1) == part.labels).sum()])
        if self.in_float64:
            self.model.write(scale=1 / batch_size, reduce=accelerator.reduce)
        if config.clip_norm is not None:
            accelerator.clip_grad_norm_(self.state.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.uses_graphs)
        if self.state.average is not None:
            self.state.average.update_parameters(self.state.model)
        return totals

    def _parts(self, batch_size: int, images: ImageSet) -> list[Part]:
        """This process's share in `accumulation_steps` parts, some maybe empty."""
        rank, world_size, parts = self.context.rank, self.context.world_size, self.config.accumulation_steps
        positions = shares(batch_size, rank=rank, world_size=world_size, parts=parts)
        sizes = [len(range(batch_size)[each]) for each in positions]
        pairs = zip(torch.split(images.images, sizes), torch.split(images.labels, sizes), strict=True)
        return [Part(*pair, each) for pair, each in zip(pairs, positions, strict=True)]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smoothing = self.config.label_smoothing
        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)

    def _inputs(self, part: Part, step: int, batch_size: int) -> torch.Tensor:
        """The part's images, augmented and normalized: float32 (N, num_features)."""
        config, image, images = self.config, self.context.data.image, part.images
        where: dict[str, Any] = {"step": step, "batch_size": batch_size, "positions": part.positions}
        if config.augment_shift:
            images = shift(images, offsets(config.augment_shift, seed=config.seed, **where).to(images.device))
        if config.deform:
            images = deform(images, config.deform, seed=config.seed, **where)
        inputs = normalize(images, image)
        if config.adversarial:
            loss = partial(self._input_loss, part.labels)
            inputs = adversarial(inputs, loss, config.adversarial, image)
        return inputs

    def _input_loss(self, labels: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The summed loss without DDP, which would wait for the parameters' gradients."""
        model = self.model if self.in_float64 else self.state.model
        with self.accelerator.autocast():
            return self._loss(model(inputs), labels)
