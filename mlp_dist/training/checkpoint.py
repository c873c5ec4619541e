"""The resumable state of a training in one file; a crash while writing never damages the one before."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mlp_dist
from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.tracking.run_dir import CHECKPOINT, METRICS

PREVIOUS = "previous.pt"
"""The checkpoint before the last, in case the last one is damaged."""

_FORMAT = "mlp_dist checkpoint 1"
_VERSION_WITHOUT_FIELD = "0.1.0"
"""Of checkpoints that do not name the version that wrote them."""

StateDict = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """A training after `len(history)` epochs and the steps in `epoch_steps`.

    `history` has one record per epoch: epoch (from 1), losses, accuracies, learning_rate, samples_per_second,
    train_seconds, evaluate_seconds, images_seen and steps_taken since the start, timestamp_ms since 1970 and
    the logged losses of its `steps`. `run_key` is the RunRecord's. `kept` is the index in `history` of the
    epoch whose weights are `best`. `data_digest` is Dataset.digest(). `average`, `scaler` (of fp16) and
    `epoch_steps` are state_dicts, or None. `workers` describes the hardware.
    """

    config: TrainConfig
    run_key: str
    model: StateDict
    optimizer: dict[str, Any]
    best: StateDict
    kept: int
    history: list[dict[str, Any]]
    data_digest: str = ""
    average: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    epoch_steps: dict[str, Any] | None = None
    workers: str = ""

    @property
    def num_epochs(self) -> int:
        return len(self.history)

    @property
    def progress(self) -> str:
        steps = len(self.epoch_steps["totals"]) if self.epoch_steps else 0
        return f"step {steps} of epoch {self.num_epochs + 1}" if steps else f"epoch {self.num_epochs}"

    @property
    def has_begun(self) -> bool:
        return self.num_epochs > 0 or self.epoch_steps is not None

    @property
    def is_over(self) -> bool:
        return self.config.is_over(self.num_epochs, self.kept)


def cpu_copy(state_dict: StateDict) -> StateDict:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write DIR/last.pt and the history as DIR/metrics.jsonl; the old last.pt becomes DIR/previous.pt.

    Raises CheckpointError if they cannot be written; the old files stay.
    """
    state = {
        **{"format": _FORMAT, "version": mlp_dist.__version__},
        **vars(checkpoint),
        "config": json.dumps(checkpoint.config.to_json()),
    }
    try:
        with replacing_file(directory / CHECKPOINT) as path:
            with path.open("wb") as file:
                torch.save(state, file)
            _keep_previous(directory)
        write_history(checkpoint, directory)
    # torch turns the system's error into a RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(
            f"a checkpoint cannot be written in {directory}: {reason}; the last good one stays"
        ) from error


def write_history(checkpoint: Checkpoint, directory: Path) -> None:
    """Write DIR/metrics.jsonl; after a crash, it may be older than the checkpoint."""
    with replacing_file(directory / METRICS) as path:
        path.write_text("".join(json.dumps(record) + "\n" for record in checkpoint.history))


def _keep_previous(directory: Path) -> None:
    """Keep the last checkpoint under a second name, so that last.pt exists at any moment."""
    with suppress(FileNotFoundError), replacing_file(directory / PREVIOUS) as path:
        try:
            os.link(directory / CHECKPOINT, path)
        # Mounted object stores and other file systems in user space refuse hard links.
        except OSError:
            shutil.copyfile(directory / CHECKPOINT, path)


def has_checkpoint(directory: Path) -> bool:
    return (directory / CHECKPOINT).exists() or (directory / PREVIOUS).exists()


def load_checkpoint(directory: Path) -> tuple[Checkpoint, str]:
    """Read DIR/last.pt onto the CPU, or DIR/previous.pt if that is damaged; the second value says why.

    Raises UsageError if neither exists, CheckpointError if none can be read.
    """
    last, previous = directory / CHECKPOINT, directory / PREVIOUS
    if not has_checkpoint(directory):
        raise UsageError(
            f"{directory} has no {CHECKPOINT}, so there is nothing to resume; "
            "to start a run, leave --resume out"
        )
    try:
        return _read(last), ""
    except CheckpointError as error:
        if not previous.exists():
            raise
        checkpoint = _read(previous)
        return checkpoint, f"{error}; resuming from the checkpoint before it, of {checkpoint.progress}"


def set_aside_damaged(directory: Path) -> None:
    """Rename DIR/last.pt, so that the next checkpoint does not move it to DIR/previous.pt."""
    with suppress(FileNotFoundError):
        (directory / CHECKPOINT).replace(directory / f"{CHECKPOINT}.damaged")


def _current_average(state: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an AveragedModel; 0.1.0 wrote `num_updates` and the averaged parameters alone."""
    average: dict[str, Any] | None = state.get("average")
    if average is None or "num_updates" not in average:
        return average
    parameters = state["model"] | average["average"]
    named = {f"module.{name}": tensor for name, tensor in parameters.items()}
    return {"n_averaged": torch.tensor(average["num_updates"]), **named}


def _read(path: Path) -> Checkpoint:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    # A truncated or foreign file makes torch.load raise many types of error.
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: it is damaged, or not a checkpoint") from error
    if not isinstance(state, dict) or state.pop("format", None) != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this package")
    version = state.pop("version", _VERSION_WITHOUT_FIELD)
    try:
        config = TrainConfig.from_json(json.loads(state.pop("config")))
        return Checkpoint(**{**state, "config": config, "average": _current_average(state)})
    except (CheckpointError, UsageError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} was written by mlp_dist {version}; "
            f"mlp_dist {mlp_dist.__version__} cannot resume it: {error}"
        ) from error
