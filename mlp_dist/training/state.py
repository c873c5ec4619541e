"""What changes while a model trains, and what does not."""

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mlp_dist.config import TrainConfig
from mlp_dist.core.bundle import count_parameters
from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.image_set import Dataset, ImageSet
from mlp_dist.training.checkpoint import Checkpoint, StateDict, cpu_copy
from mlp_dist.training.optim import learning_rate
from mlp_dist.training.steps import EpochSteps, Record, Sum


@dataclass(frozen=True)
class RunContext:
    """The data on this process's device, and the run's place. `data` is the whole data set, on the CPU.

    `workers` describes the hardware. `parent` is the directory of the run in which this run is nested.
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


@dataclass
class TrainState:
    """A training between two steps: all that a resumed training needs.

    `history` and `kept` are those of a Checkpoint; `best` are the weights of the epoch that is kept. `saved`
    is the progress of the last checkpoint.
    """

    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: EpochSteps
    average: AveragedModel | None = None
    scaler: torch.amp.GradScaler | None = None
    run_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    data_digest: str = ""
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
        """Add the epoch to the history; keep its weights if it validates best, or without validation."""
        record["timestamp_ms"] = int(time.time() * 1000)
        self.history.append(record)
        self.epoch = self.epoch.at(len(self.history))
        accuracy, best = record["val_accuracy"], self.history[self.kept]["val_accuracy"]
        if not self.best or accuracy is None or accuracy > best:
            self.kept = len(self.history) - 1
            self.best = cpu_copy(self.weights)

    def checkpoint(self, workers: str, total: Sum) -> Checkpoint:
        """A copy; all processes call this together."""
        return Checkpoint(
            config=self.config,
            run_key=self.run_key,
            model=cpu_copy(self.model.state_dict()),
            optimizer=self.optimizer.state_dict(),
            best=self.best,
            kept=self.kept,
            history=self.history,
            data_digest=self.data_digest,
            average=None if self.average is None else cpu_copy(self.average.state_dict()),
            scaler=None if self.scaler is None else self.scaler.state_dict(),
            epoch_steps=self.epoch.state_dict(total) if self.epoch.done else None,
            workers=workers,
        )

    def restore(self, checkpoint: Checkpoint, *, is_main: bool) -> None:
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
