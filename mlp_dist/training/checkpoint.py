"""The resumable state of a training in one file, and the output directory that holds it.

A crash while writing never damages the checkpoint before. Directories are chosen on the main process.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import mlp_dist
from mlp_dist.config import OPTIONS, TrainConfig
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.io import remove_left, replacing_file, try_to_lock
from mlp_dist.tracking.run_dir import (
    CHECKPOINT,
    METRICS,
    PLAN,
    choose_output_dir,
    has_record,
    is_uploaded,
    make_directory,
)
from mlp_dist.training.distributed import remembered_output_dir

PREVIOUS = "previous.pt"
"""The checkpoint before the last, in case the last one is damaged."""

_FORMAT = "mlp_dist checkpoint 1"

StateDict = dict[str, torch.Tensor]

_claims: dict[Path, int] = {}
"""The directories that this process has locked -> their descriptors."""


@dataclass
class Checkpoint:
    """A training after `len(history)` epochs and the steps in `epoch_steps`.

    `history` has one record per epoch: epoch (from 1), losses, accuracies, learning_rate, samples_per_second,
    train_seconds, evaluate_seconds, images_seen and steps_taken since the start, timestamp_ms since 1970 and
    the logged losses of its `steps`. `run_key` is the RunRecord's. `kept` is the index in `history` of the
    epoch whose weights are `best`. `data_digest` is Dataset.digest(). `average`, `scaler` (of fp16) and
    `epoch_steps` are state_dicts, or None. `workers` describes the hardware, `module` a
    model of the caller's own.
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
    module: str = ""

    @property
    def num_epochs(self) -> int:
        return len(self.history)

    @property
    def progress(self) -> str:
        steps = len(self.epoch_steps["totals"]) if self.epoch_steps else 0
        return f"step {steps} of epoch {self.num_epochs + 1}" if steps else f"epoch {self.num_epochs}"


def cpu_copy(state_dict: StateDict) -> StateDict:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write DIR/last.pt and the history as DIR/metrics.jsonl; the old last.pt becomes DIR/previous.pt.

    Raises CheckpointError if they cannot be written; the last good checkpoint stays.
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
        raise CheckpointError(f"{path} is not a checkpoint of mlp_dist {mlp_dist.__version__}")
    # 0.1.0 did not name itself.
    version = state.pop("version", "0.1.0")
    try:
        config = TrainConfig.from_json(json.loads(state.pop("config")))
        return Checkpoint(**{**state, "config": config, "average": _current_average(state)})
    except (CheckpointError, UsageError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} was written by mlp_dist {version}; "
            f"mlp_dist {mlp_dist.__version__} cannot resume it: {error}"
        ) from error


def new_output_dir(config: TrainConfig) -> Path:
    """Make and lock `config.output_dir`, or a new directory named after the run.

    Raises UsageError if it is in use, holds a sweep, or a run that is unfinished or not yet in MLflow.
    """
    directory = choose_output_dir(config, "no")
    make_directory(directory)
    _claim(directory)
    if (directory / PLAN).exists():
        raise UsageError(f"{directory} holds a sweep; choose another --output-dir")
    if has_checkpoint(directory):
        _check_finished(directory)
    return directory.absolute()


def _claim(directory: Path) -> None:
    """Lock the directory until this process ends, so that no other training writes to it."""
    # This process may have locked it for a start that failed.
    if directory.absolute() not in _claims:
        if (lock := try_to_lock(directory)) is None:
            raise UsageError(f"another training is running in {directory}; choose another --output-dir")
        _claims[directory.absolute()] = lock
    remove_left(directory)


def release(directory: Path) -> None:
    """Unlock the directory of a run that has ended."""
    if (lock := _claims.pop(directory.absolute(), None)) is not None:
        os.close(lock)


def _check_finished(directory: Path) -> None:
    try:
        before, _ = load_checkpoint(directory)
    except CheckpointError as error:
        raise UsageError(
            f"{directory} holds a checkpoint that cannot be read ({error}); choose another --output-dir"
        ) from error
    if before.progress == "epoch 0":
        return
    if not before.config.is_over(before.num_epochs, before.kept):
        raise UsageError(
            f"{directory} holds a run that stopped after {before.progress} of {before.config.epochs}: "
            "continue it with --resume, or choose another --output-dir"
        )
    if has_record(directory) and not is_uploaded(directory):
        raise UsageError(
            f"{directory} holds a run that is not fully uploaded to MLflow: upload it with "
            f"python -m mlp_dist.sync {shlex.quote(str(directory))}, or choose another --output-dir"
        )


def find_checkpoint(
    config: TrainConfig, *, resume: str, training: int = 0
) -> tuple[Path | None, Checkpoint | None]:
    """The directory to resume and its checkpoint; (None, None) for a new run."""
    directory = remembered_output_dir(training)
    if directory is None:
        if resume == "no":
            return None, None
        directory = choose_output_dir(config, resume)
        if resume == "auto" and not has_checkpoint(directory):
            return None, None
    checkpoint, damage = load_checkpoint(directory)
    _claim(directory)
    if damage:
        print(f"warning: {damage}", file=sys.stderr, flush=True)
        # The next checkpoint must not move it to previous.pt.
        with suppress(FileNotFoundError):
            (directory / CHECKPOINT).replace(directory / f"{CHECKPOINT}.damaged")
    write_history(checkpoint, directory)
    return directory.absolute(), checkpoint


def resumed_config(checkpoint: Checkpoint, config: TrainConfig, given: Set[str]) -> TrainConfig:
    """The checkpoint's configuration, with the fields in `given` taken from `config`.

    Raises UsageError if one of them differs that must not.
    """
    saved = checkpoint.config
    asked = {name: getattr(config, name) for name in given - {"output_dir"}}
    other = {name: value for name, value in asked.items() if value != getattr(saved, name)}
    fixed = [name for name in sorted(other) if not OPTIONS[name].free_on_resume]
    if fixed:
        differences = ", ".join(f"{name} {getattr(saved, name)}, not {other[name]}" for name in fixed)
        raise UsageError(
            f"the run was started with {differences}: leave that out to continue it, "
            "or leave --resume out to start a new run"
        )
    if "epochs" in other and saved.schedule != "constant":
        raise UsageError(
            f"the run's {saved.schedule} schedule ends with epoch {saved.epochs}, "
            f"so {other['epochs']} epochs would be another training: leave --epochs out to continue it"
        )
    if other.get("epochs", saved.epochs) < checkpoint.num_epochs:
        raise UsageError(
            f"the run has already trained {checkpoint.num_epochs} epochs, "
            f"more than the {other['epochs']} requested"
        )
    return replace(saved, **other)
