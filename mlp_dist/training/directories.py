"""A run's output directory: a new one, or the one to resume. Used on the main process."""

import os
import shlex
import sys
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from mlp_dist.config import OPTIONS, TrainConfig
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.io import remove_left, try_to_lock
from mlp_dist.tracking.run_dir import PLAN, choose_output_dir, has_record, is_uploaded, output_name
from mlp_dist.training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    set_aside_damaged,
    write_history,
)
from mlp_dist.training.distributed import remembered_output_dir

_claims: dict[Path, int] = {}
"""The directories that this process has locked -> their descriptors."""


def new_output_dir(config: TrainConfig) -> Path:
    """Make and lock `config.output_dir`, or a new directory named after the run.

    Raises UsageError if it is in use, holds a sweep, or a run that is unfinished or not yet in MLflow.
    """
    directory = choose_output_dir(config.output_dir, output_name(config), "no")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot create the output directory {directory.absolute()} ({error.strerror}); "
            "choose another --output-dir"
        ) from error
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
    if before.has_begun and not before.is_over:
        raise UsageError(
            f"{directory} holds a run that stopped after {before.progress} of {before.config.epochs}: "
            "continue it with --resume, or choose another --output-dir"
        )
    if before.has_begun and has_record(directory) and not is_uploaded(directory):
        raise UsageError(
            f"{directory} holds a run that is not fully uploaded to MLflow: upload it with "
            f"python -m mlp_dist.sync {shlex.quote(str(directory))}, or choose another --output-dir"
        )


def find_checkpoint(config: TrainConfig, *, resume: str) -> tuple[Path | None, Checkpoint | None]:
    """The directory to resume and its checkpoint; (None, None) for a new run."""
    directory = remembered_output_dir()
    if directory is None:
        if resume == "no":
            return None, None
        directory = choose_output_dir(config.output_dir, output_name(config), resume)
        if resume == "auto" and not has_checkpoint(directory):
            return None, None
    checkpoint, damage = load_checkpoint(directory)
    _claim(directory)
    if damage:
        print(f"warning: {damage}", file=sys.stderr, flush=True)
        set_aside_damaged(directory)
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
