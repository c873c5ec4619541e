"""The training loop, on one process or many."""

import math
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlp_dist.config import TrainConfig
from mlp_dist.console import progress
from mlp_dist.console.processes import Interrupted, StopSignals
from mlp_dist.core.errors import TrainingError
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.batches import INITIALIZATION, generator, prefetch, split_validation, training_order
from mlp_dist.data.evaluate import loss_and_correct
from mlp_dist.data.image_set import Dataset, ImageSet
from mlp_dist.training.checkpoint import Checkpoint, StateDict, capture, cpu_copy, restore, save_checkpoint
from mlp_dist.training.directories import remember_output_dir
from mlp_dist.training.distributed.peers import Peers
from mlp_dist.training.engines import Job, build_engine
from mlp_dist.training.optim import build_optimizer
from mlp_dist.training.precision import resolve_matmul_precision
from mlp_dist.training.report import Report
from mlp_dist.training.schedule import learning_rate
from mlp_dist.training.steps import EpochSteps, Pace, Record, chunks


class Trainer:
    """Trains one model; `start_training` makes it. With a checkpoint, training continues from there.

    `config` has its val_size set. `workers` describes the hardware. `parent` is the directory of the run in
    which this run is nested.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        accelerator: Accelerator,
        output_dir: Path,
        *,
        peers: Peers | None = None,
        checkpoint: Checkpoint | None = None,
        workers: str = "",
        parent: Path | None = None,
    ) -> None:
        self.config, self.data, self.accelerator, self.output_dir = config, data, accelerator, output_dir
        self.peers, self.workers = peers or Peers(), workers
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        train, val = split_validation(data.train, config.val_size or 0)
        self.train_set, self.val_set, self.test_set = (
            part.to(self.device) for part in (train, val, data.test)
        )
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.spec = ModelSpec(
            (data.image.num_features, *config.hidden_sizes, len(data.classes)), config.model
        )
        self.module = build_model(
            self.spec,
            generator=generator(config.seed, INITIALIZATION),
            initialization=config.initialization,
        ).to(self.device)
        self.average = None
        if config.ema_decay:
            average_fn = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.module, multi_avg_fn=average_fn)
        # A second module, so that evaluation has no dropout and can use the averaged weights.
        self.evaluated = build_model(self.spec).to(self.device)
        self.torch_optimizer = build_optimizer(config, self.module.parameters())
        self.pace = Pace()
        self.run_key, self.parent, self.data_digest = uuid.uuid4().hex, parent, ""
        self.history: list[Record] = []
        self.kept, self.best, self.saved = 0, StateDict(), ""
        self.bar = progress.no_bar()
        if checkpoint is not None:
            restore(self, checkpoint)
        self.data_digest = self.data_digest or data.digest()
        self.matmul_precision = resolve_matmul_precision(config.matmul_precision, self.device)
        self.job = Job(
            config=config,
            accelerator=accelerator,
            module=self.module,
            optimizer=self.torch_optimizer,
            image=data.image,
            set_learning_rate=self._set_learning_rate,
            average=self.average,
            matmul_precision=self.matmul_precision,
        )
        self.engine = build_engine(self.job)
        self.epoch_steps = self._new_epoch()
        if checkpoint is not None and checkpoint.epoch_steps is not None:
            self.epoch_steps.load_state_dict(checkpoint.epoch_steps, is_main=accelerator.is_main_process)

    def fit(self, after_epoch: Callable[[Report], None] = lambda report: None) -> Record:
        """Train the remaining steps, then test the kept weights and write the bundle. Returns the result.

        `after_epoch` is called on the main process after each epoch's checkpoint; an exception in it ends the
        training. Raises Interrupted on one of STOP_SIGNALS, once all processes have stopped at the same step
        and a checkpoint is written; TrainingError if the loss is not finite; ProcessLostError if a process
        has died.
        """
        with StopSignals() as signals, Report(self) as report, self.peers.watched(signals):
            if not self.saved:
                self.save()
            self.peers.on_main(lambda: remember_output_dir(self.output_dir))
            self.peers.on_main(report.open)
            with self._progress_bar() as self.bar:
                while not self.config.is_over(len(self.history), self.kept):
                    self.keep(self.train_epoch(signals) | self.evaluate())
                    self.save()
                    self.peers.on_main(report.epoch)
                    self.peers.on_main(lambda: after_epoch(report))
            return self.peers.on_main(lambda: report.result(signals))

    def train_epoch(self, signals: StopSignals) -> Record:
        """Take the remaining steps of one pass over the training images."""
        epoch, steps = len(self.history), self.epoch_steps
        order = training_order(self.train_set, seed=self.config.seed, epoch=epoch)
        portions, before = self._portions(), steps.seconds
        rows = (self._share(order, portion) for portion in portions)
        started = time.perf_counter()
        self.bar.set_description(f"epoch {epoch + 1}/{self.config.epochs}", refresh=False)
        with closing(prefetch(self.train_set, rows)) as fetching:
            for portion, images in zip(portions, fetching, strict=True):
                sizes = steps.batch_sizes[portion.start : portion.stop]
                steps.add(self.engine.train(steps.first_step + portion.start, sizes, images))
                steps.seconds = before + time.perf_counter() - started
                self.bar.update(sum(sizes))
                self.after_steps(len(portion), signals)
        self._synchronize(signals)
        steps.seconds = before + time.perf_counter() - started
        return self.record()

    def evaluate(self) -> Record:
        """Loss and accuracy on the validation and the test images; None for an empty set."""
        started = time.perf_counter()
        self.evaluated.load_state_dict(self.weights())
        record: Record = {}
        for name, part in (("val", self.val_set), ("test", self.test_set)):
            loss, accuracy = self._loss_and_accuracy(part) if len(part) else (None, None)
            if loss is not None and not math.isfinite(loss):
                raise self._not_finite(f"the {name} loss after epoch {len(self.history) + 1} is {loss}")
            record |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        return record | {"evaluate_seconds": time.perf_counter() - started}

    def weights(self) -> StateDict:
        """The weights to evaluate and keep: the model's, or their moving average."""
        return (self.average.module if self.average else self.module).state_dict()

    def _loss_and_accuracy(self, part: ImageSet) -> tuple[float, float]:
        share = part[slice(self.rank, len(part), self.world_size)]
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        if len(share):
            totals += loss_and_correct(self.evaluated, share, self.data.image)
        loss, accuracy = (self.total(totals) / len(part)).tolist()
        return loss, accuracy

    def _set_learning_rate(self, step: int) -> float:
        config, steps = self.config, self.steps_per_epoch
        rate = learning_rate(
            config.schedule,
            lr=config.lr,
            step=step,
            num_steps=config.epochs * steps,
            warmup_steps=round(config.warmup_epochs * steps),
        )
        for group in self.torch_optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _progress_bar(self) -> progress.Bar:
        num_images, steps = len(self.train_set), self.epoch_steps
        done = len(self.history) * num_images + sum(steps.batch_sizes[: steps.done])
        total = self.config.epochs * num_images
        return progress.bar("training", total, " images", initial=done, unit_scale=True)

    def _portions(self) -> list[range]:
        """The epoch's remaining steps, split where losses are logged or a checkpoint is written."""
        steps, config = self.epoch_steps, self.config
        every = (
            (config.log_every, steps.done),
            (config.checkpoint_every_steps, steps.first_step + steps.done),
        )
        return chunks(range(steps.done, self.steps_per_epoch), self.engine.steps_at_once, every)

    def _share(self, order: torch.Tensor, steps: range) -> torch.Tensor:
        """Indices of this process's images in the global batches of `steps`, int64 (N,)."""
        size = self.config.batch_size
        rows = order[steps.start * size : min(steps.stop * size, len(self.train_set))].to(self.device)
        return torch.cat([batch[self.rank :: self.world_size] for batch in torch.split(rows, size)])

    def after_steps(self, number: int, signals: StopSignals) -> None:
        """Log and save if due, after `number` more steps."""
        steps, config = self.epoch_steps, self.config
        if config.log_every and steps.done % config.log_every == 0:
            logged = steps.mean_loss(config.log_every, self.total)
            if self.accelerator.is_main_process:
                progress.tell(f"  step {logged['step']}  loss {logged['loss']:.4f}")
        every = config.checkpoint_every_steps
        save = every > 0 and (steps.first_step + steps.done) % every == 0
        if self.pace.due(number) or save:
            self._synchronize(signals)
        if save:
            self.save()

    def _synchronize(self, signals: StopSignals) -> None:
        """Stop all processes here if one received a signal or met a loss that is not finite."""
        signum, wrong, seconds = self.peers.largest(
            signals.received or 0, -self.epoch_steps.first_not_finite(), self.pace.elapsed()
        )
        self.pace.restart(seconds)
        if wrong > -math.inf:
            raise self._not_finite(
                f"the loss of step {-wrong:.0f} (epoch {len(self.history) + 1}) is not finite"
            )
        if signum:
            self.save()
            raise Interrupted(int(signum))

    def record(self) -> Record:
        """The epoch's training metrics; loss and accuracy are means over its steps."""
        steps, num_images = self.epoch_steps, len(self.train_set)
        loss, correct = steps.totals(self.total).sum(dim=0).tolist()
        return {
            "epoch": len(self.history) + 1,
            "train_loss": loss / num_images,
            "train_accuracy": correct / num_images,
            "learning_rate": self.torch_optimizer.param_groups[0]["lr"],
            "samples_per_second": num_images / steps.seconds,
            "train_seconds": steps.seconds,
            "images_seen": num_images * (len(self.history) + 1),
            "steps_taken": steps.first_step + steps.done,
            "steps": steps.losses,
        }

    def keep(self, record: Record) -> None:
        """Add the epoch to the history; keep its weights if it validates best, or without validation."""
        record["timestamp_ms"] = int(time.time() * 1000)
        self.history.append(record)
        self.epoch_steps = self._new_epoch()
        accuracy, best = record["val_accuracy"], self.history[self.kept]["val_accuracy"]
        if not self.best or accuracy is None or accuracy > best:
            self.kept = len(self.history) - 1
            self.best = cpu_copy(self.weights())

    def _new_epoch(self) -> EpochSteps:
        num_images, size = len(self.train_set), self.config.batch_size
        sizes = [min(size, num_images - start) for start in range(0, num_images, size)]
        return EpochSteps(len(self.history), sizes, self.device)

    def save(self) -> None:
        """Write a checkpoint. Raises TrainingError if the weights are not finite."""
        if not all(parameter.isfinite().all() for parameter in self.module.parameters()):
            step = self.epoch_steps.first_step + self.epoch_steps.done
            raise self._not_finite(f"the weights after step {step} are not finite")
        checkpoint = capture(self)
        self.peers.on_main(lambda: save_checkpoint(checkpoint, self.output_dir))
        self.saved = checkpoint.progress

    def _not_finite(self, problem: str) -> TrainingError:
        rate = self.torch_optimizer.param_groups[0]["lr"]
        kept = f" (the checkpoint of {self.saved} is kept in {self.output_dir})" if self.saved else ""
        return TrainingError(
            f"{problem} at learning rate {rate:g}; "
            f"try a smaller --lr, --clip-norm 1 or --warmup-epochs 1{kept}"
        )

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on each of them."""
        summed: torch.Tensor = self.accelerator.reduce(tensor)
        return summed
