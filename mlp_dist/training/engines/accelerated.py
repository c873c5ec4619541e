"""Training steps by autograd and Accelerate: any model, option, device and number of processes."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional

from mlp_dist.core.image import normalize
from mlp_dist.data.augment import adversarial, deform, offsets, shift
from mlp_dist.data.batches import shares
from mlp_dist.data.image_set import ImageSet
from mlp_dist.training.dropout import Dropout
from mlp_dist.training.engines.float64 import Float64Gradients
from mlp_dist.training.engines.job import Job
from mlp_dist.training.precision import matmul_precision


class EagerEngine:
    """Takes one step at a time, each process with its share of the global batch."""

    steps_at_once = 1

    def __init__(self, job: Job) -> None:
        self.job, config = job, job.config
        self.dropout = Dropout(job.module, config.dropout, seed=config.seed)
        # CUDA graphs reuse the memory of their outputs: gradients must be added to memory outside of them.
        self._uses_graphs = config.compile and job.accelerator.device.type == "cuda"
        self.model: Any = job.module
        self.optimizer: Any = job.optimizer
        if config.gradient_dtype == "float64":
            self.model = Float64Gradients(job.module)
            return
        if config.compile:
            # Static shapes, so that the kernels for one batch size don't depend on the sizes before it.
            mode = "reduce-overhead" if self._uses_graphs else None
            self.model = torch.compile(job.module, dynamic=False, mode=mode)
        if self._uses_graphs:
            for parameter in job.module.parameters():
                parameter.grad = torch.zeros_like(parameter)
        # Accelerate's wrappers slow down small models, and one process in float32 needs none of them.
        if job.accelerator.num_processes > 1 or config.mixed_precision != "no":
            self.model, self.optimizer = job.accelerator.prepare(self.model, self.optimizer)

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        accelerator = self.job.accelerator
        totals = torch.zeros(len(sizes), 2, dtype=torch.float64, device=accelerator.device)
        start = 0
        with matmul_precision(self.job.matmul_precision):
            for number, size in enumerate(sizes):
                stop = start + len(range(accelerator.process_index, size, accelerator.num_processes))
                self._step(step + number, size, images[slice(start, stop)], totals[number])
                start = stop
        return totals

    def _step(self, step: int, batch_size: int, images: ImageSet, totals: torch.Tensor) -> None:
        """Add this process's (summed loss, number correct) to `totals`, float64 (2,)."""
        job, accelerator, start = self.job, self.job.accelerator, 0
        job.set_learning_rate(step)
        parts = shares(
            batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            parts=job.config.accumulation_steps,
        )
        for positions in parts:
            stop = start + len(range(batch_size)[positions])
            part, start = images[slice(start, stop)], stop
            self.dropout.at(step, batch_size=batch_size, positions=positions)
            inputs = self._inputs(part, step, batch_size, positions)
            is_last = positions is parts[-1]
            loss, logits = self._backward(inputs, part.labels, batch_size, is_last=is_last)
            totals += torch.stack([loss.detach().double(), (logits.argmax(dim=1) == part.labels).sum()])
        if job.config.clip_norm is not None:
            accelerator.clip_grad_norm_(job.module.parameters(), job.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._uses_graphs)
        if job.average is not None:
            job.average.update_parameters(job.module)

    def _backward(
        self, inputs: torch.Tensor, labels: torch.Tensor, batch_size: int, *, is_last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a part's gradient of the global batch's mean loss; return its summed loss and its logits.

        After the last part the gradients are reduced over all processes.
        """
        accelerator = self.job.accelerator
        if isinstance(self.model, Float64Gradients):
            logits = self.model(inputs)
            loss = self._loss(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            if is_last:
                self.model.write(scale=1 / batch_size, reduce=accelerator.reduce)
            return loss, logits
        with nullcontext() if is_last else accelerator.no_sync(self.model):
            if self._uses_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            logits = self.model(inputs)
            loss = self._loss(logits, labels)
            # DDP averages over the processes, whose shares may differ in size.
            accelerator.backward(loss * (accelerator.num_processes / batch_size))
        return loss, logits

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smoothing = self.job.config.label_smoothing
        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)

    def _inputs(self, part: ImageSet, step: int, batch_size: int, positions: slice) -> torch.Tensor:
        config, images = self.job.config, part.images
        if config.augment_shift:
            by = offsets(
                config.augment_shift, seed=config.seed, step=step, batch_size=batch_size, positions=positions
            )
            images = shift(images, by.to(images.device))
        if config.deform:
            images = deform(
                images,
                config.deform,
                seed=config.seed,
                step=step,
                batch_size=batch_size,
                positions=positions,
            )
        inputs = normalize(images, self.job.image)
        if config.adversarial:
            inputs = adversarial(
                inputs, lambda moved: self._input_loss(moved, part.labels), config.adversarial, self.job.image
            )
        return inputs

    def _input_loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The summed loss without DDP, which would wait for the parameters' gradients."""
        model = self.model if isinstance(self.model, Float64Gradients) else self.job.module
        with self.job.accelerator.autocast():
            return self._loss(model(inputs), labels)
