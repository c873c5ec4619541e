"""The training loop, the same for one process or many."""

import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch.nn import functional
from tqdm import tqdm

import mlp_dist
from mlp_dist import tracking
from mlp_dist.checkpoint import Checkpoint, StateDict, save_checkpoint
from mlp_dist.config import TrainConfig
from mlp_dist.core.bundle import load_bundle, save_bundle, to_probabilities
from mlp_dist.core.errors import TrainingError
from mlp_dist.core.images import normalize
from mlp_dist.core.models import build_model
from mlp_dist.core.spec import BundleSpec, ModelSpec
from mlp_dist.data.batches import (
    INITIALIZATION,
    epoch_order,
    generator,
    global_batches,
    split_validation,
)
from mlp_dist.data.dataset import Dataset, ImageSet
from mlp_dist.evaluation import Evaluation, evaluate, predict
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
        self.train_set, self.val_set = train.to(accelerator.device), val.to(accelerator.device)

        self.spec = ModelSpec((data.image.num_features, *config.hidden_sizes, len(data.classes)))
        weights = generator(config.seed, INITIALIZATION)
        self.module = build_model(self.spec, generator=weights).to(accelerator.device)
        self.torch_optimizer = build_optimizer(config, self.module.parameters())
        self.run_id = ""
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
        """Train the epochs that are left, then test the kept weights once.

        Returns what the command's last line shows; on other processes than the main one {}.
        Raises Interrupted on SIGINT or SIGTERM, and TrainingError when the loss is not finite: the epochs
        trained until then are in the checkpoint.
        """
        with StopSignals() as signals, self._open_run() as run:
            for epoch in range(len(self.history), self.config.epochs):
                try:
                    record = self.train_epoch(epoch, signals) | self.validate()
                except RuntimeError:
                    # Another process that got the signal first has left this one in the middle of a sum.
                    signals.check()
                    raise
                self._keep(record)
                if run is not None:
                    self._save(run, record)
            return self._finish(run) if run is not None else {}

    def train_epoch(self, epoch: int, signals: StopSignals) -> Record:
        """One pass over the training images; loss and accuracy are means over it, as the weights went."""
        order = epoch_order(len(self.train_set), seed=self.config.seed, epoch=epoch)
        totals = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        started = time.perf_counter()
        with self._progress(f"epoch {epoch + 1}/{self.config.epochs}", len(order)) as bar:
            for batch, batch_size in self._batches(order):
                totals += self.train_step(batch, batch_size)
                bar.update(batch_size)
                signals.check()
        loss, correct = self.accelerator.reduce(totals).tolist()
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of epoch {epoch + 1} is {loss} at learning rate {self.config.lr:g}; "
                "try a smaller --lr" + (f" (epoch {epoch} is kept in {self.output_dir})" if epoch else "")
            )
        return {
            "epoch": epoch + 1,
            "train_loss": loss / len(order),
            "train_accuracy": correct / len(order),
            "learning_rate": self.torch_optimizer.param_groups[0]["lr"],
            "samples_per_second": len(order) / seconds,
            "train_seconds": seconds,
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

    def validate(self) -> Record:
        """Loss and accuracy on the validation images, each counted once; None where none were held out."""
        if not len(self.val_set):
            return {"val_loss": None, "val_accuracy": None}
        share = self.val_set[torch.arange(self.rank, len(self.val_set), self.world_size)]
        totals = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        if len(share):
            logits = predict(self.module, share.images, self.data.image)
            loss = functional.cross_entropy(logits, share.labels, reduction="sum")
            totals += _loss_and_correct(loss, logits, share.labels)
        loss_mean, accuracy = (self.accelerator.reduce(totals) / len(self.val_set)).tolist()
        return {"val_loss": loss_mean, "val_accuracy": accuracy}

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
                    model=str(self.spec),
                    num_parameters=self.spec.num_parameters,
                    num_processes=self.world_size,
                    device=self.accelerator.device.type,
                )
                run.log_dataset(self.data)
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
        validation = "val -"
        if record["val_accuracy"] is not None:
            validation = f"val loss {record['val_loss']:.4f} accuracy {record['val_accuracy']:.2%}"
        print(
            f"epoch {record['epoch']}/{self.config.epochs}  "
            f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.2%}  {validation}  "
            f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s",
            flush=True,
        )

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            config=self.config,
            run_id=self.run_id,
            model=_cpu_copy(self.module),
            optimizer=self.torch_optimizer.state_dict(),
            best=self.best,
            kept=self.kept,
            history=self.history,
        )

    def _finish(self, run: tracking.RunTracker) -> Record:
        """Test the kept weights, write the bundle, log what people compare; returns the result."""
        from mlp_dist import figures

        kept = self.history[self.kept]
        model = build_model(self.spec).to(self.accelerator.device)
        model.load_state_dict(self.best)
        test_set = self.data.test.to(self.accelerator.device)
        logits = predict(model, test_set.images, self.data.image)
        test = evaluate(logits, test_set.labels)
        bundle = self._write_bundle(model.cpu(), test)
        run.log_result(
            {
                "best_epoch": kept["epoch"],
                "best_val_accuracy": kept["val_accuracy"],
                "best_val_loss": kept["val_loss"],
                "test_accuracy": test.accuracy,
                "test_loss": test.loss,
            },
            {"best": self.best, "last": _cpu_copy(self.module)},
            bundle,
            {
                "learning_curves": figures.learning_curves(self.history, kept["epoch"]),
                "confusion_matrix": figures.confusion_matrix(test.confusion, self.data.classes),
                "predictions": figures.predictions_grid(
                    self.data.test.images,
                    self.data.test.labels,
                    to_probabilities(logits).cpu(),
                    self.data.classes,
                ),
            },
        )
        train_seconds = sum(record["train_seconds"] for record in self.history)
        return {
            "run_id": self.run_id,
            "recipe": self.config.recipe,
            "dataset": self.data.name,
            "num_parameters": self.spec.num_parameters,
            "num_processes": self.world_size,
            "epochs": len(self.history),
            "best_epoch": kept["epoch"],
            "train_loss": kept["train_loss"],
            "train_accuracy": kept["train_accuracy"],
            "val_accuracy": kept["val_accuracy"],
            "test_accuracy": test.accuracy,
            "train_seconds": round(train_seconds, 3),
            "samples_per_second": round(len(self.train_set) * len(self.history) / train_seconds, 1),
            "output_dir": str(self.output_dir),
        }

    def _write_bundle(self, model: torch.nn.Module, test: Evaluation) -> Path:
        """Write the bundle and read it back: what it answers must be what the trained model answers."""
        directory = self.output_dir / tracking.BUNDLE
        golden = self.data.test.images[0]
        spec = BundleSpec(
            model=self.spec,
            image=self.data.image,
            classes=self.data.classes,
            dataset=self.data.name,
            recipe=self.config.recipe,
            run_id=self.run_id,
            metrics={
                "val_accuracy": self.history[self.kept]["val_accuracy"],
                "test_accuracy": test.accuracy,
                "test_loss": test.loss,
            },
            golden_probabilities=tuple(
                to_probabilities(predict(model, golden[None], self.data.image))[0].tolist()
            ),
            weights_sha256="",
            versions={
                "mlp_dist": mlp_dist.__version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
            },
        )
        save_bundle(directory, spec, model.state_dict(), golden)
        load_bundle(directory).check_golden()
        return directory


def _loss_and_correct(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([loss.detach().double(), (logits.argmax(dim=1) == labels).sum().double()])


def _cpu_copy(module: torch.nn.Module) -> StateDict:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
