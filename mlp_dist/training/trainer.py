"""The training loop, on one process or many."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from mlp_dist.config import TrainConfig
from mlp_dist.console import progress
from mlp_dist.console.process import Interrupted, StopSignals
from mlp_dist.core.errors import TrainingError
from mlp_dist.core.model import build_model
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.data.batches import prefetch, training_order
from mlp_dist.data.evaluate import loss_and_correct
from mlp_dist.tracking.follow import Follower
from mlp_dist.training.checkpoint import Checkpoint, cpu_copy, save_checkpoint
from mlp_dist.training.distributed import Peers, remember_output_dir
from mlp_dist.training.engines.accelerated import AcceleratedEngine
from mlp_dist.training.engines.cpu import CPUEngine
from mlp_dist.training.report import Report
from mlp_dist.training.state import Record, RunContext, TrainState, chunks, new_state, run_context


class Engine(Protocol):
    """Runs training steps; most efficient with about `steps_at_once` of them per call."""

    steps_at_once: int

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        """Take one step for each global batch of `sizes`; `step`, from 0, is the number of the first one.

        `images` are this process's share of the batches, one batch after the other: of each batch every
        `num_processes`-th image from `process_index` on. Updates the state's model, optimizer and average.
        Returns this process's (summed loss, number correct) of each step, float64 (len(sizes), 2).
        """


class Trainer:
    """Trains one model; `start_training` makes it. With a checkpoint, training continues from there.

    `config` has its val_size set. `workers`, `parent` and `command` are those of RunContext. `module`, of the
    caller's own, takes the place of the configuration's model.
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
        command: Sequence[str] = (),
        module: nn.Module | None = None,
    ) -> None:
        self.accelerator, self.peers = accelerator, peers or Peers()
        self.context = run_context(config, data, accelerator, output_dir, workers, parent, command, module)
        self.state = new_state(config, self.context, accelerator, module)
        if module is not None:
            # Each process may have made its own.
            weights = self.peers.on_main(lambda: cpu_copy(self.state.model.state_dict()))
            self.state.model.load_state_dict(weights)
        if checkpoint is not None:
            self.state.restore(checkpoint, is_main=accelerator.is_main_process)
        self.state.data_digest = self.state.data_digest or data.digest()
        self.engine = _build_engine(self.state, self.context, accelerator)
        # A second module: evaluation has no dropout and no autocast, and may use the averaged weights.
        self.evaluated = build_model(self.context.spec).to(accelerator.device).eval()
        self.pace, self.bar = Pace(), progress.no_bar()

    def fit(
        self,
        after_epoch: Callable[[Report], None] = lambda report: None,
        *,
        follower: Follower | None = None,
    ) -> Record:
        """Train the remaining steps, then test the kept weights and write the bundle.

        `after_epoch` is called on the main process after each epoch's checkpoint; an exception in it ends the
        training. `follower` is the process that uploads the run, if one was started. Returns the command's
        result, on every process. Raises Interrupted on one of STOP_SIGNALS, once all processes have stopped
        at the same step and a checkpoint is written; TrainingError if the loss is not finite;
        ProcessLostError if a process has died.
        """
        state, peers = self.state, self.peers
        with StopSignals() as signals, peers.watched(signals):
            with Report(state, self.context, follower) as report:
                if not state.saved:
                    self.save()
                peers.on_main(lambda: remember_output_dir(self.context.output_dir, peers.training))
                peers.on_main(report.open)
                with self._progress_bar() as self.bar:
                    while not state.is_over:
                        state.end_epoch(self.train_epoch(signals) | self.evaluate())
                        self.save()
                        peers.on_main(report.epoch)
                        peers.on_main(lambda: after_epoch(report))
                result = peers.on_main(lambda: report.result(signals))
            return {"run_id": peers.on_main(report.run_id), **result}

    def train_epoch(self, signals: StopSignals) -> Record:
        """Take the remaining steps of one pass over the training images; returns the epoch's metrics."""
        config, steps, train_set = self.state.config, self.state.epoch, self.context.train_set
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
        for name, part in (("val", self.context.val_set), ("test", self.context.test_set)):
            loss, accuracy = self._loss_and_accuracy(part) if len(part) else (None, None)
            if loss is not None and not math.isfinite(loss):
                raise self._not_finite(f"the {name} loss after epoch {len(self.state.history) + 1} is {loss}")
            record |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        return record | {"evaluate_seconds": time.perf_counter() - started}

    def _loss_and_accuracy(self, part: ImageSet) -> tuple[float, float]:
        share = part[slice(self.context.rank, len(part), self.context.world_size)]
        totals = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        if len(share):
            totals += loss_and_correct(self.evaluated, share, self.context.data.image)
        loss, accuracy = (self.total(totals) / len(part)).tolist()
        return loss, accuracy

    def _progress_bar(self) -> progress.Bar:
        num_images, steps = len(self.context.train_set), self.state.epoch
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
        rows = order[steps.start * size : steps.stop * size].to(self.context.device)
        own = slice(self.context.rank, None, self.context.world_size)
        return torch.cat([batch[own] for batch in torch.split(rows, size)])

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
        steps, num_images = self.state.epoch, len(self.context.train_set)
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
        checkpoint = self.state.checkpoint(self.context.workers, self.total)
        self.peers.on_main(lambda: save_checkpoint(checkpoint, self.context.output_dir))
        self.state.saved = checkpoint.progress

    def _not_finite(self, problem: str) -> TrainingError:
        saved, directory = self.state.saved, self.context.output_dir
        kept = f" (the checkpoint of {saved} is kept in {directory})" if saved else ""
        return TrainingError(
            f"{problem} at learning rate {self.state.learning_rate:g}; "
            f"try a smaller --lr, --clip-norm 1 or --warmup-epochs 1{kept}"
        )

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on each of them."""
        summed: torch.Tensor = self.accelerator.reduce(tensor)
        return summed


def _build_engine(state: TrainState, context: RunContext, accelerator: Accelerator) -> Engine:
    """The fast engine where it honours every option that is set, otherwise the general one."""
    if CPUEngine.supports(state, accelerator):
        return CPUEngine(state, context)
    return AcceleratedEngine(state, context, accelerator)


class Pace:
    """When the processes synchronize: after the same steps on all, about every quarter of a second.

    After each step it would cost more than a small model's step, and drain a GPU's queue.
    """

    SECONDS = 0.25

    def __init__(self) -> None:
        self._steps, self._left = 1, 1
        self._since = time.perf_counter()

    def due(self, number: int) -> bool:
        """Call after each `number` of steps."""
        self._left -= number
        return self._left <= 0

    def elapsed(self) -> float:
        """Seconds since the last synchronization."""
        return time.perf_counter() - self._since

    def restart(self, seconds: float) -> None:
        """Start the next interval; `seconds` is the last one's longest duration over all processes."""
        steps = self._steps * self.SECONDS / max(seconds, 1e-6)
        self._steps = self._left = max(1, min(round(steps), 10 * self._steps, 1000))
        self._since = time.perf_counter()
