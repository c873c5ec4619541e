"""The training loop, the same for one process or many."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch.nn import functional
from tqdm import tqdm

from mlp_dist import tracking
from mlp_dist.checkpoint import Checkpoint, StateDict, save_checkpoint
from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import TrainingError
from mlp_dist.core.images import normalize
from mlp_dist.core.models import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.batches import (
    INITIALIZATION,
    epoch_order,
    generator,
    global_batches,
    split_validation,
)
from mlp_dist.data.dataset import Dataset, ImageSet
from mlp_dist.evaluation import predict
from mlp_dist.finish import finish
from mlp_dist.optim import build_optimizer
from mlp_dist.processes import StopSignals

Record = dict[str, Any]


class Trainer:
    """Trains one model; made by `start_training`. With a checkpoint it goes on from there.

    `config` has its val_size filled in.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        accelerator: Accelerator,
        output_dir: Path,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.config, self.data, self.accelerator, self.output_dir = config, data, accelerator, output_dir
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        train, val = split_validation(data.train, config.val_size or 0)
        self.train_set, self.val_set, self.test_set = (
            part.to(accelerator.device) for part in (train, val, data.test)
        )
        sizes = (data.image.num_features, *config.hidden_sizes, len(data.classes))
        self.spec = ModelSpec(sizes, config.model)
        self.module = build_model(
            self.spec,
            generator=generator(config.seed, INITIALIZATION),
            initialization=config.initialization,
        ).to(accelerator.device)
        self.torch_optimizer = build_optimizer(config, self.module.parameters())
        self.run_id, self.data_digest = "", data.digest()
        self.history: list[Record] = []
        self.kept = 0
        self.best: StateDict = {}
        if checkpoint is not None:
            self.module.load_state_dict(checkpoint.model)
            self.torch_optimizer.load_state_dict(checkpoint.optimizer)
            self.run_id, self.history = checkpoint.run_id, checkpoint.history
            self.kept, self.best = checkpoint.kept, checkpoint.best

        self.model: torch.nn.Module = self.module
        self.optimizer: Any = self.torch_optimizer
        # Accelerate's wrappers cost a small model's step a good part of its time, and do nothing for one
        # process in float32.
        if self.world_size > 1 or config.mixed_precision != "no":
            self.model, self.optimizer = accelerator.prepare(self.module, self.torch_optimizer)

    def fit(self) -> Record:
        """Train the epochs that are left, then test the kept weights and write the bundle.

        Returns what the command's last line shows; on other processes than the main one {}.
        Raises Interrupted on SIGINT or SIGTERM, and TrainingError when the loss is not finite: the epochs
        trained until then are in the checkpoint.
        """
        with StopSignals() as signals, self._open_run() as run:
            for epoch in range(len(self.history), self.config.epochs):
                try:
                    record = self.train_epoch(epoch, signals) | self.evaluate()
                except RuntimeError:
                    # Another process that got the signal first has left this one in the middle of a sum.
                    signals.check()
                    raise
                self._keep(record)
                if run is not None:
                    self._save(run, record)
            return finish(self, run) if run is not None else {}

    def train_epoch(self, epoch: int, signals: StopSignals) -> Record:
        """One pass over the training images; loss and accuracy are means over it, as the weights went."""
        order = epoch_order(len(self.train_set), seed=self.config.seed, epoch=epoch)
        totals = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        first_step = epoch * math.ceil(len(order) / self.config.batch_size)
        steps = StepLosses(self.accelerator, self.config.log_every, first_step=first_step)
        started = time.perf_counter()
        with self._progress(f"epoch {epoch + 1}/{self.config.epochs}", len(order)) as bar:
            for batch, batch_size in self._batches(order):
                step = self.train_step(batch, batch_size)
                totals += step
                steps.add(step[0], batch_size)
                bar.update(batch_size)
                signals.check()
        loss, correct = self.accelerator.reduce(totals).tolist()
        seconds = time.perf_counter() - started
        self._check_finite(loss, "training", epoch)
        return {
            "epoch": epoch + 1,
            "train_loss": loss / len(order),
            "train_accuracy": correct / len(order),
            "learning_rate": self.torch_optimizer.param_groups[0]["lr"],
            "samples_per_second": len(order) / seconds,
            "train_seconds": seconds,
            "steps": steps.records,
        }

    def train_step(self, batch: ImageSet, batch_size: int) -> torch.Tensor:
        """One step on this process's share of a global batch; returns its (summed loss, number correct)."""
        logits = self.model(normalize(batch.images, self.data.image))
        loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
        # DDP takes the mean of the processes' gradients; times their number over the batch's size it is
        # the gradient of the batch's mean loss, however unevenly the batch was shared out.
        self.accelerator.backward(loss * (self.world_size / batch_size))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return _loss_and_correct(loss, logits, batch.labels)

    def evaluate(self) -> Record:
        """Loss and accuracy on validation and test images, each counted once; None where there are none."""
        record: Record = {}
        for name, part in (("val", self.val_set), ("test", self.test_set)):
            loss, accuracy = self._loss_and_accuracy(part) if len(part) else (None, None)
            self._check_finite(loss or 0.0, name, len(self.history))
            record |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        return record

    def _loss_and_accuracy(self, part: ImageSet) -> tuple[float, float]:
        share = part[torch.arange(self.rank, len(part), self.world_size)]
        totals = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        if len(share):
            logits = predict(self.module, share.images, self.data.image)
            loss = functional.cross_entropy(logits, share.labels, reduction="sum")
            totals += _loss_and_correct(loss, logits, share.labels)
        loss_mean, accuracy = (self.accelerator.reduce(totals) / len(part)).tolist()
        return loss_mean, accuracy

    def _check_finite(self, loss: float, part: str, epoch: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the {part} loss of epoch {epoch + 1} is {loss} at learning rate {self.config.lr:g}; "
                "try a smaller --lr" + (f" (epoch {epoch} is kept in {self.output_dir})" if epoch else "")
            )

    def _batches(self, order: torch.Tensor) -> Iterator[tuple[ImageSet, int]]:
        return global_batches(
            self.train_set,
            order,
            batch_size=self.config.batch_size,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _progress(self, description: str, total: int) -> "tqdm[NoReturn]":
        # disable=None: no bar where stderr is no terminal.
        disable = None if self.accelerator.is_main_process else True
        return tqdm(
            total=total, desc=description, unit=" images", unit_scale=True, leave=False, disable=disable
        )

    @contextmanager
    def _open_run(self) -> Iterator[tracking.RunTracker | None]:
        """The MLflow run, on the main process; None on the others."""
        if not self.accelerator.is_main_process:
            yield None
            return
        config = self.config
        with tracking.open_run(config.experiment, config.run_name, self.run_id or None) as run:
            if not self.run_id:
                self.run_id = run.run_id
                run.log_config(
                    config.to_json(),
                    layer_sizes=str(self.spec),
                    num_parameters=self.spec.num_parameters,
                    num_processes=self.world_size,
                    device=self.accelerator.device.type,
                    mean=str(self.data.image.mean),
                    std=str(self.data.image.std),
                    kept="best validation accuracy" if len(self.val_set) else "last epoch, none was chosen",
                )
                run.log_dataset(self.data.name, self.data_digest)
                self._log_samples(run)
            # A kill may have come between checkpoint and MLflow: the last epoch may lack there.
            run.log_epochs(self.history)
            yield run

    def _keep(self, record: Record) -> None:
        """The best epoch by validation accuracy, of equals the first; without validation the last."""
        record["timestamp_ms"] = int(time.time() * 1000)
        self.history.append(record)
        accuracy, best = record["val_accuracy"], self.history[self.kept]["val_accuracy"]
        if not self.best or accuracy is None or accuracy > best:
            self.kept = len(self.history) - 1
            self.best = _cpu_copy(self.module)

    def _save(self, run: tracking.RunTracker, record: Record) -> None:
        """The checkpoint first, then what can be told again from it."""
        save_checkpoint(self._checkpoint(), self.output_dir)
        run.log_epochs([record])
        told = [f"epoch {record['epoch']}/{self.config.epochs}"]
        for part in ("train", "val", "test"):
            loss, accuracy = record[f"{part}_loss"], record[f"{part}_accuracy"]
            told.append(f"{part} -" if loss is None else f"{part} loss {loss:.4f} accuracy {accuracy:.2%}")
        told.append(f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s")
        print("  ".join(told), flush=True)

    def _log_samples(self, run: tracking.RunTracker) -> None:
        from mlp_dist import figures

        first = self.data.train[:20]
        grid = figures.samples_grid(first.images, first.labels, self.data.classes)
        run.log_figures({"samples": grid})

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            config=self.config,
            run_id=self.run_id,
            model=_cpu_copy(self.module),
            optimizer=self.torch_optimizer.state_dict(),
            best=self.best,
            kept=self.kept,
            history=self.history,
            data_digest=self.data_digest,
        )


class StepLosses:
    """Every `every` steps of an epoch the mean loss since the last time: told, and kept in `records`."""

    def __init__(self, accelerator: Accelerator, every: int, *, first_step: int) -> None:
        self.accelerator, self.every, self.first_step = accelerator, every, first_step
        self.records: list[Record] = []
        self._num_steps, self._num_images = 0, 0
        self._loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)

    def add(self, loss: torch.Tensor, batch_size: int) -> None:
        """`loss` is this process's part of the batch's summed loss."""
        if not self.every:
            return
        self._num_steps += 1
        self._num_images += batch_size
        self._loss += loss
        if self._num_steps % self.every:
            return
        mean = self.accelerator.reduce(self._loss.clone()).item() / self._num_images
        step = self.first_step + self._num_steps
        self.records.append({"step": step, "loss": mean, "timestamp_ms": int(time.time() * 1000)})
        if self.accelerator.is_main_process:
            tqdm.write(f"  step {step}  loss {mean:.4f}")
        self._loss.zero_()
        self._num_images = 0


def _loss_and_correct(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([loss.detach().double(), (logits.argmax(dim=1) == labels).sum().double()])


def _cpu_copy(module: torch.nn.Module) -> StateDict:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
