"""Training steps by autograd: for any model, option and device."""

from collections.abc import Sequence
from functools import partial

import torch

from mlp_dist.core.image import normalize
from mlp_dist.data.augment import adversarial, deform, offsets, shift
from mlp_dist.data.batches import shares
from mlp_dist.data.image_set import ImageSet
from mlp_dist.training.dropout import Dropout
from mlp_dist.training.engines.gradients import build_gradients
from mlp_dist.training.engines.job import Job
from mlp_dist.training.precision import matmul_precision


class EagerEngine:
    """Takes one step at a time, each process with its share of the global batch."""

    steps_at_once = 1

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dropout = Dropout(job.module, job.config.dropout, seed=job.config.seed)
        self.gradients = build_gradients(job.config, job.accelerator, job.module, job.optimizer)

    def rows(self, batches: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([batch[positions] for batch in batches for positions in self._parts(len(batch))])

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        totals = torch.zeros(len(sizes), 2, dtype=torch.float64, device=self.job.device)
        start = 0
        with matmul_precision(self.job.matmul_precision):
            for number, size in enumerate(sizes):
                stop = start + len(range(self.job.rank, size, self.job.world_size))
                self._step(step + number, size, images[slice(start, stop)], totals[number])
                start = stop
        return totals

    def _parts(self, batch_size: int) -> list[slice]:
        job = self.job
        return shares(
            batch_size, rank=job.rank, world_size=job.world_size, parts=job.config.accumulation_steps
        )

    def _step(self, step: int, batch_size: int, images: ImageSet, totals: torch.Tensor) -> None:
        """Adds (summed loss, number correct) to `totals`."""
        job, start = self.job, 0
        job.set_learning_rate(step)
        parts = self._parts(batch_size)
        for positions in parts:
            stop = start + len(range(batch_size)[positions])
            part, start = images[slice(start, stop)], stop
            self.dropout.at(step, batch_size=batch_size, positions=positions)
            inputs = self._inputs(part, step, batch_size, positions)
            last = positions is parts[-1]
            loss, logits = self.gradients.add(inputs, part.labels, batch_size=batch_size, last=last)
            totals += torch.stack([loss.detach().double(), (logits.argmax(dim=1) == part.labels).sum()])
        if job.config.clip_norm is not None:
            job.accelerator.clip_grad_norm_(job.module.parameters(), job.config.clip_norm)
        self.gradients.optimizer.step()
        self.gradients.optimizer.zero_grad()
        if job.average is not None:
            job.average.update()

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
            loss_of = partial(self.gradients.loss, labels=part.labels)
            inputs = adversarial(inputs, loss_of, config.adversarial, self.job.image)
        return inputs
