"""Training steps on one GPU, several of them in a CUDA graph.

A small model's step is some twenty kernels of a few microseconds each, and to launch one takes Python longer
than that. A graph of many steps is launched at once. It works in memory that stays: a call puts its images,
labels and learning rates there, and whatever is random is drawn before, as for single steps.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Protocol

import torch
from torch.nn import functional

from mlp_dist.augment import offsets, shift
from mlp_dist.core.images import normalize
from mlp_dist.data.dataset import ImageSet
from mlp_dist.deform import deform
from mlp_dist.engines.job import Job
from mlp_dist.engines.passes import build_passes
from mlp_dist.engines.updates import build_rule
from mlp_dist.precision import matmul_precision

_MOST_STEPS, _MOST_VALUES = 32, 2**23
"""Of a call: steps, enough to hide what the call itself costs, and pixels in memory that stays."""

Work = Callable[[], None]


class Recorder(Protocol):
    def run(self, work: Work) -> None:
        """Do the work as it is: what it needs once, such as a library's memory, is there afterwards."""

    def record(self, work: Work) -> Work:
        """What does the same work when it is called. Raises RuntimeError where that cannot be."""


class CudaGraphs:
    """Work on `device` away from the default stream, which cannot be captured."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Nothing in it outlives a replay, so that all graphs can have the same.
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        with self._aside():
            work()

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Other threads, which read files or write logs, may go on with their own.
        capture = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        with self._aside(), capture:
            work()
        return graph.replay

    @contextmanager
    def _aside(self) -> Iterator[None]:
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)


class GraphEngine:
    """The steps of each sequence of batch sizes are taken as they are once, then recorded and replayed.

    So the warming up that a graph needs is training too, and leaves nothing to be undone. Where steps cannot
    be recorded, they are taken as they are from there on.
    """

    def __init__(self, job: Job, recorder: Recorder | None = None) -> None:
        self.job = job
        config, image, device = job.config, job.image, job.device
        values = config.batch_size * image.num_features
        self.steps_at_once = max(1, min(_MOST_STEPS, _MOST_VALUES // values))
        self._recorder: Recorder | None = recorder or CudaGraphs(device)
        self._recorded: dict[tuple[int, ...], Work] = {}
        self._passes, self._rule = build_passes(job), build_rule(job)
        rows = self.steps_at_once * config.batch_size
        self._num_classes = len(list(job.module.parameters())[-1])
        self._images = torch.empty(
            (rows, image.channels, image.height, image.width),
            dtype=torch.float32 if config.deform else torch.uint8,
            device=device,
        )
        self._labels = torch.zeros(rows, dtype=torch.int64, device=device)
        self._rates = torch.zeros(self.steps_at_once, device=device)
        self._totals = torch.zeros(self.steps_at_once, 2, dtype=torch.float64, device=device)

    @staticmethod
    def takes(job: Job) -> bool:
        """Whether a graph can hold the job's steps, random numbers and all."""
        config = job.config
        return (
            job.device.type == "cuda"
            and job.world_size == 1
            and config.optimizer in ("sgd", "adam")
            and config.mixed_precision in ("no", "bf16")
            and config.gradient_dtype == "float32"
            and config.accumulation_steps == 1
            and config.clip_norm is None
            and not (config.compile or config.dropout or config.adversarial)
        )

    def rows(self, batches: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(batches))

    @torch.no_grad()
    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        rates = [self.job.set_learning_rate(step + number) for number in range(len(sizes))]
        self._rates[: len(sizes)].copy_(self._sent(torch.tensor(rates)), non_blocking=True)
        self._images[: len(images)].copy_(self._changed(step, sizes, images.images))
        self._labels[: len(images)].copy_(images.labels)
        average = self.job.average
        num_updates = average.num_updates if average is not None else 0
        with matmul_precision(self.job.matmul_precision):
            self._take_steps(tuple(sizes))
        if average is not None:
            # A replay does not count them, and recording does, though it averages nothing.
            average.num_updates = num_updates + len(sizes)
        return self._totals[: len(sizes)].clone()

    def _take_steps(self, sizes: tuple[int, ...]) -> None:
        if sizes in self._recorded:
            self._recorded[sizes]()
        elif self._recorder is None:
            self._steps(sizes)
        else:
            self._recorder.run(lambda: self._steps(sizes))
            try:
                self._recorded[sizes] = self._recorder.record(lambda: self._steps(sizes))
            except RuntimeError as error:
                self._recorder = None
                reason = str(error).partition("\n")[0]
                print(f"training without a CUDA graph, which cannot be captured: {reason}", file=sys.stderr)

    def _steps(self, sizes: tuple[int, ...]) -> None:
        """Of the batches in memory; what a graph holds."""
        config, rows = self.job.config, sum(sizes)
        inputs, labels = normalize(self._images[:rows], self.job.image), self._labels[:rows]
        targets = self._targets(labels, sizes)
        logits = torch.empty_like(targets)
        parts = [torch.split(each, list(sizes)) for each in (inputs, targets, logits)]
        for x, target, answers, rate in zip(*parts, self._rates[: len(sizes)].unbind(), strict=True):
            self._rule.step(self._passes.gradients(x, target, answers), rate)
            if self.job.average is not None:
                self.job.average.update()
        self._rule.finish()
        losses = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=config.label_smoothing
        )
        found = torch.stack([losses, logits.argmax(dim=1) == labels], dim=1).double()
        torch.cat([part.sum(dim=1) for part in _by_size(found, sizes)], out=self._totals[: len(sizes)])

    def _targets(self, labels: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        """As `Passes` take them, (N, classes)."""
        smoothing = self.job.config.label_smoothing
        share = smoothing / self._num_classes
        targets = torch.full((len(labels), self._num_classes), share, device=labels.device)
        targets.scatter_(1, labels[:, None], 1 - smoothing + share)
        for part in _by_size(targets, sizes):
            part.mul_(-1 / part.shape[1])
        return targets

    def _changed(self, step: int, sizes: Sequence[int], images: torch.Tensor) -> torch.Tensor:
        """The images as augmentation makes them, each batch in its own step."""
        config, everything = self.job.config, slice(None)
        if config.augment_shift:
            by = [
                offsets(
                    config.augment_shift,
                    seed=config.seed,
                    step=step + number,
                    batch_size=size,
                    positions=everything,
                )
                for number, size in enumerate(sizes)
            ]
            images = shift(images, self._sent(torch.cat(by)))
        if config.deform:
            deformed = [
                deform(
                    part,
                    config.deform,
                    seed=config.seed,
                    step=step + number,
                    batch_size=len(part),
                    positions=everything,
                )
                for number, part in enumerate(torch.split(images, list(sizes)))
            ]
            images = torch.cat(deformed)
        return images

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device, without waiting for it: only from pinned memory is a copy made while it works."""
        if self.job.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.job.device, non_blocking=True)


def _by_size(rows: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Rows (sum of sizes, F) -> views (steps, size, F) of neighbouring steps of the same size."""
    groups = [(size, len(list(group))) for size, group in groupby(sizes)]
    parts = torch.split(rows, [size * number for size, number in groups])
    return [part.view(number, size, -1) for part, (size, number) in zip(parts, groups, strict=True)]
