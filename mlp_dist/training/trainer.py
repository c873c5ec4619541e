"""The training loop, on one process or many."""

import math
import time
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
from mlp_dist.training.checkpoint import Checkpoint, save_checkpoint
from mlp_dist.training.directories import remember_output_dir
from mlp_dist.training.distributed.peers import Peers
from mlp_dist.training.engines import build_engine
from mlp_dist.training.optim import build_optimizer
from mlp_dist.training.precision import resolve_matmul_precision
from mlp_dist.training.report import Report
from mlp_dist.training.state import RunContext, TrainState
from mlp_dist.training.steps import EpochSteps, Pace, Record, chunks


class Trainer:
    """Trains one model; `start_training` makes it. With a checkpoint, training continues from there.

    `config` has its val_size set. `workers` and `parent` are those of RunContext.
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
        self.accelerator, self.peers = accelerator, peers or Peers()
        self.run = _run_context(config, data, accelerator, output_dir, workers, parent)
        self.state = _new_state(config, self.run, accelerator)
        if checkpoint is not None:
            self.state.restore(checkpoint, is_main=accelerator.is_main_process)
        self.state.data_digest = self.state.data_digest or data.digest()
        self.engine = build_engine(self.state, self.run, accelerator)
        # A second module: evaluation has no dropout and no autocast, and may use the averaged weights.
        self.evaluated = build_model(self.run.spec).to(accelerator.device).eval()
        self.pace, self.bar = Pace(), progress.no_bar()

    def fit(self, after_epoch: Callable[[Report], None] = lambda report: None) -> Record:
        """Train the remaining steps, then test the kept weights and write the bundle.

        `after_epoch` is called on the main process after each epoch's checkpoint; an exception in it ends the
        training. Returns the command's result, on every process. Raises Interrupted on one of STOP_SIGNALS,
        once all processes have stopped at the same step and a checkpoint is written; TrainingError if the
        loss is not finite; ProcessLostError if a process has died.
        """
        state, peers = self.state, self.peers
        with StopSignals() as signals, Report(state, self.run) as report, peers.watched(signals):
            if not state.saved:
                self.save()
            peers.on_main(lambda: remember_output_dir(self.run.output_dir))
            peers.on_main(report.open)
            with self._progress_bar() as self.bar:
                while not state.is_over:
                    state.end_epoch(self.train_epoch(signals) | self.evaluate())
                    self.save()
                    peers.on_main(report.epoch)
                    peers.on_main(lambda: after_epoch(report))
            return peers.on_main(lambda: report.result(signals))

    def train_epoch(self, signals: StopSignals) -> Record:
        """Take the remaining steps of one pass over the training images; returns the epoch's metrics."""
        config, steps, train_set = self.state.config, self.state.epoch, self.run.train_set
        self.bar.set_description(f"epoch {steps.number + 1}/{config.epochs}", refresh=False)
        order = training_order(train_set, seed=config.seed, epoch=steps.number)
        portions = self._portions()
        rows = (self._share(order, portion) for portion in portions)
        started = time.perf_counter() - steps.seconds
        with closing(prefetch(train_set, rows)) as fetching:
            for portion, images in zip(portions, fetching, strict=True):
                self.train_step(portion, images)
                steps.seconds = time.perf_counter() - started
                self.after_steps(len(portion), signals)
        self._synchronize(signals)
        steps.seconds = time.perf_counter() - started
        return self._training_metrics()

    def train_step(self, portion: range, images: ImageSet) -> None:
        """Take the epoch's steps in `portion`, as many as the engine takes at once."""
        steps = self.state.epoch
        sizes = steps.batch_sizes[portion.start : portion.stop]
        steps.add(self.engine.train(steps.first_step + portion.start, sizes, images))
        self.bar.update(sum(sizes))

    def evaluate(self) -> Record:
        """Loss and accuracy on the validation and the test images; None for an empty set."""
        started = time.perf_counter()
        self.evaluated.load_state_dict(self.state.weights)
        record: Record = {}
        for name, part in (("val", self.run.val_set), ("test", self.run.test_set)):
            loss, accuracy = self._loss_and_accuracy(part) if len(part) else (None, None)
            if loss is not None and not math.isfinite(loss):
                raise self._not_finite(f"the {name} loss after epoch {len(self.state.history) + 1} is {loss}")
            record |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        return record | {"evaluate_seconds": time.perf_counter() - started}

    def _loss_and_accuracy(self, part: ImageSet) -> tuple[float, float]:
        share = part[slice(self.run.rank, len(part), self.run.world_size)]
        totals = torch.zeros(2, dtype=torch.float64, device=self.run.device)
        if len(share):
            totals += loss_and_correct(self.evaluated, share, self.run.data.image)
        loss, accuracy = (self.total(totals) / len(part)).tolist()
        return loss, accuracy

    def _progress_bar(self) -> progress.Bar:
        num_images, steps = len(self.run.train_set), self.state.epoch
        done = steps.number * num_images + sum(steps.batch_sizes[: steps.done])
        total = self.state.config.epochs * num_images
        return progress.bar("training", total, " images", initial=done, unit_scale=True)

    def _portions(self) -> list[range]:
        """The epoch's remaining steps, split where losses are logged or a checkpoint is written."""
        steps, config = self.state.epoch, self.state.config
        every = (
            (config.log_every, steps.done),
            (config.checkpoint_every_steps, steps.first_step + steps.done),
        )
        return chunks(range(steps.done, len(steps.batch_sizes)), self.engine.steps_at_once, every)

    def _share(self, order: torch.Tensor, steps: range) -> torch.Tensor:
        """Indices of this process's images in the global batches of `steps`, int64 (N,)."""
        size = self.state.config.batch_size
        rows = order[steps.start * size : steps.stop * size].to(self.run.device)
        return torch.cat([batch[self.run.rank :: self.run.world_size] for batch in torch.split(rows, size)])

    def after_steps(self, number: int, signals: StopSignals) -> None:
        """Log and save if due, after `number` more steps."""
        steps, config = self.state.epoch, self.state.config
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
            signals.received or 0, -self.state.epoch.first_not_finite(), self.pace.elapsed()
        )
        self.pace.restart(seconds)
        if wrong > -math.inf:
            epoch = len(self.state.history) + 1
            raise self._not_finite(f"the loss of step {-wrong:.0f} (epoch {epoch}) is not finite")
        if signum:
            self.save()
            raise Interrupted(int(signum))

    def _training_metrics(self) -> Record:
        """Of the epoch; loss and accuracy are means over its steps."""
        steps, num_images = self.state.epoch, len(self.run.train_set)
        loss, correct = steps.totals(self.total).sum(dim=0).tolist()
        return {
            "epoch": steps.number + 1,
            "train_loss": loss / num_images,
            "train_accuracy": correct / num_images,
            "learning_rate": self.state.learning_rate,
            "samples_per_second": num_images / steps.seconds,
            "train_seconds": steps.seconds,
            "images_seen": num_images * (steps.number + 1),
            "steps_taken": steps.first_step + steps.done,
            "steps": steps.losses,
        }

    def save(self) -> None:
        """Write a checkpoint. Raises TrainingError if the weights are not finite."""
        steps = self.state.epoch
        if not self.state.is_finite():
            raise self._not_finite(f"the weights after step {steps.first_step + steps.done} are not finite")
        checkpoint = self.state.checkpoint(self.run.workers, self.total)
        self.peers.on_main(lambda: save_checkpoint(checkpoint, self.run.output_dir))
        self.state.saved = checkpoint.progress

    def _not_finite(self, problem: str) -> TrainingError:
        saved, directory = self.state.saved, self.run.output_dir
        kept = f" (the checkpoint of {saved} is kept in {directory})" if saved else ""
        return TrainingError(
            f"{problem} at learning rate {self.state.learning_rate:g}; "
            f"try a smaller --lr, --clip-norm 1 or --warmup-epochs 1{kept}"
        )

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on each of them."""
        summed: torch.Tensor = self.accelerator.reduce(tensor)
        return summed


def _run_context(
    config: TrainConfig,
    data: Dataset,
    accelerator: Accelerator,
    output_dir: Path,
    workers: str,
    parent: Path | None,
) -> RunContext:
    device = accelerator.device
    train, val = split_validation(data.train, config.val_size or 0)
    return RunContext(
        data=data,
        train_set=train.to(device),
        val_set=val.to(device),
        test_set=data.test.to(device),
        spec=ModelSpec((data.image.num_features, *config.hidden_sizes, len(data.classes)), config.model),
        output_dir=output_dir,
        device=device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        matmul_precision=resolve_matmul_precision(config.matmul_precision, device),
        workers=workers,
        parent=parent,
    )


def _new_state(config: TrainConfig, run: RunContext, accelerator: Accelerator) -> TrainState:
    source, average = generator(config.seed, INITIALIZATION), None
    model = build_model(run.spec, generator=source, initialization=config.initialization).to(run.device)
    if config.ema_decay:
        average_fn = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=average_fn)
    num_images, size = len(run.train_set), config.batch_size
    sizes = [min(size, num_images - start) for start in range(0, num_images, size)]
    return TrainState(
        config=config,
        model=model,
        optimizer=build_optimizer(config, model.parameters()),
        epoch=EpochSteps(0, sizes, run.device),
        average=average,
        scaler=accelerator.scaler,
    )
