"""What changes while a model trains, and what does not."""

import copy
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlp_dist.config import TrainConfig
from mlp_dist.core.bundle import count_parameters
from mlp_dist.core.errors import UsageError
from mlp_dist.core.model import build_model, export
from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.data.batches import INITIALIZATION, generator, split_validation
from mlp_dist.training.checkpoint import Checkpoint, StateDict, cpu_copy
from mlp_dist.training.optim import build_optimizer, learning_rate
from mlp_dist.training.precision import resolve_matmul_precision

Record = dict[str, Any]
Sum = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all processes."""


@dataclass(frozen=True)
class RunContext:
    """The data on this process's device, and the run's place. `data` is the whole data set, on the CPU.

    `workers` describes the hardware. `parent` is the directory of the run in which this run is nested,
    `command` the words that start or repeat it.
    """

    data: Dataset
    train_set: ImageSet
    val_set: ImageSet
    test_set: ImageSet
    spec: ModelSpec
    output_dir: Path
    device: torch.device
    rank: int
    world_size: int
    matmul_precision: str
    workers: str
    parent: Path | None
    command: Sequence[str]


class EpochSteps:
    """This process's summed loss and number of correct answers for each step of an epoch.

    The values stay on the device until they are needed, so that no step waits for them. `seconds` is the
    duration of the steps.
    """

    def __init__(self, number: int, batch_sizes: list[int], device: torch.device) -> None:
        self.number, self.batch_sizes = number, batch_sizes
        self.done, self.seconds = 0, 0.0
        self.losses: list[Record] = []
        self._totals = torch.zeros(len(batch_sizes), 2, dtype=torch.float64, device=device)

    def at(self, number: int) -> "EpochSteps":
        """The beginning of epoch `number`, counted from 0."""
        return EpochSteps(number, self.batch_sizes, self._totals.device)

    @property
    def first_step(self) -> int:
        """The number of steps before this epoch."""
        return self.number * len(self.batch_sizes)

    def add(self, totals: torch.Tensor) -> None:
        """Add (summed loss, number correct) of the next K steps, float64 (K, 2)."""
        self._totals[self.done : self.done + len(totals)] = totals
        self.done += len(totals)

    def mean_loss(self, every: int, total: Sum) -> Record:
        """The mean loss of the last `every` steps, which is also added to `losses`."""
        last = slice(self.done - every, self.done)
        mean = total(self._totals[last, 0].sum()).item() / sum(self.batch_sizes[last])
        record = {"step": self.first_step + self.done, "loss": mean, "timestamp_ms": int(time.time() * 1000)}
        self.losses.append(record)
        return record

    def totals(self, total: Sum) -> torch.Tensor:
        """(summed loss, number correct) of each finished step over all processes, float64 (done, 2)."""
        return total(self._totals[: self.done].clone()).cpu()

    def first_not_finite(self) -> float:
        """The first step, from 1, whose loss is not finite on this process; else infinity."""
        wrong = (~self._totals[: self.done, 0].isfinite()).nonzero()
        return self.first_step + wrong[0].item() + 1 if len(wrong) else math.inf

    def state_dict(self, total: Sum) -> Record:
        return {"totals": self.totals(total), "losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state: Record, *, is_main: bool) -> None:
        """Restore the epoch; the main process takes the totals of all, so that they count once."""
        self.done, self.seconds, self.losses = len(state["totals"]), state["seconds"], list(state["losses"])
        if is_main:
            self._totals[: self.done] = state["totals"].to(self._totals)


@dataclass
class TrainState:
    """A training between two steps: all that a resumed training needs.

    `history` and `kept` are those of a Checkpoint; `best` are the weights of the epoch that is kept. `saved`
    is the progress of the last checkpoint. `module` describes a model of the caller's own.
    """

    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: EpochSteps
    average: AveragedModel | None = None
    scaler: torch.amp.GradScaler | None = None
    run_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    data_digest: str = ""
    module: str = ""
    history: list[Record] = field(default_factory=list)
    kept: int = 0
    best: StateDict = field(default_factory=StateDict)
    saved: str = ""

    @property
    def is_over(self) -> bool:
        return self.config.is_over(len(self.history), self.kept)

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.model)

    @property
    def weights(self) -> StateDict:
        """The weights to evaluate and keep: the model's, or their moving average."""
        return (self.model if self.average is None else self.average.module).state_dict()

    @property
    def learning_rate(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def set_learning_rate(self, step: int) -> float:
        """Set the optimizer's rate for `step`, counted from 0, and return it."""
        config, steps = self.config, len(self.epoch.batch_sizes)
        rate = learning_rate(
            config.schedule,
            lr=config.lr,
            step=step,
            num_steps=config.epochs * steps,
            warmup_steps=round(config.warmup_epochs * steps),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    def end_epoch(self, record: Record) -> None:
        """Add the epoch to the history; keep its weights if it validates best, or if `keeps_last`."""
        record["timestamp_ms"] = int(time.time() * 1000)
        self.history.append(record)
        self.epoch = self.epoch.at(len(self.history))
        accuracy, best = record["val_accuracy"], self.history[self.kept]["val_accuracy"]
        if not self.best or accuracy is None or self.config.keeps_last or accuracy > best:
            self.kept = len(self.history) - 1
            self.best = cpu_copy(self.weights)

    def checkpoint(self, workers: str, total: Sum) -> Checkpoint:
        """The state to save; all processes call this together."""
        return Checkpoint(
            config=self.config,
            run_key=self.run_key,
            model=cpu_copy(self.model.state_dict()),
            optimizer=self.optimizer.state_dict(),
            best=self.best,
            kept=self.kept,
            history=self.history,
            data_digest=self.data_digest,
            module=self.module,
            average=None if self.average is None else cpu_copy(self.average.state_dict()),
            scaler=None if self.scaler is None else self.scaler.state_dict(),
            epoch_steps=self.epoch.state_dict(total) if self.epoch.done else None,
            workers=workers,
        )

    def restore(self, checkpoint: Checkpoint, *, is_main: bool) -> None:
        """Raises UsageError if the checkpoint is another module's."""
        if checkpoint.module != self.module:
            found, other = (
                each or "a model of the configuration" for each in (checkpoint.module, self.module)
            )
            raise UsageError(
                f"the run trains {found}\nand not {other}; to resume it, pass mlp_dist.train the same module"
            )
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        if self.scaler is not None and checkpoint.scaler is not None:
            self.scaler.load_state_dict(checkpoint.scaler)
        self.run_key, self.data_digest = checkpoint.run_key, checkpoint.data_digest
        self.history, self.kept, self.best = checkpoint.history, checkpoint.kept, checkpoint.best
        self.epoch = self.epoch.at(len(self.history))
        if checkpoint.epoch_steps is not None:
            self.epoch.load_state_dict(checkpoint.epoch_steps, is_main=is_main)
        self.saved = checkpoint.progress


def run_context(
    config: TrainConfig,
    data: Dataset,
    accelerator: Accelerator,
    output_dir: Path,
    workers: str,
    parent: Path | None = None,
    command: Sequence[str] = (),
    module: nn.Module | None = None,
) -> RunContext:
    """Raises UsageError for a `module` of the caller's own that cannot be kept."""
    device, num_features, num_classes = accelerator.device, data.image.num_features, len(data.classes)
    if data.val is None:
        train, val = split_validation(data.train, config.val_size or 0)
    else:
        train, val = data.train, data.val
    spec = ModelSpec((num_features, *config.hidden_sizes, num_classes), config.model)
    if module is not None:
        program = export(module, num_features, num_classes)
        spec = ModelSpec((num_features, num_classes), type(module).__name__, program)
    return RunContext(
        data=data,
        train_set=train.to(device),
        val_set=val.to(device),
        test_set=data.test.to(device),
        spec=spec,
        output_dir=output_dir,
        device=device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        matmul_precision=resolve_matmul_precision(config.matmul_precision, device),
        workers=workers,
        parent=parent,
        command=command,
    )


def new_state(
    config: TrainConfig, context: RunContext, accelerator: Accelerator, module: nn.Module | None = None
) -> TrainState:
    """The state before the first step; a `module` of the caller's own is copied."""
    source, average = generator(config.seed, INITIALIZATION), None
    if module is None:
        model = build_model(context.spec, generator=source, initialization=config.initialization)
    else:
        model = copy.deepcopy(module).train()
    model.to(context.device)
    if config.ema_decay:
        average_fn = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=average_fn)
    num_images, size = len(context.train_set), config.batch_size
    sizes = [min(size, num_images - start) for start in range(0, num_images, size)]
    return TrainState(
        config=config,
        model=model,
        optimizer=build_optimizer(config, model.parameters()),
        epoch=EpochSteps(0, sizes, context.device),
        average=average,
        scaler=accelerator.scaler,
        module="" if module is None else str(module),
    )


def chunks(steps: range, size: int, every: Sequence[tuple[int, int]]) -> list[range]:
    """Divide `steps` into ranges of at most `size`.

    `every` holds (interval, steps since the interval's start) at the first of the steps; a range ends with
    each step that completes an interval. Intervals of 0 are ignored.
    """
    ranges, start = [], steps.start
    for step in steps:
        done = step + 1 - steps.start
        is_due = any(interval and (before + done) % interval == 0 for interval, before in every)
        if is_due or step + 1 - start == size or step + 1 == steps.stop:
            ranges.append(range(start, step + 1))
            start = step + 1
    return ranges
