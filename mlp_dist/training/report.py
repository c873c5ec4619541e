"""What a training reports on the main process: lines on stdout, and the files of its run."""

import math
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

import mlp_dist
from mlp_dist.console import progress
from mlp_dist.console.process import StopSignals
from mlp_dist.core.bundle import load_bundle, save_bundle, to_probabilities
from mlp_dist.core.errors import TrackingError
from mlp_dist.core.io import replacing_file
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.data.evaluate import model_temperature, predict
from mlp_dist.data.scores import confident_mistakes, evaluate, probabilities
from mlp_dist.tracking.follow import Follower, followed
from mlp_dist.tracking.run_dir import (
    BUNDLE,
    CONFIG,
    PREDICTIONS,
    SAMPLES,
    RunRecord,
    Uploaded,
    write_json,
)
from mlp_dist.training.checkpoint import release
from mlp_dist.training.identity import describe
from mlp_dist.training.state import Record, RunContext, TrainState

MAX_SHOWN = 20
"""Images in a picture."""


def _at_chance(record: Record, labels: torch.Tensor) -> str:
    """What to try if the last epoch's test accuracy is no better than the most frequent class's share."""
    share, accuracy = torch.bincount(labels).max().item() / len(labels), record["test_accuracy"]
    # Two standard deviations of such an accuracy.
    if accuracy > share + 2 * math.sqrt(share * (1 - share) / len(labels)):
        return ""
    return (
        f"a test accuracy of {accuracy:.2%} is no better than always answering the most frequent class: try "
        "another --lr and more --epochs, and see whether the images in figures/samples.png have their labels"
    )


def slowed(history: Sequence[Record]) -> str:
    """A hint if the last three epochs had less than a quarter of the first one's speed."""
    first, *_ = speeds = [record["samples_per_second"] for record in history]
    if len(speeds) < 4 or (last := max(speeds[-3:])) >= first / 4:
        return ""
    return (
        f"the last epochs ran at {last:,.0f} images/s, the first at {first:,.0f}: "
        "this machine is busy with other work"
    )


class Report(ExitStack):
    """As a context manager, it ends the run, as failed or killed after an exception, and its lock.

    `follower` brings MLflow up to date; without one, a new one is started, or, for a nested run, none.
    """

    record: RunRecord

    def __init__(self, state: TrainState, context: RunContext, follower: Follower | None = None) -> None:
        super().__init__()
        self.state, self.context, self.follower = state, context, follower

    def open(self) -> None:
        """Start a run, or reopen the run that is resumed."""
        directory = self.context.output_dir
        self.callback(release, directory)
        self.record, is_new = self._record()
        write_json(directory / CONFIG, self.state.config.to_json())
        if is_new:
            data = self.context.data
            write_samples(directory, data.train, data.classes)
        # After a restart, the run may be in another directory.
        if self.follower is not None and self.follower.directory != directory:
            self.follower.stop()
            self.follower = None
        # The sweep's own follows nested runs.
        if self.follower is None and self.context.parent is None:
            self.follower = Follower(directory)
        self.enter_context(followed(directory, self.record, self.follower))

    def _record(self) -> tuple[RunRecord, bool]:
        """The run's record, and whether it is new."""
        now = describe(self.state, self.context)
        try:
            found = RunRecord.load(self.context.output_dir)
        except TrackingError:
            return now, True
        if found.key != now.key:
            return now, True
        found.open()
        # More epochs or other hardware change these.
        found.name, found.description, found.tags = now.name, now.description, found.tags | now.tags
        return found, False

    def epoch(self) -> None:
        """Report the last epoch."""
        record, config = self.state.history[-1], self.state.config
        parts = [f"epoch {record['epoch']}/{config.epochs}"]
        for part in ("train", "val", "test"):
            loss, accuracy = record[f"{part}_loss"], record[f"{part}_accuracy"]
            parts.append(f"{part} -" if loss is None else f"{part} loss {loss:.4f} accuracy {accuracy:.2%}")
        parts.append(f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s")
        progress.tell("  ".join(parts))

    def result(self, signals: StopSignals) -> Record:
        """Test and write the kept weights; returns the command's result but for the run's id."""
        config, num_epochs = self.state.config, len(self.state.history)
        if num_epochs < config.epochs:
            epochs = f"{config.patience} epoch{'s' * (config.patience > 1)}"
            print(f"stopped early: no better validation accuracy in {epochs}", flush=True)
        hints = (
            _at_chance(self.state.history[-1], self.context.test_set.labels),
            slowed(self.state.history),
        )
        for hint in filter(None, hints):
            print(hint, flush=True)
        signals.at_once()
        with progress.stages("testing and storing"):
            return write_outputs(self.state, self.context, self.record)

    def run_id(self) -> str | None:
        """The run's id in MLflow, once the run has ended; None if MLflow could not be reached."""
        found = Uploaded.load(self.context.output_dir)
        return found.run_id if found.key == self.record.key else None


def write_outputs(state: TrainState, context: RunContext, record: RunRecord) -> dict[str, Any]:
    """Runs on the main process; returns the command's result but for the run's id."""
    data, history, best = context.data, state.history, state.history[state.kept]
    model = build_model(context.spec).to(context.device).eval()
    model.load_state_dict(state.best)
    temperature = model_temperature(model, context.val_set, data.image)
    logits = predict(model, context.test_set, data.image).cpu()
    test = evaluate(logits.numpy(), data.test.labels.numpy(), temperature=temperature)
    write_predictions(context.output_dir, logits, temperature, data)
    figures = {"test_accuracy": test.accuracy, "test_loss": test.loss, "test_ece": test.ece}
    _write_bundle(state, context, model.cpu(), test.temperature, figures)
    kept = {f"best_{name}": best[name] for name in ("epoch", "val_accuracy", "val_loss")}
    record.summary = {
        name: value for name, value in (kept | figures).items() if value is not None and math.isfinite(value)
    }
    train_seconds = sum(record["train_seconds"] for record in history)
    return {
        "recipe": state.config.recipe,
        "dataset": data.name,
        "num_parameters": state.num_parameters,
        "num_processes": context.world_size,
        "epochs": len(history),
        "best_epoch": best["epoch"],
        **{name: best[name] for name in ("train_loss", "train_accuracy", "val_accuracy")},
        **figures,
        "test_ece_uncalibrated": test.uncalibrated_ece,
        "temperature": test.temperature,
        "train_seconds": round(train_seconds, 3),
        "samples_per_second": round(len(context.train_set) * len(history) / train_seconds, 1),
        "output_dir": str(context.output_dir),
    }


def _write_bundle(
    state: TrainState,
    context: RunContext,
    model: torch.nn.Module,
    temperature: float,
    figures: dict[str, float],
) -> None:
    """Write the bundle, read it back, and compare its prediction with the trained model's.

    The upload adds the run's id.
    """
    directory, data = context.output_dir / BUNDLE, context.data
    golden = data.test[:1].images[0]
    probabilities = to_probabilities(predict(model, golden[None], data.image), temperature)[0].tolist()
    spec = BundleSpec(
        model=context.spec,
        image=data.image,
        classes=data.classes,
        dataset=data.name,
        recipe=state.config.recipe,
        run_id="",
        metrics={"val_accuracy": state.history[state.kept]["val_accuracy"], **figures},
        golden_probabilities=tuple(probabilities),
        weights_sha256="",
        versions={
            "mlp_dist": mlp_dist.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        temperature=temperature,
        preprocess=data.preprocess,
    )
    save_bundle(directory, spec, model.state_dict(), golden)
    load_bundle(directory).check_golden()


def write_samples(directory: Path, images: ImageSet, classes: Sequence[str]) -> None:
    """Write SAMPLES: the first `images`, uint8 (N, C, H, W), their `labels`, int64 (N,), and `classes`."""
    part = images[:MAX_SHOWN]
    _write(directory / SAMPLES, images=part.images, labels=part.labels, classes=list(classes))


def write_predictions(directory: Path, logits: torch.Tensor, temperature: float, data: Dataset) -> None:
    """Write PREDICTIONS: the test images' `logits`, float32 (N, classes), `labels`, int64 (N,), and what the
    pictures show besides.

    `temperature` is float64 (), `classes` are strings. `mistakes` are the indices, int64 (M,), of the most
    confident mistakes, and `mistake_images` uint8 (M, C, H, W).
    """
    scores, labels = logits.cpu().numpy(), data.test.labels.cpu().numpy()
    mistakes = confident_mistakes(probabilities(scores, temperature), labels, MAX_SHOWN)
    _write(
        directory / PREDICTIONS,
        logits=scores,
        labels=labels,
        temperature=temperature,
        classes=list(data.classes),
        mistakes=mistakes,
        mistake_images=data.test[torch.from_numpy(mistakes)].images,
    )


def _write(path: Path, **arrays: ArrayLike) -> None:
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
